"""One stage a module: its ``run`` wires what the other packages offer, and no stage imports another.

Stages read each other's directories through ``stores/``. To add one, write ``NAME.py`` with a ``run`` function and
declare it in `STAGES` of ``config/pipeline.py``.
"""
