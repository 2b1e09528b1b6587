"""Gradients of recorded rollouts' log-probability in block outputs: one teacher-forced pass and its backward.

``g[b, t] = d log p_T(completion | prompt) / d h[b, t]``, where ``p_T`` divides logits by the sampling
temperature. Weights are frozen: only activations are differentiated, of tokens from the prompt's last one
on, and above the lowest wanted block. All blocks and places come from the same pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stir_train.directions.batches import batches_of_prompts, length_batches
from stir_train.directions.likelihood import log_likelihood
from stir_train.directions.places import (
    num_fed,
    over_places,
    place_mask,
    span_selector,
    spans_of,
)
from stir_train.directions.prompt_cache import PromptCache
from stir_train.errors import ArtifactError, ModelError, StageError
from stir_train.generation.backend import SamplingParams
from stir_train.models.hooks import BlockEdit, block_hooks
from stir_train.models.load import LoadedModel
from stir_train.models.output_head import OutputHead
from stir_train.types.directions import (
    PlacedVector,
    PointGradients,
    RolloutGradients,
)
from stir_train.types.rollout import Rollout
from stir_train.types.trajectory import StateLabel


@dataclass(frozen=True)
class GradientSettings:
    """What is differentiated, and how the rollouts were sampled.

    Attributes:
        blocks: Blocks whose outputs are differentiated, ascending.
        sampling: How the rollouts were sampled; its temperature must not be 0.
        max_points: Later control points are no places.
        filtered: Differentiate the distribution that top-p and top-k leave. Otherwise all tokens are
            kept: an approximation for such samples, and a pass without a sort of the vocabulary.
        max_batch_tokens: Fed columns of a batch, padding included.
        keep_points: Keep the gradient of every single point too.
        acting: Vectors that were added while the rollouts were sampled.
    """

    blocks: tuple[int, ...]
    sampling: SamplingParams
    max_points: int
    filtered: bool = False
    max_batch_tokens: int = 2048
    keep_points: bool = True
    acting: tuple[PlacedVector, ...] = ()


@dataclass
class GradientCost:
    """Work done. Token-forwards are rows times columns fed, padding included.

    Attributes:
        batches: Backward passes.
        prompt_token_forwards: Fed without a graph: prompts but their last tokens, once for many batches.
        graph_token_forwards: Fed, and run backwards down to the lowest wanted block.
        recorded_tokens: Tokens of the prompts and completions themselves.
    """

    batches: int = 0
    prompt_token_forwards: int = 0
    graph_token_forwards: int = 0
    recorded_tokens: int = 0

    @property
    def token_forwards(self) -> int:
        """Tokens fed forward in all, through prompts that are read without a graph and rows that have one."""
        return self.prompt_token_forwards + self.graph_token_forwards

    def add(self, other: GradientCost) -> None:
        """Add another call's cost, in place."""
        self.batches += other.batches
        self.prompt_token_forwards += other.prompt_token_forwards
        self.graph_token_forwards += other.graph_token_forwards
        self.recorded_tokens += other.recorded_tokens


