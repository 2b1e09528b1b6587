"""Differential intrinsic action induction: contrast right and wrong rollouts at each control point.

`contrast` takes states and rewards and gives candidates, block by block. To add another contrast, write it there
as a function of a problem's rollouts; what it learns from is chosen by ``config.stages.HarvestConfig``.
"""
