"""The backend over transformers models in this process.

`engine` holds it, `decoding` one call, `slots` and `slot_cache` the rows, `preview` forks of them. Another
backend is a package beside this one with one line in ``config/backends.py``.
"""