def rollout_gradients(
    loaded: LoadedModel,
    rollouts: Sequence[Rollout],
    settings: GradientSettings,
    *,
    head: OutputHead | None = None,
) -> tuple[RolloutGradients, GradientCost]:
    """Differentiate recorded rollouts.

    A rollout's gradients do not depend on the others but for rounding; the same chunk of rollouts gives
    the same bytes.

    Args:
        loaded: The frozen model, whole on this process.
        rollouts: At least one.
        settings: Blocks, sampling, batches.
        head: The model's output layer, if its chunks should be of another size.

    Returns:
        Gradients in the order of ``rollouts``, on the CPU, and what they cost.

    Raises:
        ArtifactError: If a rollout carries impulses, whose pass this would not reproduce.
        StageError: If the sampled distribution has no gradient, or blocks are not ascending.
        ModelError: If the architecture changes logits in an unknown way, or ZeRO-3 shards the model.
    """
    _require_differentiable(loaded, rollouts, settings)
    gradient_pass = _GradientPass(loaded, head or OutputHead(loaded), settings)
    parts: list[_Part | None] = [None] * len(rollouts)
    most = settings.max_batch_tokens
    for batches in batches_of_prompts(length_batches(rollouts, most), rollouts, most):
        prompts = gradient_pass.prefill([rollouts[i] for batch in batches for i in batch])
        for batch in batches:
            found = gradient_pass.run([rollouts[i] for i in batch], prompts)
            for index, part in zip(batch, found, strict=True):
                parts[index] = part
    made = [part for part in parts if part is not None]
    gradients = RolloutGradients(
        prompt_ids=tuple(r.prompt_id for r in rollouts),
        samples=tuple(r.sample for r in rollouts),
        blocks=settings.blocks,
        logprobs=torch.stack([part.logprob for part in made]),
        sums=torch.stack([part.sums for part in made]),
        state_norms=torch.stack([part.states.norm(dim=-1).mean(0) for part in made]),
        state_means=torch.stack([part.state_means for part in made]),
        points=_all_points(made) if settings.keep_points else None,
    )
    return gradients, gradient_pass.cost


@dataclass(frozen=True)
class _Part:
    """One rollout's share of a batch: ``[P L D]`` of places, and ``[J L D]`` of its ``J`` points."""

    logprob: Float[Tensor, ""]
    sums: Float[Tensor, "P L D"]
    state_means: Float[Tensor, "P L D"]
    labels: tuple[StateLabel, ...]
    states: Float[Tensor, "J L D"]
    at_point: Float[Tensor, "J L D"]
    over_segment: Float[Tensor, "J L D"]


class _GradientPass:
    """Runs batches of rollouts, from the caches of their prompts on."""

    def __init__(self, loaded: LoadedModel, head: OutputHead, settings: GradientSettings) -> None:
        self.cost = GradientCost()
        self._loaded = loaded
        self._head = head
        self._settings = settings

    def prefill(self, rollouts: Sequence[Rollout]) -> PromptCache:
        """Keys and values of the rollouts' prompts."""
        prompts = PromptCache([rollout.prompt_token_ids for rollout in rollouts], self._fed_prompts)
        self.cost.prompt_token_forwards += prompts.num_fed
        return prompts

    def run(self, rollouts: Sequence[Rollout], prompts: PromptCache) -> list[_Part]:
        """Feed what comes after the prompts with a graph, and go back through it."""
        loaded, settings = self._loaded, self._settings
        begun = [rollout.prompt_token_ids for rollout in rollouts]
        cache = prompts.rows(begun)
        token_ids, targets = _fed(rollouts)
        mask = prompts.mask(begun, token_ids.shape[1])
        ends = torch.tensor([[len(prompt) - 1] for prompt in begun])
        positions = ends + torch.arange(token_ids.shape[1])
        watch = _BlockWatch(rollouts, settings)
        is_first = not self.cost.batches
        with (
            torch.enable_grad(),
            block_hooks(loaded.blocks, watch.edits()),
            self._head.apart(num_through=int(is_first)) as seen,
        ):
            logits = loaded.model(
                input_ids=token_ids.to(loaded.device),
                attention_mask=None if mask is None else mask.to(loaded.device),
                position_ids=positions.to(loaded.device),
                past_key_values=cache,
                use_cache=cache is not None,
            ).logits
        (hidden,) = seen
        if is_first:
            self._head.require_equal(hidden, logits)
        is_fed = targets >= 0
        picked = hidden[is_fed.to(hidden.device)]
        logprobs, gradient = log_likelihood(
            self._head,
            picked.detach(),
            targets[is_fed].to(hidden.device),
            settings.sampling,
            filtered=settings.filtered,
        )
        torch.autograd.backward(picked, gradient)
        self._count(rollouts, token_ids)
        counts = [num_fed(r) for r in rollouts]
        return watch.parts([one.double().sum().cpu() for one in logprobs.split(counts)])

    def _fed_prompts(
        self,
        token_ids: Int[Tensor, "R P"],
        mask: Bool[Tensor, "R P"] | None,
        positions: Int[Tensor, "R P"],
    ) -> Any:
        device = self._loaded.device
        with (
            torch.no_grad(),
            block_hooks(self._loaded.blocks, self._on_prompts()),
            self._head.apart(),
        ):
            fed = self._loaded.model(
                input_ids=token_ids.to(device),
                attention_mask=None if mask is None else mask.to(device),
                position_ids=positions.to(device),
                use_cache=True,
            )
        return fed.past_key_values

    def _on_prompts(self) -> Mapping[int, BlockEdit]:
        """What acts on every token of a prompt."""
        held: dict[int, Tensor] = {}
        for action in self._settings.acting:
            if action.place == "every_token":
                held[action.block] = held.get(action.block, 0) + action.vector
        return {block: _adding(vector) for block, vector in held.items()}

    def _count(self, rollouts: Sequence[Rollout], token_ids: Int[Tensor, "B T"]) -> None:
        self.cost.batches += 1
        self.cost.graph_token_forwards += token_ids.numel()
        self.cost.recorded_tokens += sum(
            len(r.prompt_token_ids) + len(r.token_ids) for r in rollouts
        )


