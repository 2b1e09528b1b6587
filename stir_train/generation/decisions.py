"""From the tensors of a decision to the records that are stored."""

from __future__ import annotations

from stir_train.generation.control_hook import Ask
from stir_train.generation.controller import Decision
from stir_train.types.rollout import Impulse
from stir_train.types.steering import SteeringDecision


def records_of(ask: Ask, decision: Decision) -> list[tuple[SteeringDecision, Impulse | None]]:
    """For each row that was asked about, the decision and what it added, if anything.

    A vector that is held is recorded once, where it was decided; its place says how long it lasts.
    """
    batch, controller = ask.sites.batch, ask.controller
    points, fires = batch.points.tolist(), decision.fires.tolist()
    chosen, strengths = decision.chosen.tolist(), decision.strengths.tolist()
    candidates, scores = decision.candidates.tolist(), decision.scores.tolist()
    valid, null_scores = decision.valid.tolist(), decision.null_scores.tolist()
    records: list[tuple[SteeringDecision, Impulse | None]] = []
    for i, prompt_id in enumerate(batch.prompt_ids):
        kept = [j for j, is_valid in enumerate(valid[i]) if is_valid]
        made = SteeringDecision(
            prompt_id=prompt_id,
            sample=batch.samples[i],
            point=points[i],
            token_index=batch.token_indices[i],
            block=controller.block,
            candidates=tuple(candidates[i][j] for j in kept),
            scores=tuple(scores[i][j] for j in kept),
            null_score=null_scores[i],
            chosen=chosen[i],
            strength=strengths[i],
            place=controller.place,
        )
        impulse = Impulse(
            made.token_index, made.block, made.chosen, made.strength, controller.place
        )
        records.append((made, impulse if fires[i] else None))
    return records
