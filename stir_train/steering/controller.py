"""The controller: picks one entry and a strength, or none, at a control point.

Modes. ``similarity``: affinity alone. ``preview``: affinity plus the previews' gain, the published
rule. ``value``: predicted gain in P(correct), inside the pass. ``hybrid``: predicted gain plus the
previews' gain. ``none`` is a controller over no entries.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stir_train.config.stages import UtilityConfig
from stir_train.config.steering import (
    AffinitySteering,
    JudgedSteering,
    PreviewingSteering,
    RetrievingSteering,
    SimilaritySteering,
)
from stir_train.errors import ArtifactError, StageError
from stir_train.generation.backend import ControlBatch, ImpulseBatch, Proposal, no_impulses
from stir_train.generation.noise import row_keys, uniforms
from stir_train.models.value_head import ValueHead
from stir_train.steering.controls import empty_basis
from stir_train.steering.interface import ControllerInputs
from stir_train.steering.scoring import Retrieved, Retriever
from stir_train.types.steering import ControlBasis, SteeringDecision

DEFAULT_UTILITY = UtilityConfig()


class BasisController:
    """A `Controller` over one block of a control basis; logs every decision."""

    def __init__(
        self,
        basis: ControlBasis,
        config: RetrievingSteering,
        *,
        block: int,
        head: ValueHead | None = None,
        device: torch.device | None = None,
        utility: UtilityConfig = DEFAULT_UTILITY,
    ) -> None:
        """Keep the entries of ``block``.

        Raises:
            StageError: If the mode needs a value head and there is none.
            ArtifactError: If a direction or key is not finite, or the head is of another block.
        """
        if isinstance(config, JudgedSteering) and head is None:
            raise StageError("this steering.mode needs a value head; run `value` first")
        if head is not None and int(head.reads[-1]) != block:
            raise ArtifactError(
                f"the value head judges impulses in block {int(head.reads[-1])}, not in {block}"
            )
        if not bool(torch.isfinite(basis.directions).all() and torch.isfinite(basis.keys).all()):
            raise ArtifactError("the control basis holds values that are not finite; remake it")
        self.block = block
        self.reads: tuple[int, ...] = (block,)
        if isinstance(config, JudgedSteering) and head is not None:
            self.reads = tuple(head.reads.tolist())
        self.config, self._utility = config, utility
        self.decisions: list[SteeringDecision] = []
        device = device or torch.device("cpu")
        self._rows = (basis.blocks == block).nonzero()[:, 0]
        self._acts = len(self._rows) > 0
        previews = config.preview_tokens if isinstance(config, PreviewingSteering) else 0
        self.preview_tokens = previews if self._acts else 0
        kept = basis.select(self._rows)
        self._rows = self._rows.to(device)
        self._basis = ControlBasis(**{k: v.to(device) for k, v in vars(kept).items()})
        self._head = None if head is None else head.to(device)
        self._retriever = Retriever(
            self._basis, center_keys=config.center_keys, num_nearest=config.num_nearest
        )
        self._pending: tuple[Retrieved, Tensor, Tensor] | None = None

    def reset(self) -> None:
        """Empty the log."""
        self.decisions.clear()
        self._pending = None

    def decide(self, states: Float[Tensor, "R W"], batch: ControlBatch) -> ImpulseBatch:
        """Choose impulses from the states alone (``similarity`` and ``value``)."""
        own = self._own(states)
        if not self._acts:
            return no_impulses(own)
        found, strengths = self._retrieve(own, batch)
        scores, null = self._scores(states, batch, found, strengths)
        return self._choose(own, batch, found, strengths, scores, null)

    def propose(self, states: Float[Tensor, "R W"], batch: ControlBatch) -> Proposal:
        """Retrieve what to preview, at the preview strength."""
        found, strengths = self._retrieve(self._own(states), batch)
        self._pending = found, strengths, states
        shown = strengths
        assert isinstance(self.config, PreviewingSteering)
        if self.config.preview_strength is not None:
            shown = torch.full_like(strengths, self.config.preview_strength)
        deltas = self._basis.directions[found.entries] * shown[..., None]
        return Proposal(deltas=deltas, valid=found.valid)

    def commit(
        self, states: Float[Tensor, "R W"], batch: ControlBatch, gains: Float[Tensor, "R L"]
    ) -> ImpulseBatch:
        """Choose impulses, given the previews' gains."""
        assert self._pending is not None, "propose() comes before commit()"
        found, strengths, proposed = self._pending
        assert proposed.shape == states.shape, "commit() is for the rows of the last propose()"
        self._pending = None
        scores, null = self._scores(states, batch, found, strengths)
        assert isinstance(self.config, PreviewingSteering)
        scores = scores + self.config.preview_weight * gains
        return self._choose(self._own(states), batch, found, strengths, scores, null)

    def _own(self, states: Float[Tensor, "R W"]) -> Float[Tensor, "R D"]:
        """Of the states that it reads, those of the block that it steers."""
        return states[:, -self._basis.directions.shape[1] :]

    def _retrieve(
        self, states: Float[Tensor, "R D"], batch: ControlBatch
    ) -> tuple[Retrieved, Float[Tensor, "R L"]]:
        """Candidates, and the strength each would be injected at."""
        config = self.config
        found = self._retriever.retrieve(
            states, batch.points, config.num_candidates, ranking=self._ranking(batch)
        )
        if config.first_point_only:
            first = (batch.points == 1)[:, None]
            found = Retrieved(
                found.entries, found.valid & first, found.affinity, found.null_affinity
            )
        if isinstance(config, JudgedSteering):
            norms = self._basis.directions[found.entries].norm(dim=-1).clamp_min(1e-12)
            bound = config.max_relative_norm * states.norm(dim=-1, keepdim=True) / norms
            factors = torch.tensor(config.strength_factors, device=states.device)
            found = found.repeated(len(factors))
            wanted = (config.strength * factors).clamp_max(config.max_strength)
            strengths = torch.minimum(
                bound.repeat_interleave(len(factors), 1), wanted.repeat(bound.shape[1])
            )
        else:
            assert isinstance(config, AffinitySteering)
            affinity = torch.where(found.valid, found.affinity, 0.0)
            # Without memory (similarity_weight 0, an ablation) the strength stands alone.
            weighted = config.similarity_weight * affinity if config.similarity_weight else 1.0
            scaled = config.strength * weighted * torch.ones_like(affinity)
            strengths = scaled.clamp(0.0, config.max_strength)
        return found, strengths

    def _ranking(self, batch: ControlBatch) -> Float[Tensor, "R K"] | None:
        """None for similarity; else a draw per (rollout, point, entry) that depends on those alone."""
        if self.config.retrieval == "nearest":
            return None
        rows = [
            (prompt_id, point)
            for prompt_id, point in zip(batch.prompt_ids, batch.points.tolist(), strict=True)
        ]
        keys = row_keys(0, rows).to(self._rows.device)[:, None]
        entries = torch.arange(len(self._rows), device=self._rows.device)
        return uniforms(keys.expand(-1, len(entries)).flatten(), entries.repeat(len(rows))).view(
            len(rows), len(entries)
        )

    def _scores(
        self,
        states: Float[Tensor, "R W"],
        batch: ControlBatch,
        found: Retrieved,
        strengths: Float[Tensor, "R L"],
    ) -> tuple[Float[Tensor, "R L"], Float[Tensor, "R"]]:
        """What every candidate scores, and what it has to beat."""
        config = self.config
        if isinstance(config, JudgedSteering):
            return self._value_scores(config, states, batch, found, strengths)
        assert isinstance(config, AffinitySteering)
        weight = config.similarity_weight
        null = (weight * found.null_affinity).clamp_min(config.min_score)
        return weight * found.affinity, null

    def _value_scores(
        self,
        config: JudgedSteering,
        states: Float[Tensor, "R W"],
        batch: ControlBatch,
        found: Retrieved,
        strengths: Float[Tensor, "R L"],
    ) -> tuple[Float[Tensor, "R L"], Float[Tensor, "R"]]:
        """Predicted gain of every candidate: the members' mean less their spread, in one call."""
        assert self._head is not None
        deltas = self._basis.directions[found.entries] * strengths[..., None]
        gain = self._head.gain_bound(
            states,
            deltas,
            batch.points,
            token_price=self._utility.token_price,
            doubt=config.doubt,
        )
        gain = torch.where(found.valid, gain, -torch.inf)
        null = gain.new_full((len(gain),), config.margin)
        if config.only_familiar:
            familiar = self._head.is_familiar(states)
            gain = torch.where(familiar[:, None], gain, -torch.inf)
        if config.gate < 1:
            sure = self._head.p_correct(states, batch.points)[0] >= config.gate
            gain = torch.where(sure[:, None], -torch.inf, gain)
        return gain, null

    def _choose(
        self,
        states: Float[Tensor, "R D"],
        batch: ControlBatch,
        found: Retrieved,
        strengths: Float[Tensor, "R L"],
        scores: Float[Tensor, "R L"],
        null: Float[Tensor, "R"],
    ) -> ImpulseBatch:
        """Take the best-scored candidate where it is strictly above the null."""
        scores = torch.where(found.valid, scores, -torch.inf)
        best, column = scores.max(1)
        fires: Bool[Tensor, "R"] = best > null
        entry = found.entries.gather(1, column[:, None])[:, 0]
        strength = strengths.gather(1, column[:, None])[:, 0]
        fires = fires & (strength > 0)
        strength = torch.where(fires, strength, 0.0)
        chosen = torch.where(fires, self._rows[entry], -1)
        deltas = torch.zeros_like(states)
        if bool(fires.any()):
            deltas = self._basis.directions[entry] * strength[:, None]
        self._log(batch, found, scores, null, chosen, strength)
        return ImpulseBatch(fires=fires, deltas=deltas, entries=chosen, strengths=strength)

    def _log(
        self,
        batch: ControlBatch,
        found: Retrieved,
        scores: Tensor,
        null: Tensor,
        chosen: Tensor,
        strength: Tensor,
    ) -> None:
        rows = self._rows[found.entries].tolist()
        valid, score_lists = found.valid.tolist(), scores.tolist()
        nulls, picks, used = null.tolist(), chosen.tolist(), strength.tolist()
        points = batch.points.tolist()
        for i, prompt_id in enumerate(batch.prompt_ids):
            kept = [j for j, is_valid in enumerate(valid[i]) if is_valid]
            self.decisions.append(
                SteeringDecision(
                    prompt_id=prompt_id,
                    sample=batch.samples[i],
                    point=points[i],
                    token_index=batch.token_indices[i],
                    block=self.block,
                    candidates=tuple(rows[i][j] for j in kept),
                    scores=tuple(score_lists[i][j] for j in kept),
                    null_score=nulls[i],
                    chosen=picks[i],
                    strength=used[i],
                )
            )


def make_basis_controller(inputs: ControllerInputs) -> BasisController:
    """The controller of a mode that retrieves."""
    settings = inputs.settings
    assert isinstance(settings, RetrievingSteering)
    judged = isinstance(settings, JudgedSteering)
    return BasisController(
        inputs.basis,
        settings,
        block=inputs.block,
        head=inputs.head(inputs.block) if judged else None,
        device=inputs.device,
        utility=inputs.utility,
    )


def make_idle_controller(inputs: ControllerInputs) -> BasisController:
    """The controller that never acts: one over no entries."""
    basis = empty_basis(inputs.basis)
    return BasisController(basis, SimilaritySteering(), block=inputs.block, device=inputs.device)
