"""Everything that answers problems, behind one protocol: a model (plain, steered, capturing), a baseline.

`interface` is the protocol, `model` and `baseline` implement it, `methods` names what is compared. To add a
way of answering, implement `Answerer` in a module here and build it in ``runtime/answerers.py``.
"""
