"""The control basis: entries of high quality and diverse keys, tested by paired replay.

`select` and `dpp` choose, `trials` and `validate` measure, `diagnostics` say whether there is a contrast at all. To
add a way to select, write it in `select` and name it in ``config.stages.BasisConfig.selection``.
"""
