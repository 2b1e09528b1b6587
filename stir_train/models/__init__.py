"""Frozen causal language models: loading, decoder blocks, hooks, and the value head."""
