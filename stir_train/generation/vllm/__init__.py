"""Generation by vLLM, in this process: paged cache, continuous batching, our controllers in its passes.

Only `session` and what it imports need vLLM; the rest is torch alone.
"""
