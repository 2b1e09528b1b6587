"""Completions that something else sampled: from a file, or from a server."""
