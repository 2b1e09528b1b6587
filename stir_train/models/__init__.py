"""Models as the rest sees them: loading, identity, decoder blocks, hooks, LoRA, and the value head.

Any causal language model of transformers will do whose decoder blocks `blocks` finds. To add one whose blocks it does
not, teach `blocks` to find them; for a single run ``model.blocks_path`` names them.
"""
