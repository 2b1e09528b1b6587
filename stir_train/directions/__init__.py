"""Reward-gradient directions: what to add to the residual stream, and whether there is anything to add."""
