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
)
from stir_train.errors import ArtifactError, StageError
from stir_train.generation.controller import ControlBatch, Decision, Proposal
from stir_train.generation.noise import row_keys, uniforms
from stir_train.generation.uncertainty import last_stands_out
from stir_train.models.value_head import ValueHead
from stir_train.steering.interface import ControllerInputs
from stir_train.steering.scoring import Retrieved, Retriever
from stir_train.types.places import Place
from stir_train.types.steering import ControlBasis

DEFAULT_UTILITY = UtilityConfig()


class BasisController:
    """A `Controller` over one block of a control basis."""

    place: Place = "control_point"

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
        device = device or torch.device("cpu")
        self._rows = (basis.blocks == block).nonzero()[:, 0]
        self._acts = len(self._rows) > 0
        previews = config.preview_tokens if isinstance(config, PreviewingSteering) else 0
        self.preview_tokens = previews if self._acts else 0
        self.reads_uncertainty = config.momentum_gate is not None
        kept = basis.select(self._rows)
        self._rows = self._rows.to(device)
        self._basis = ControlBasis(**{k: v.to(device) for k, v in vars(kept).items()})
        self._head = None if head is None else head.to(device)
        self._retriever = Retriever(
            self._basis, center_keys=config.center_keys, num_nearest=config.num_nearest
        )

    def decide(self, states: Float[Tensor, "R W"], batch: ControlBatch) -> Decision | None:
        """Choose from the states alone (``similarity`` and ``value``); None without entries."""
        if not self._acts:
            return None
        considered = self.propose(states, batch)
        return _best(considered, considered.scores)

    def propose(self, states: Float[Tensor, "R W"], batch: ControlBatch) -> Proposal:
        """Retrieve and score what could be added, and say what to preview of it."""
        found, strengths = self._retrieve(self._own(states), batch)
        directions = self._basis.directions[found.entries]
        deltas = directions * strengths[..., None]
        scores, null_scores = self._scores(states, batch, found, deltas)
        config = self.config
        shown = config.preview_strength if isinstance(config, PreviewingSteering) else None
        return Proposal(
            previews=deltas if shown is None else directions * shown,
            deltas=deltas,
            candidates=self._rows[found.entries],
            strengths=strengths,
            scores=torch.where(found.valid, scores, -torch.inf),
            valid=found.valid,
            null_scores=null_scores,
        )

    def commit(self, proposal: Proposal, gains: Float[Tensor, "R L"]) -> Decision:
        """Decide, given the previews' gains."""
        assert isinstance(self.config, PreviewingSteering)
        return _best(proposal, proposal.scores + self.config.preview_weight * gains)

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
            found = found.where(batch.points == 1)
        if config.momentum_gate is not None:
            found = found.where(_standing_out(batch, config.momentum_gate))
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
        deltas: Float[Tensor, "R L D"],
    ) -> tuple[Float[Tensor, "R L"], Float[Tensor, "R"]]:
        """What every candidate scores, and what it has to beat."""
        config = self.config
        if isinstance(config, JudgedSteering):
            return self._value_scores(config, states, batch, found, deltas)
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
        deltas: Float[Tensor, "R L D"],
    ) -> tuple[Float[Tensor, "R L"], Float[Tensor, "R"]]:
        """Predicted gain of every candidate: the members' mean less their spread, in one call."""
        assert self._head is not None
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


def _standing_out(batch: ControlBatch, gamma: float) -> Bool[Tensor, "R"]:
    """Where MUR's gate is open.

    Raises:
        StageError: If whoever asks does not know how uncertain the steps were.
    """
    if batch.uncertainties is None:
        raise StageError(
            "steering.momentum_gate needs the log-probabilities of the steps behind a control point, which are "
            "known in decoding by generation.backend=transformers alone, not in replays, in attached models or "
            "in servers"
        )
    found = [last_stands_out(steps, gamma) for steps in batch.uncertainties]
    return torch.tensor(found, dtype=torch.bool, device=batch.points.device)


def _best(considered: Proposal, scores: Float[Tensor, "R L"]) -> Decision:
    """Take the best-scored candidate where it is strictly above the null."""
    scores = torch.where(considered.valid, scores, -torch.inf)
    best, column = scores.max(1)
    rows = torch.arange(len(column), device=column.device)
    strengths = considered.strengths[rows, column]
    fires = (best > considered.null_scores) & (strengths > 0)
    return Decision(
        fires=fires,
        deltas=torch.where(fires[:, None], considered.deltas[rows, column], 0.0),
        chosen=torch.where(fires, considered.candidates[rows, column], -1),
        strengths=torch.where(fires, strengths, 0.0),
        candidates=considered.candidates,
        scores=scores,
        valid=considered.valid,
        null_scores=considered.null_scores,
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


class IdleController:
    """The controller of mode ``none``: adds nothing and records nothing, so answers are plain greedy ones."""

    place: Place = "control_point"

    def __init__(self, block: int) -> None:
        self.block = block
        self.reads: tuple[int, ...] = (block,)

    def decide(
        self,
        states: Float[Tensor, "R D"],  # noqa: ARG002 - the protocol's
        batch: ControlBatch,  # noqa: ARG002 - the protocol's
    ) -> None:
        """None, whatever the states: nothing is added and no decision recorded."""
        return None


def make_idle_controller(inputs: ControllerInputs) -> IdleController:
    """The controller of mode ``none``, which needs nothing of a run."""
    return IdleController(inputs.block)
