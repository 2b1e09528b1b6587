"""Distil steered behaviour into a LoRA adapter."""
