"""Which blocks validation goes on with: those whose controllers gain most so far.

One trial says little of a block: in one a single impulse may do more, in another a trajectory of
them. So before every round but the first, the value heads of the trials so far steer some harvest
problems, a block and a strength at a time, as they would be deployed; the better half of the blocks stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tensors import save_tensors
from stir_train.basis.validate import Injection, entry_uplifts, mean_gain, validated_basis
from stir_train.config.steering import ValueSteering
from stir_train.models.value_head import ValueHead
from stir_train.monitoring.console import Advance
from stir_train.recipes.harvest import model_metadata
from stir_train.recipes.intervention_data import (
    InterventionData,
    read_blocks,
    round_prefix,
    value_examples,
)
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import (
    GenerationJob,
    generate_jobs,
    load_answers,
    sampling_params,
)
from stir_train.steering.artifacts import head_file, load_head
from stir_train.steering.controller import BasisController
from stir_train.types.rollout import GradedRollout
from stir_train.types.steering import ControlBasis
from stir_train.value.fit import fit_value_head
from stir_train.value.targets import ValueExamples

PROVISIONAL_STEPS = 3
"""Heads between rounds are trained for one step in so many of the final head's."""

Heads = Mapping[int, ValueHead]
"""A value head by block."""


def provisional_heads(
    context: RunContext,
    stage: StageDir,
    replays: InterventionData,
    injections: Sequence[Injection],
    number: int,
) -> Heads:
    """Value heads of the trials before a round, trained once for all ranks and attempts."""
    files = {
        block: f"{round_prefix(number)}{head_file(block)}"
        for block in sorted({injection.block for injection in injections})
    }

    def make() -> None:
        for block, name in files.items():
            if not stage.has(name):
                head = _fit(context, replays, block)
                save_tensors(stage, name, head.state_dict(), model_metadata(context))

    context.world.on_main(f"heads before round {number}", make)
    return {block: load_head(stage.path / name)[0] for block, name in files.items()}


def better_blocks(
    context: RunContext,
    stage: StageDir,
    source: tuple[InterventionData, ControlBasis],
    controllers: tuple[Sequence[Injection], Heads],
    number: int,
    advance: Advance,
) -> list[Injection]:
    """Let every injection's controller answer harvest problems; keep the injections of the better half of blocks.

    A block is as good as its best strength, and that as good as what it gains where it gains: harm is what
    more trials teach a head to avoid. All strengths stay, since the heads learn across them.

    Args:
        context: The run.
        stage: Takes the answers.
        source: The greedy rollouts and trials so far, and what they injected.
        controllers: The injections, and the value head of each one's block.
        number: The round that the better half goes on to.
        advance: Hears of problems answered.
    """
    replays, basis = source
    injections, heads = controllers
    blocks = sorted(heads)
    if len(blocks) == 1:
        return list(injections)
    price, budget = context.config.utility.token_price, context.config.generation.max_new_tokens
    kept = validated_basis(
        basis,
        entry_uplifts(replays.trials, len(basis), token_price=price, max_new_tokens=budget),
    )
    jobs = {
        injection: GenerationJob(
            prompts=context.splits["harvest"][: context.config.validation.selection_problems],
            num_samples=1,
            sampling=sampling_params(context, greedy=True),
            make_controller=partial(_controller, context, kept, injection, heads[injection.block]),
            prefix=f"{round_prefix(number)}block-{injection.block}-strength-{injection.strength:g}/",
        )
        for injection in injections
    }
    generate_jobs(context, stage, list(jobs.values()), advance)

    def utility(item: GradedRollout) -> float:
        return item.grade.correct - price * len(item.rollout.token_ids) / budget

    def score(injection: Injection) -> tuple[float, float]:
        # Where early heads do harm, later ones will know better; greedy returns have no noise.
        pairs = zip(load_answers(context, stage, jobs[injection]), replays.graded, strict=False)
        gained = sum(max(0.0, utility(steered) - utility(plain)) for steered, plain in pairs)
        # Early heads may not dare to steer at all; then single trials tell.
        alone = mean_gain(replays.trials, injection, token_price=price, max_new_tokens=budget)
        return gained, alone

    def rank() -> list[int]:
        best = {
            block: max(score(injection) for injection in injections if injection.block == block)
            for block in blocks
        }
        order = sorted(blocks, key=lambda block: best[block], reverse=True)
        return order[: (len(order) + 1) // 2]

    better = context.world.on_main(f"blocks of round {number}", rank)
    return [injection for injection in injections if injection.block in better]


def _controller(
    context: RunContext, basis: ControlBasis, injection: Injection, head: ValueHead
) -> BasisController:
    settings = ValueSteering.like(context.config.steering, {"strength": injection.strength})
    return BasisController(
        basis,
        settings,
        block=injection.block,
        head=head,
        device=context.resources.loaded.device,
        utility=context.config.utility,
    )


def _fit(context: RunContext, replays: InterventionData, block: int) -> ValueHead:
    config = context.config
    parts = [part for part in value_examples(context, replays, block) if part is not None]
    train, validation = ValueExamples.concatenate(parts).split_by_prompt(
        config.value.validation_fraction, torch.Generator().manual_seed(config.seed)
    )
    briefly = {"num_steps": -(-config.value.num_steps // PROVISIONAL_STEPS)}
    head, _ = fit_value_head(
        train,
        validation,
        config.value.model_copy(update=briefly),
        reads=read_blocks(context, block),
        max_points=config.control_points.max_points,
        max_new_tokens=config.generation.max_new_tokens,
        seed=config.seed,
    )
    return head
