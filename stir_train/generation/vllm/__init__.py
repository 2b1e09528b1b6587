"""Generation by vLLM, in this process or in its server: our controllers in its passes.

Only `session`, `server` and `server_parts`, and what they import, need vLLM; the rest is torch alone.
"""