def _adding(vector: Float[Tensor, "D"]) -> BlockEdit:
    return lambda states: states + vector.to(states)


class _BlockWatch:
    """Reduces each wanted block's gradient to places as the backward pass goes by."""

    def __init__(self, rollouts: Sequence[Rollout], settings: GradientSettings) -> None:
        self._rollouts = rollouts
        self._settings = settings
        self._spans = [spans_of(r, settings.max_points) for r in rollouts]
        self._selector = span_selector(rollouts, self._spans)
        self._reduced: dict[int, Tensor] = {}
        self._states: dict[int, Tensor] = {}
        self._state_sums: dict[int, Tensor] = {}

    def edits(self) -> Mapping[int, BlockEdit]:
        """What to hook into the blocks."""
        acting = {action.block for action in self._settings.acting}
        return {b: self._edit(b) for b in sorted(acting | set(self._settings.blocks))}

    def parts(self, logprobs: Sequence[Float[Tensor, ""]]) -> list[_Part]:
        """What was found, a rollout at a time."""
        blocks = self._settings.blocks
        most = max(map(len, self._spans))
        rows = torch.stack([self._reduced[b] for b in blocks], dim=2)
        states = torch.stack([self._states[b] for b in blocks], dim=2)
        state_sums = torch.stack([self._state_sums[b] for b in blocks], dim=2)
        num_tokens = self._selector.sum(2)[:, :, None, None]
        parts = []
        for row, (rollout, spans) in enumerate(zip(self._rollouts, self._spans, strict=True)):
            counts = over_places(num_tokens[row], len(spans), most)
            parts.append(
                _Part(
                    logprob=logprobs[row],
                    sums=over_places(rows[row], len(spans), most),
                    state_means=over_places(state_sums[row], len(spans), most)
                    / counts.clamp_min(1),
                    labels=_labels(rollout, [span.start for span in spans]),
                    states=states[row, : len(spans)],
                    at_point=rows[row, 1 : 1 + len(spans)],
                    over_segment=rows[row, 1 + most : 1 + most + len(spans)],
                )
            )
        return parts

    def _edit(self, block: int) -> BlockEdit:
        def edit(states: Tensor) -> Tensor:
            states = self._acted_on(states, block)
            if block not in self._settings.blocks:
                return states
            if block == self._settings.blocks[0]:
                # Nothing below is wanted, so the graph begins here.
                states = states.detach().requires_grad_()
            self._states[block] = self._at_points(states.detach())
            self._state_sums[block] = self._summed(states.detach())
            states.register_hook(lambda gradient: self._reduce(gradient, block))
            return states

        return edit

    def _acted_on(self, states: Tensor, block: int) -> Tensor:
        for action in self._settings.acting:
            if action.block == block:
                mask = place_mask(
                    self._rollouts, action.place, max_points=self._settings.max_points
                )
                states = states + mask.to(states)[:, :, None] * action.vector.to(states)
        return states

    def _at_points(self, states: Float[Tensor, "B T D"]) -> Float[Tensor, "B J D"]:
        """The states at the points, padded with those at the prompt's end."""
        most = max(map(len, self._spans))
        columns = torch.zeros(len(self._spans), most, dtype=torch.long)
        for row, spans in enumerate(self._spans):
            columns[row, : len(spans)] = torch.tensor([span.start for span in spans])
        rows = torch.arange(len(self._spans))[:, None]
        return states[rows.to(states.device), columns.to(states.device)].float().cpu()

    def _reduce(self, gradient: Float[Tensor, "B T D"], block: int) -> None:
        self._reduced[block] = self._summed(gradient)

    def _summed(self, values: Float[Tensor, "B T D"]) -> Float[Tensor, "B Q D"]:
        """Over the whole rollout, every point and every segment, in float32."""
        return torch.bmm(self._selector.to(values.device), values.float()).cpu()


