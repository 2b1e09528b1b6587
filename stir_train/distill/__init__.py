"""Distil steered behaviour into a LoRA adapter: samples, batches, and a weighted sum of terms.

To add a term, write it (`stir_train.distill.interface`) in a module here, and its line in
``SHIPPED_TERMS`` of ``config/learning.py``; a user's own needs neither (``docs/extending.md``).
"""
