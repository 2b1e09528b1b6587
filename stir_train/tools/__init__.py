"""What only looks, and changes no run: doctor, inspect, trace, compare, grade, export, tiny.

Each module is the work behind one verb of ``cli/``, and reads finished runs by their directory.
To add one, write a module here and a command in ``cli/tools.py``.
"""
