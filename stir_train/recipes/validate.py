"""Measure every entry's uplift by paired replay from greedy rollouts of the harvest split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from stir_train.artifacts.run_dir import StageDir
from stir_train.basis.trials import (
    better_blocks,
    injection_uplifts,
    intervention_of,
    shortest_right,
    trial_request,
)
from stir_train.basis.validate import (
    Guide,
    Injection,
    entry_uplifts,
    plan_trials,
    pool_of,
    still_promising,
    validated_basis,
)
from stir_train.config.steering import ValueSteering
from stir_train.distributed.leases import Note
from stir_train.generation.backend import ControlSpec
from stir_train.models.value_head import ValueHead
from stir_train.monitoring.console import Meter, caution
from stir_train.runtime.answerers import plain_answerer, utility_of
from stir_train.runtime.chunk_scheduler import make_missing
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.generation import (
    GenerationJob,
    generate_jobs,
    grade_rollouts,
    sampling_params,
    token_listener,
)
from stir_train.steering.controller import BasisController
from stir_train.stores.interventions import (
    GREEDY_SET,
    InterventionData,
    InterventionStore,
    plan_file,
    round_set,
    save_plan,
    save_trials,
    selection_set,
    trials_file,
)
from stir_train.stores.reports import save_report
from stir_train.stores.rollouts import RolloutStore, save_rollouts
from stir_train.stores.states import save_states
from stir_train.stores.steering import head_file, load_basis, load_head, save_basis, save_head
from stir_train.types.reports import EntryUplift, ValidationReport
from stir_train.types.steering import ControlBasis, Intervention, PlannedTrial
from stir_train.types.utility import Utility
from stir_train.value.examples import HeadData
from stir_train.value.provisional import fit_provisional, guide_of


@dataclass(frozen=True)
class _Validation:
    """A validation under way.

    Attributes:
        context: The run.
        stage: Takes the files.
        basis: What trials inject.
        shortest: Tokens of the shortest right sample of each problem that has one.
        head_data: What heads between rounds learn from; rank 0 alone fills it.
    """

    context: RunContext
    stage: StageDir
    basis: ControlBasis
    shortest: Mapping[str, int]
    head_data: HeadData

    @property
    def utility(self) -> Utility:
        """What an answer is worth."""
        return utility_of(self.context.config)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The captured blocks."""
        return self.context.resources.captured_blocks

    def uplifts(self, trials: Sequence[Intervention]) -> list[EntryUplift]:
        """What trials say of every entry."""
        return entry_uplifts(trials, len(self.basis), self.utility)


def run(context: RunContext, stage: StageDir) -> Finish:
    """Replay, summarise, and keep the entries that help."""
    basis, _ = load_basis(context.stage("basis"))
    trials: list[Intervention] = []
    if context.config.validation.enabled:
        rollouts = RolloutStore(context.stage("rollout")).require_complete()
        scratch, shortest = context.run_dir.scratch(stage.name), shortest_right(rollouts.outcomes())
        head_data = HeadData(rollouts, scratch, reads_below=context.config.value.reads_below)
        validation = _Validation(context, stage, basis, shortest, head_data)
        trials = _run_trials(validation)
    return lambda: _finish(context, stage, basis, trials)


def _finish(
    context: RunContext, stage: StageDir, basis: ControlBasis, trials: Sequence[Intervention]
) -> Outcome:
    config = context.config
    kept = _keep_helpful(context, stage, basis, trials)
    save_basis(stage, kept, context.resources.described.identity)
    num = int((~basis.is_anchor).sum())
    num_kept = int((~kept.is_anchor).sum())
    gain = [t.uplift(utility_of(config)) for t in trials]
    helped = sum(value > 0 for value in gain) / len(gain) if gain else 0.0
    return Outcome(
        {"num_trials": len(trials), "num_kept": num_kept, "helped_rate": helped},
        f"{len(trials)} trials by paired replay, {helped:.0%} helped; kept {num_kept} of {num} corrections"
        if config.validation.enabled
        else "off; every entry is kept",
    )


