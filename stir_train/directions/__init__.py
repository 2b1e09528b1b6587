"""Reward-gradient directions: what to add to the residual stream, and whether there is anything to add.

`gradients` reads rollouts, `advantages` weighs them, `estimate` makes and tests directions, `controls` makes
directions where there is nothing to find. To weigh rollouts otherwise, add to `advantages`; to doubt, to `controls`.
"""
