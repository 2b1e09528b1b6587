"""The value head: P(correct) and tokens left, from one control-point state."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class ValueHead(nn.Module):
    """An ensemble of two-layer heads evaluated in one batched product.

    Each member sees the standardised state and a learned embedding of the control point.
    """

    mean: Tensor
    scale: Tensor
    temperature: Tensor
    max_new_tokens: Tensor

    def __init__(
        self,
        *,
        width: int,
        hidden_width: int,
        num_members: int,
        max_points: int,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.max_points = max_points

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) * std)

        self.weight_in = normal(num_members, width, hidden_width, std=width**-0.5)
        self.point_bias = normal(num_members, max_points, hidden_width, std=0.1)
        self.weight_out = normal(num_members, hidden_width, 2, std=hidden_width**-0.5)
        self.bias_out = nn.Parameter(torch.zeros(num_members, 1, 2))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("max_new_tokens", torch.tensor(float(max_new_tokens)))

    def forward(
        self, states: Float[Tensor, "B D"], points: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "E B"], Float[Tensor, "E B"]]:
        """Logits of P(correct), uncalibrated, and log of the tokens left, per member.

        Args:
            states: Residual states, as captured.
            points: 1-based control points; later ones share the last embedding.
        """
        inputs = (states - self.mean) / self.scale
        index = (points - 1).clamp(0, self.max_points - 1)
        hidden = torch.einsum("bd,edh->ebh", inputs, self.weight_in) + self.point_bias[:, index]
        outputs = torch.einsum("ebh,eho->ebo", nn.functional.gelu(hidden), self.weight_out)
        outputs = outputs + self.bias_out
        return outputs[..., 0], outputs[..., 1]

    def p_correct(
        self, states: Float[Tensor, "B D"], points: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Calibrated P(correct): mean over members, and their standard deviation."""
        logits, _ = self(states, points)
        probabilities = torch.sigmoid(logits / self.temperature)
        deviation = probabilities.std(0, correction=0)
        return probabilities.mean(0), deviation

    def utility(
        self,
        states: Float[Tensor, "B D"],
        points: Int[Tensor, "B"],
        *,
        token_price: float,
    ) -> Float[Tensor, "E B"]:
        """Each member's ``P(correct) - token_price * tokens left / max_new_tokens``."""
        logits, log_tokens = self(states, points)
        share = log_tokens.exp() / self.max_new_tokens
        return torch.sigmoid(logits / self.temperature) - token_price * share

    def tokens_left(
        self, states: Float[Tensor, "B D"], points: Int[Tensor, "B"]
    ) -> Float[Tensor, "B"]:
        """Expected tokens until the completion ends."""
        _, log_tokens = self(states, points)
        return log_tokens.mean(0).exp()