def _run_trials(validation: _Validation) -> list[Intervention]:
    context, config = validation.context, validation.context.config.validation
    greedy = GenerationJob(
        context.splits["harvest"],
        plain_answerer(context, capture_blocks=validation.blocks),
        sampling_params(context, greedy=True),
        prefix=f"{GREEDY_SET}/",
    )
    total = len(greedy.prompts) + config.num_completions(len(validation.blocks))
    injections = [
        Injection(block, strength) for block in validation.blocks for strength in config.strengths
    ]
    with context.progress("validate", total, "trials") as advance:
        generate_jobs(context, validation.stage, [greedy], advance)
        data = InterventionStore(validation.stage).read(0)
        for number in range(config.num_rounds):
            guide = None
            if number:
                heads = _provisional_heads(validation, data, injections, number)
                injections = _better_injections(
                    validation, data, (injections, heads), number, advance
                )
                guide = guide_of(
                    heads,
                    validation.blocks,
                    token_price=validation.utility.token_price,
                    doubt=ValueSteering.like(context.config.steering).doubt,
                )
            _plan_round(validation, data, injections, guide, number)
            _make_round(validation, data, number, advance)
            data = InterventionStore(validation.stage).read(number + 1)
    return data.trials


def _provisional_heads(
    validation: _Validation, data: InterventionData, injections: Sequence[Injection], number: int
) -> dict[int, ValueHead]:
    """Value heads of the trials before a round, trained once for all ranks and attempts."""
    context, stage = validation.context, validation.stage
    config = context.config
    files = {
        block: f"{round_set(number)}/{head_file(block)}"
        for block in sorted({injection.block for injection in injections})
    }

    def make() -> None:
        for block, name in files.items():
            if not stage.has(name):
                head = fit_provisional(
                    validation.head_data,
                    data,
                    validation.basis,
                    config.value,
                    block=block,
                    max_points=config.control_points.max_points,
                    max_new_tokens=validation.utility.max_new_tokens,
                    seed=config.seed,
                )
                save_head(stage, name, head, context.resources.described.identity)

    context.world.on_main(f"heads before round {number}", make)
    return {block: load_head(stage.verified(name))[0] for block, name in files.items()}


def _better_injections(
    validation: _Validation,
    data: InterventionData,
    controllers: tuple[Sequence[Injection], Mapping[int, ValueHead]],
    number: int,
    advance: Meter,
) -> list[Injection]:
    """Let every injection's controller answer harvest problems; keep those of the better half of blocks.

    All strengths stay, since the heads learn across them.

    Args:
        validation: Takes the answers.
        data: The greedy rollouts and trials so far.
        controllers: The injections, and the value head of each one's block.
        number: The round that the better half goes on to.
        advance: Called with the number of problems answered since the last call.
    """
    context, (injections, heads) = validation.context, controllers
    if len(heads) == 1:
        return list(injections)
    kept = validated_basis(validation.basis, validation.uplifts(data.trials))
    sets = {i: selection_set(number, i.block, i.strength) for i in injections}
    jobs = [
        GenerationJob(
            context.splits["harvest"][: context.config.validation.selection_problems],
            dataclasses.replace(
                plain_answerer(context),
                make_controller=partial(
                    _controller, context, kept, injection, heads[injection.block]
                ),
            ),
            sampling_params(context, greedy=True),
            prefix=f"{name}/",
        )
        for injection, name in sets.items()
    ]
    generate_jobs(context, validation.stage, jobs, advance)

    def rank() -> list[int]:
        store = RolloutStore(validation.stage)
        return better_blocks(
            {injection: store.outcomes(name) for injection, name in sets.items()},
            data.outcomes,
            data.trials,
            validation.utility,
        )

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


def _plan_round(
    validation: _Validation,
    data: InterventionData,
    injections: Sequence[Injection],
    guide: Guide | None,
    number: int,
) -> None:
    """Write down what a round tries, once for all ranks and attempts."""
    context = validation.context

    def write() -> None:
        if validation.stage.has(plan_file(number)):
            return
        plans = plan_trials(
            pool_of(data),
            validation.basis,
            still_promising(validation.uplifts(data.trials)),
            injections,
            context.config.validation.trials_per_round,
            torch.Generator().manual_seed(context.config.seed + number),
            guide=guide,
        )
        save_plan(validation.stage, number, plans)

    context.world.on_main(f"plan of round {number}", write)


