"""Other methods, one a file, behind one protocol (`interface`), tuned and compared like ours.

`editing`, `pairs`, `probing` and `reading` are what several of them use. To add one, write its file here and its line
in ``config/baselines.py``; a user's own needs no line (``docs/extending.md``).
"""