def _fed(rollouts: Sequence[Rollout]) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """From the prompts' last tokens on: what is fed, and the token that came next (-1 on padding)."""
    width = max(map(num_fed, rollouts))
    token_ids = torch.zeros((len(rollouts), width), dtype=torch.long)
    targets = torch.full_like(token_ids, -1)
    for row, rollout in enumerate(rollouts):
        targets[row, : num_fed(rollout)] = torch.tensor(rollout.token_ids)
        token_ids[row, 0] = rollout.prompt_token_ids[-1]
        token_ids[row, 1 : num_fed(rollout)] = targets[row, : num_fed(rollout) - 1]
    return token_ids, targets


def _labels(rollout: Rollout, columns: Sequence[int]) -> tuple[StateLabel, ...]:
    def label(point: int, index: int) -> StateLabel:
        token = rollout.token_ids[index] if index >= 0 else rollout.prompt_token_ids[-1]
        return StateLabel(rollout.prompt_id, rollout.sample, point, index, token)

    return tuple(label(point, column - 1) for point, column in enumerate(columns))


def _all_points(parts: Sequence[_Part]) -> PointGradients:
    return PointGradients(
        labels=tuple(label for part in parts for label in part.labels),
        states=torch.cat([part.states for part in parts]),
        at_point=torch.cat([part.at_point for part in parts]),
        over_segment=torch.cat([part.over_segment for part in parts]),
    )


def _require_differentiable(
    loaded: LoadedModel, rollouts: Sequence[Rollout], settings: GradientSettings
) -> None:
    if loaded.collective_forward is not None:
        raise ModelError(
            "model.sharding=zero3: ranks would wait for one another in backward passes of their own; "
            "use tensor or none for this stage"
        )
    if settings.sampling.temperature == 0:
        raise StageError(
            "greedy completions have no score: name the temperature at which the others were sampled"
        )
    if settings.sampling.repetition_penalty != 1:
        raise StageError(
            "generation.repetition_penalty: directions take samples of the model's own distribution; "
            f"set it to 1, not {settings.sampling.repetition_penalty}"
        )
    blocks = settings.blocks
    acting = {(action.block, action.place) for action in settings.acting}
    if not blocks or list(blocks) != sorted(set(blocks)) or not 0 <= blocks[0] <= blocks[-1]:
        raise StageError(f"blocks to differentiate must be ascending and distinct, not {blocks}")
    if blocks[-1] >= len(loaded.blocks):
        raise StageError(f"block {blocks[-1]} of a model of {len(loaded.blocks)} blocks")
    for rollout in rollouts:
        if not {(one.block, one.place) for one in rollout.impulses} <= acting:
            raise ArtifactError(
                f"{rollout.prompt_id}, sample {rollout.sample}: steered by a controller, whose "
                "impulses this pass would not reproduce; record plain rollouts"
            )
        if not rollout.prompt_token_ids or not rollout.token_ids:
            raise ArtifactError(
                f"{rollout.prompt_id}, sample {rollout.sample}: no prompt or no tokens"
            )
