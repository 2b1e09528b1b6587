"""What an answer is worth: its correctness less the price of its tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Utility:
    """``u = 1[correct] - token_price * tokens / max_new_tokens``.

    Attributes:
        token_price: What a whole token budget is worth in accuracy.
        max_new_tokens: The token budget of a completion.
    """

    token_price: float
    max_new_tokens: int

    def of(self, correct: float, tokens: float) -> float:
        """The utility of an answer; of two answers' differences, the difference of their utilities.

        Args:
            correct: 1 for a right answer, 0 for a wrong one; or a difference of such.
            tokens: Generated tokens, discarded ones included; or a difference of such.
        """
        return float(correct) - self.token_price * tokens / self.max_new_tokens
