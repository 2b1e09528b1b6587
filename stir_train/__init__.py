"""Steer the latent trajectories of a frozen language model, and distil the gain into LoRA."""

__version__ = "0.1.0"
