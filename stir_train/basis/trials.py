"""From a planned trial to what is generated, and from what was generated to what the trial says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from stir_train.basis.validate import Injection, mean_gain
from stir_train.generation.backend import GenerationRequest, PlannedImpulse
from stir_train.stores.interventions import InterventionData
from stir_train.types.reports import InjectionUplift
from stir_train.types.rollout import GradedRollout, Impulse, Prompt, RolloutOutcome
from stir_train.types.steering import ControlBasis, Intervention, PlannedTrial
from stir_train.types.utility import Utility

LONG = 1.25
"""A right rollout is long when it takes this many times the shortest right sample."""


def shortest_right(outcomes: Iterable[RolloutOutcome]) -> dict[str, int]:
    """Tokens of the shortest right sample of each problem that has one."""
    shortest: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.correct:
            length, name = outcome.num_tokens, outcome.prompt_id
            shortest[name] = min(length, shortest.get(name, length))
    return shortest


def trial_request(
    data: InterventionData,
    basis: ControlBasis,
    plan: PlannedTrial,
    prompts: Mapping[str, Prompt],
    *,
    sample: int,
) -> tuple[GenerationRequest, tuple[Impulse, ...]]:
    """What a trial generates: a trajectory of ``data`` up to a state, and on with an impulse.

    Args:
        data: Where the state is.
        basis: What is injected.
        plan: The trial.
        prompts: Problems by id.
        sample: Number that tells trials of one problem apart.

    Returns:
        The request, and all impulses of the trajectory, the new one last.
    """
    before = data.graded[int(data.labels.rollout[plan.state])].rollout
    token_index = int(data.labels.token_index[plan.state])
    made = (*before.impulses, Impulse(token_index, plan.block, plan.entry, plan.strength))
    request = GenerationRequest(
        prompts[before.prompt_id],
        sample,
        prefix_token_ids=before.token_ids[: token_index + 1],
        planned=tuple(
            PlannedImpulse(m.token_index, m.block, m.strength * basis.directions[m.entry])
            for m in made
        ),
    )
    return request, made


def intervention_of(
    data: InterventionData,
    plan: PlannedTrial,
    graded: GradedRollout,
    shortest: Mapping[str, int],
) -> Intervention:
    """What a trial came to, beside the trajectory that it left.

    Args:
        data: Where it started.
        plan: The trial.
        graded: What was generated.
        shortest: As `shortest_right` gives it, of sampled rollouts.
    """
    without = data.graded[int(data.labels.rollout[plan.state])].outcome
    is_long = without.num_tokens > LONG * shortest.get(without.prompt_id, without.num_tokens)
    return Intervention(
        prompt_id=without.prompt_id,
        state=plan.state,
        point=int(data.labels.point[plan.state]),
        token_index=int(data.labels.token_index[plan.state]),
        block=plan.block,
        entry=plan.entry,
        strength=plan.strength,
        propensity=plan.propensity,
        improvable=not without.correct or is_long,
        correct=graded.grade.correct,
        tokens=len(graded.rollout.token_ids),
        null_correct=without.correct,
        null_tokens=without.num_tokens,
    )


def better_blocks(
    answers: Mapping[Injection, Sequence[RolloutOutcome]],
    greedy: Sequence[RolloutOutcome],
    trials: Sequence[Intervention],
    utility: Utility,
) -> list[int]:
    """The better half of the blocks, best first: those whose controllers gain most so far.

    One trial says little of a block: in one a single impulse may do more, in another a trajectory of
    them. A block is as good as its best strength, and that as good as what it gains where it gains:
    harm is what more trials teach a head to avoid.

    Args:
        answers: How problems ended under the controller of each block and strength.
        greedy: How the same problems, and maybe more after them, ended without.
        trials: Those so far, which tell where early heads do not dare to steer at all.
        utility: What an answer is worth.
    """

    def worth(outcome: RolloutOutcome) -> float:
        return utility.of(float(outcome.correct), float(outcome.num_tokens))

    def score(injection: Injection) -> tuple[float, float]:
        # Where early heads do harm, later ones will know better; greedy returns have no noise.
        pairs = zip(answers[injection], greedy, strict=False)
        gained = sum(max(0.0, worth(steered) - worth(plain)) for steered, plain in pairs)
        alone = mean_gain(trials, injection, utility)
        return gained, alone

    best = {
        block: max(score(injection) for injection in answers if injection.block == block)
        for block in sorted({injection.block for injection in answers})
    }
    order = sorted(best, key=lambda block: best[block], reverse=True)
    return order[: (len(order) + 1) // 2]


def injection_uplifts(trials: Sequence[Intervention], utility: Utility) -> list[InjectionUplift]:
    """Uplift by block and strength, where there was something to gain and where there was not."""
    rows = []
    for block, strength in sorted({(t.block, t.strength) for t in trials}):
        for improvable in (True, False):
            values = [
                t.uplift(utility)
                for t in trials
                if (t.block, t.strength) == (block, strength) and t.improvable is improvable
            ]
            if values:
                rows.append(
                    InjectionUplift(
                        block=block,
                        strength=strength,
                        improvable=improvable,
                        count=len(values),
                        mean_uplift=sum(values) / len(values),
                        helped=sum(v > 0 for v in values) / len(values),
                        harmed=sum(v < 0 for v in values) / len(values),
                    )
                )
    return rows
