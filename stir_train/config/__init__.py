"""Frozen, torch-free configuration: one model a stage, one root, every problem reported at once.

A setting is a field with a docstring under it, which `stir-train settings` prints. What has several
kinds, as ``steering`` has modes, is a union of models, so that each has only the settings that act.
"""
