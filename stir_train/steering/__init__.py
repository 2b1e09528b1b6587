"""Controllers: what steers at control points, and what a run offers to make one from.

To add a mode, write its controller and what makes it (`stir_train.steering.interface`) in a module here,
and its settings in ``config/steering.py``; a user's own needs neither (``docs/extending.md``).
"""
