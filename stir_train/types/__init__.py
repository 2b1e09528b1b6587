"""Frozen records with shapes: what the stages hand to each other. No input or output here.

One module a subject: rollouts, states, steering, results, reports. To add a record, write a frozen dataclass
that checks itself; what it becomes on disk is for ``stores/``.
"""
