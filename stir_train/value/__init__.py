"""Value heads: what they learn from, their fit and calibration, and how good their probabilities are.

`targets` and `examples` make the training rows, `fit` trains, `provisional` guides validation's rounds. To learn
from another source, give `examples` its rows; the head itself is ``models/value_head.py``.
"""
