"""Frozen, torch-free configuration: one model a stage, one root, every problem reported at once."""
