"""The value head: P(correct) and tokens left, from the states at one control point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

MOST_AXES = 64
"""Principal axes by which a state is told from those that a head learned from."""


class ValueHead(nn.Module):
    """An ensemble of two-layer heads evaluated in one batched product.

    A head judges impulses in one block. Its input is the state there and, since they are known by then,
    the states of blocks below, side by side: ``W`` wide, the last ``D`` of them its own block's.
    Each member sees the standardised states, its own with the impulse, the impulse by itself, and a
    learned embedding of the control point. The weights of the impulse by itself begin at zero: a head that
    never saw one judges the sum, as a state like any other; one that did can tell what the model
    knows (in the state) from what it is about to do (which the impulse changes).
    """

    reads: Tensor
    mean: Tensor
    scale: Tensor
    temperature: Tensor
    max_new_tokens: Tensor
    familiar_axes: Tensor
    familiar_variances: Tensor
    familiar_rest: Tensor
    familiar_limit: Tensor

    def __init__(
        self,
        *,
        reads: Sequence[int],
        width: int,
        hidden_width: int,
        num_members: int,
        max_points: int,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
    ) -> None:
        """Start from random weights.

        Args:
            reads: The blocks whose states it sees, ascending; the last is the one that it judges.
            width: The residual width ``D``.
            hidden_width: Width of the hidden layer.
            num_members: Heads of the ensemble.
            max_points: Control points told apart.
            max_new_tokens: Token budget.
            generator: For the weights.
        """
        super().__init__()
        self.max_points, self.width = max_points, width
        inputs = width * len(reads)

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) * std)

        self.weight_in = normal(num_members, inputs, hidden_width, std=inputs**-0.5)
        self.weight_impulse = nn.Parameter(torch.zeros(num_members, width, hidden_width))
        self.point_bias = normal(num_members, max_points, hidden_width, std=0.1)
        self.weight_out = normal(num_members, hidden_width, 2, std=hidden_width**-0.5)
        self.bias_out = nn.Parameter(torch.zeros(num_members, 1, 2))
        self.register_buffer("reads", torch.tensor(list(reads), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("max_new_tokens", torch.tensor(float(max_new_tokens)))
        num_axes = max(1, min(MOST_AXES, width // 2))
        self.register_buffer("familiar_axes", torch.zeros(num_axes, width))
        self.register_buffer("familiar_variances", torch.ones(num_axes))
        self.register_buffer("familiar_rest", torch.ones(()))
        self.register_buffer("familiar_limit", torch.tensor(torch.inf))

    def forward(
        self,
        states: Float[Tensor, "B W"],
        points: Int[Tensor, "B"],
        impulses: Float[Tensor, "B D"] | None = None,
    ) -> tuple[Float[Tensor, "E B"], Float[Tensor, "E B"]]:
        """Logits of P(correct), uncalibrated, and log of the tokens left, per member.

        Args:
            states: Residual states of the blocks it reads, as captured.
            points: 1-based control points; later ones share the last embedding.
            impulses: What is added to its own block's states; None adds nothing.
        """
        index = (points - 1).clamp(0, self.max_points - 1)
        there = states
        if impulses is not None:
            there = states + nn.functional.pad(impulses, (states.shape[1] - self.width, 0))
        hidden = torch.einsum("bd,edh->ebh", (there - self.mean) / self.scale, self.weight_in)
        if impulses is not None:
            hidden = hidden + torch.einsum(
                "bd,edh->ebh", impulses / self.scale[-self.width :], self.weight_impulse
            )
        hidden = nn.functional.gelu(hidden + self.point_bias[:, index])
        outputs = torch.einsum("ebh,eho->ebo", hidden, self.weight_out) + self.bias_out
        return outputs[..., 0], outputs[..., 1]

    def p_correct(
        self,
        states: Float[Tensor, "B W"],
        points: Int[Tensor, "B"],
        impulses: Float[Tensor, "B D"] | None = None,
    ) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Calibrated P(correct): mean over members, and their standard deviation."""
        logits, _ = self(states, points, impulses)
        probabilities = torch.sigmoid(logits / self.temperature)
        deviation = probabilities.std(0, correction=0)
        return probabilities.mean(0), deviation

    def utility(
        self,
        states: Float[Tensor, "B W"],
        points: Int[Tensor, "B"],
        impulses: Float[Tensor, "B D"] | None = None,
        *,
        token_price: float,
    ) -> Float[Tensor, "E B"]:
        """Each member's ``P(correct) - token_price * tokens left / max_new_tokens``."""
        right, tokens = self._outlook(states, points, impulses)
        return right - token_price * tokens

    def _outlook(
        self,
        states: Float[Tensor, "B W"],
        points: Int[Tensor, "B"],
        impulses: Float[Tensor, "B D"] | None,
    ) -> tuple[Float[Tensor, "E B"], Float[Tensor, "E B"]]:
        """Each member's calibrated P(correct), and tokens left as a share of the budget."""
        logits, log_tokens = self(states, points, impulses)
        return torch.sigmoid(logits / self.temperature), log_tokens.exp() / self.max_new_tokens

    def gain_bound(
        self,
        states: Float[Tensor, "B W"],
        impulses: Float[Tensor, "B L D"],
        points: Int[Tensor, "B"],
        *,
        token_price: float,
        doubt: float,
    ) -> Float[Tensor, "B L"]:
        """Utility gained by each of ``L`` impulses, by the members' mean, less what may be lost.

        That is ``doubt`` deviations between the members' gains in P(correct): a wrong answer costs many
        tokens' worth, so optimism there is what does harm, while errors about tokens are small and
        even out.
        """
        num_candidates = impulses.shape[1]
        right_now, tokens_now = self._outlook(states, points, None)
        right, tokens = self._outlook(
            states.repeat_interleave(num_candidates, 0),
            points.repeat_interleave(num_candidates),
            impulses.flatten(0, 1),
        )
        gained = right.view(-1, *impulses.shape[:2]) - right_now[:, :, None]
        spent = tokens.view(-1, *impulses.shape[:2]) - tokens_now[:, :, None]
        return (gained - token_price * spent).mean(0) - doubt * gained.std(0, correction=0)

    def mahalanobis_distance(self, states: Float[Tensor, "B W"]) -> Float[Tensor, "B"]:
        """How unlike the states of its training a state of its own block is: 2 for a typical one.

        The mean squared deviation along their principal axes in standard deviations, plus the same
        for what lies off these axes: the Mahalanobis distance under probabilistic PCA.
        """
        inputs = self._own(states)
        along = inputs @ self.familiar_axes.T
        off = (inputs - along @ self.familiar_axes).square().sum(1) / self.familiar_rest
        return (along.square() / self.familiar_variances).mean(1) + off

    def is_familiar(self, states: Float[Tensor, "B W"]) -> Bool[Tensor, "B"]:
        """Whether the head has learned from states like these, and so has a say."""
        return self.mahalanobis_distance(states) <= self.familiar_limit

    @torch.no_grad()
    def fit_state_distribution(
        self,
        seen: Iterable[Float[Tensor, "R W"]],
        held_out: Iterable[Float[Tensor, "R2 W"]],
        *,
        share: float,
    ) -> None:
        """Fit the distribution of the training states, and the distance at which a state is out of it.

        Probabilistic PCA of its own block's states; the limit is a quantile over held-out states.

        Args:
            seen: States of the training, in pieces that are in memory one at a time.
            held_out: States of the validation, likewise.
            share: Of held-out states, those that count as familiar.
        """
        count, scatter = 0, self.mean.new_zeros(self.width, self.width, dtype=torch.float64)
        # In place: of a wide model each of these matrices takes a hundred megabytes and more.
        for piece in seen:
            inputs = self._own(piece).double()
            scatter += inputs.T @ inputs
            count += len(piece)
            del inputs
        variances, axes = torch.linalg.eigh(scatter.div_(count))
        kept = len(self.familiar_axes)
        self.familiar_axes.copy_(axes[:, -kept:].T)
        self.familiar_variances.copy_(variances[-kept:].clamp_min(1e-6))
        self.familiar_rest.copy_(variances[:-kept].sum().clamp_min(1e-6))
        distances = torch.cat([self.mahalanobis_distance(piece) for piece in held_out])
        self.familiar_limit.copy_(distances.quantile(share))

    def _own(self, states: Float[Tensor, "B W"]) -> Float[Tensor, "B D"]:
        """Its own block's states, standardised."""
        return ((states - self.mean) / self.scale)[:, -self.width :]

    def tokens_left(
        self, states: Float[Tensor, "B W"], points: Int[Tensor, "B"]
    ) -> Float[Tensor, "B"]:
        """Expected tokens until the completion ends."""
        _, log_tokens = self(states, points)
        return log_tokens.mean(0).exp()
