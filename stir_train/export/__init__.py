"""What other tools load, and proof in a fresh process that it does something.

`adapter` writes LoRA, `vector` a control vector, `card` the model card; `verify` and `fresh_check` prove. To add a
format, write its module here and its command in ``cli/tools.py``.
"""
