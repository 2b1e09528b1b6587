"""How large an engine is."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_TOKENS = 32
"""Tokens of a cache block: small, since prompts share whole blocks alone."""


@dataclass(frozen=True)
class Extent:
    """How large an engine is.

    Attributes:
        max_rows: Completions side by side.
        max_length: Tokens of a prompt and its completion.
        max_cache_tokens: Tokens that the cache holds; None holds all rows at their longest. One row it
            holds in any case.
    """

    max_rows: int
    max_length: int
    max_cache_tokens: int | None = None

    @property
    def num_blocks(self) -> int:
        """Cache blocks; vLLM keeps one of them for itself."""
        of_row = -(-self.max_length // BLOCK_TOKENS)
        if self.max_cache_tokens is None:
            return self.max_rows * of_row + 1
        return max(of_row, self.max_cache_tokens // BLOCK_TOKENS) + 1