def _make_round(
    validation: _Validation, data: InterventionData, number: int, advance: Meter
) -> None:
    """Generate the trials of a round chunk by chunk, together with the other ranks."""
    context, plans = validation.context, InterventionStore(validation.stage).plan(number)
    size = context.config.generation.prompts_per_chunk(len(plans))
    chunks = {f"{chunk:05d}": chunk for chunk in range(-(-len(plans) // size))}
    files = {key: (trials_file(number, chunk),) for key, chunk in chunks.items()}
    utility = validation.utility

    def part(key: str) -> list[PlannedTrial]:
        return plans[chunks[key] * size : (chunks[key] + 1) * size]

    def make(key: str) -> dict[str, float]:
        # Trials of one problem differ by their sample, which greedy decoding does not read.
        first = 1 + len(data.trials) + chunks[key] * size
        made = _make_trials(validation, data, part(key), (number, chunks[key]), first, advance)
        if not made:
            return {}
        return {
            "mean_uplift": sum(t.uplift(utility) for t in made) / len(made),
            "tokens": sum(t.tokens for t in made),
        }

    def on_finished(key: str, note: Note) -> None:
        if note:
            context.metrics.log("validate", note, step=int(key), series=f"round-{number}")
        advance(len(part(key)), f"round {number + 1}", int(note.get("tokens", 0)))

    together = context.resources.engine if context.is_sharded else None
    make_missing(context, validation.stage, files, make, on_finished, together=together)


def _make_trials(
    validation: _Validation,
    data: InterventionData,
    plans: Sequence[PlannedTrial],
    place: tuple[int, int],
    first_sample: int,
    advance: Meter,
) -> list[Intervention]:
    """Replay, judge and save a chunk of trials; nothing on a rank that only decodes along.

    Args:
        validation: What it belongs to.
        data: What trials start from.
        plans: The chunk's.
        place: The round and the chunk.
        first_sample: The number of the first one's completion.
        advance: Hears of tokens as they are sampled.
    """
    context, stage, (number, chunk) = validation.context, validation.stage, place
    prompts = {prompt.prompt_id: prompt for prompt in context.splits["harvest"]}
    planned = [
        trial_request(data, validation.basis, plan, prompts, sample=first_sample + i)
        for i, plan in enumerate(plans)
    ]
    control = ControlSpec(
        context.resources.automaton,
        context.config.control_points.max_points,
        validation.blocks,
    )
    result = context.resources.engine.generate(
        [request for request, _ in planned],
        sampling_params(context, greedy=True),
        seed=context.config.seed,
        control=control,
        listener=token_listener(context, advance),
    )
    name = f"{stage.name}/{trials_file(number, chunk)}"
    if not context.is_mine_to_write(name, [r.token_ids for r in result.rollouts]):
        return []
    rollouts = [
        dataclasses.replace(rollout, impulses=made)
        for rollout, (_, made) in zip(result.rollouts, planned, strict=True)
    ]
    graded = grade_rollouts(context, rollouts, [request.prompt for request, _ in planned])
    assert result.states is not None, "blocks were named to be captured"
    convention = context.resources.described.identity.block_convention
    here = round_set(number), chunk
    save_states(stage, here, rollouts, result.states, block_convention=convention)
    save_rollouts(stage, *here, graded)
    trials = [
        intervention_of(data, plan, outcome, validation.shortest)
        for plan, outcome in zip(plans, graded, strict=True)
    ]
    save_trials(stage, number, chunk, trials)
    return trials


def _keep_helpful(
    context: RunContext, stage: StageDir, basis: ControlBasis, trials: Sequence[Intervention]
) -> ControlBasis:
    if not trials:
        save_report(stage, ValidationReport())
        return basis
    utility = utility_of(context.config)
    uplifts = entry_uplifts(trials, len(basis), utility)
    tried = tuple(uplift for uplift in uplifts if uplift.count)
    save_report(stage, ValidationReport(tried, tuple(injection_uplifts(trials, utility))))
    kept = validated_basis(basis, uplifts)
    if not len(kept):
        context.console.print(
            caution("validate: no entry helps by paired replay; steering will be `none`")
        )
    return kept
