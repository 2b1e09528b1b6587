"""Differential intrinsic action induction: contrast right and wrong rollouts."""
