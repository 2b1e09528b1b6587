"""Answer, grade and store problems chunk by chunk, whatever it is that answers them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from stir_train.answering.continued import ContinuedAnswerer, waits_for_greedy
from stir_train.answering.interface import Answerer
from stir_train.answering.model import ModelAnswerer
from stir_train.answering.side_by_side import answer_side_by_side, fixed_from_the_prompt_on
from stir_train.artifacts.run_dir import StageDir
from stir_train.config.inputs import TaskConfig
from stir_train.data.grading import reward
from stir_train.distributed.leases import Note
from stir_train.errors import ArtifactError
from stir_train.generation.backend import Ability, SamplingParams, TokenListener, require_abilities
from stir_train.generation.open import abilities_of
from stir_train.monitoring.console import Meter
from stir_train.monitoring.metrics import Pace
from stir_train.runtime.chunk_scheduler import make_missing, missing_keys
from stir_train.runtime.context import RunContext
from stir_train.stores.rollouts import (
    Reused,
    RolloutStore,
    rollouts_file,
    save_decisions,
    save_reused,
    save_rollouts,
)
from stir_train.stores.states import save_states
from stir_train.types.answers import Answers
from stir_train.types.rollout import GradedRollout, Prompt, Rollout
from stir_train.types.steering import SteeringDecision


@dataclass(frozen=True)
class GenerationJob:
    """Problems to answer.

    Attributes:
        prompts: In order; chunks are consecutive runs of them.
        answerer: What answers them.
        sampling: Greedy or sampled.
        num_samples: Answers per prompt.
        prefix: Directory inside the stage, for stages that hold several sets.
        task: Judges the answers, where it is not the run's own.
    """

    prompts: Sequence[Prompt]
    answerer: Answerer
    sampling: SamplingParams
    num_samples: int = 1
    prefix: str = ""
    task: TaskConfig | None = None

    @property
    def set_name(self) -> str:
        """The set of rollouts that it makes."""
        return self.prefix.rstrip("/")


def sampling_params(context: RunContext, *, greedy: bool) -> SamplingParams:
    """The run's sampling settings, or greedy decoding under the same budget."""
    config = context.config
    budget, stop = config.generation.max_new_tokens, context.resources.described.stop_token_ids
    if greedy:
        return SamplingParams(budget, stop)
    rollout = config.rollout
    return SamplingParams(
        budget, stop, temperature=rollout.temperature, top_p=rollout.top_p, top_k=rollout.top_k
    )


def num_chunks(context: RunContext, job: GenerationJob) -> int:
    """How many chunks a job has."""
    return -(-len(job.prompts) // prompts_per_chunk(context, job))


def prompts_per_chunk(context: RunContext, job: GenerationJob) -> int:
    """Prompts in a full chunk of a job."""
    return context.config.generation.prompts_per_chunk(len(job.prompts), job.num_samples)


def generate_jobs(
    context: RunContext, stage: StageDir, jobs: Sequence[GenerationJob], advance: Meter
) -> None:
    """Make every chunk of the jobs that is not there yet, together with the other ranks.

    Raises:
        StageError: If one needs what the run's backend lacks; then nothing is made.
    """
    backend = context.config.generation.backend
    for job in jobs:
        method = job.set_name or stage.name
        require_abilities(backend, abilities_of(backend), job.answerer.needs, method)
    units = {unit[0].key: unit for unit in _units(context, jobs)}
    left, pace = sum(map(len, units.values())), Pace()
    num_finished: Counter[str] = Counter()

    def make(key: str) -> Note:
        figures = _generate_unit(context, stage, units[key], advance)
        if not figures:
            return {}
        return {"tokens": sum(of["tokens"] for of in figures.values()), "chunks": figures}

    def on_finished(key: str, note: Note) -> None:
        nonlocal left
        for chunk in units[key]:
            left -= 1
            num_finished[chunk.job.prefix] += 1
            num_completions = len(prompts_of_chunk(context, chunk.job, chunk.number))
            num_completions *= chunk.job.num_samples
            found = note["chunks"].get(chunk.key) if note else None
            if not found:
                advance(num_completions)
                continue
            figures = {
                **found,
                "rank": note["rank"],
                "seconds": note["seconds"],
                "tokens_per_second": note["tokens"] / max(note["seconds"], 1e-6),
                "queue_depth": left,
                "eta_seconds": pace.eta_seconds(left),
            }
            # Counted, not numbered: other ranks finish theirs in between.
            step, series = num_finished[chunk.job.prefix], chunk.job.set_name
            context.metrics.log(stage.name, figures, step=step, series=series)
            said = f"correct {found['correct_rate']:.0%}"
            if found["truncated_rate"]:
                said += f", cut off {found['truncated_rate']:.0%}"
            advance(num_completions, said, int(found["tokens"]))

    # A sharded model is loaded by all ranks at once, and only one is run at a time.
    models = groupby(units.items(), key=lambda item: item[1][0].job.answerer.model)
    for _, some in models:
        mine = dict(some)
        files = {key: [chunk.file for chunk in unit] for key, unit in mine.items()}
        (first, *_), *_ = mine.values()
        together = first.job.answerer.open() if context.is_sharded else None
        make_missing(context, stage, files, make, on_finished, together=together)


def generate_after(
    context: RunContext,
    stage: StageDir,
    greedy: Sequence[GenerationJob],
    jobs: Sequence[GenerationJob],
    advance: Meter,
) -> None:
    """Make greedy answers, then those of jobs that may go on from them. Collective.

    Where none does and all of them are fixed, all are made at once, and no states of greedy ones are kept. A controller
    that decides has batches of its own, and so have greedy answers then: without vectors it answers the same, to the
    token.

    Raises:
        StageError: If one needs what the run's backend lacks.
    """
    if any(waits_for_greedy(job.answerer) for job in jobs):
        generate_jobs(context, stage, greedy, advance)
        generate_jobs(context, stage, jobs, advance)
        return
    if not any(_decides(job.answerer) for job in jobs):
        greedy = [_without_states(job) for job in greedy]
    generate_jobs(context, stage, [*greedy, *jobs], advance)


def _decides(answerer: Answerer) -> bool:
    """Whether a controller acts that is more than fixed vectors from the prompt on."""
    if not isinstance(answerer, ModelAnswerer) or answerer.make_controller is None:
        return False
    return not answerer.is_fixed_from_the_prompt_on


def _without_states(job: GenerationJob) -> GenerationJob:
    if not isinstance(job.answerer, ModelAnswerer):
        return job
    return dataclasses.replace(job, answerer=job.answerer.without_states())


@dataclass(frozen=True)
class _Chunk:
    """A chunk of a job."""

    job: GenerationJob
    number: int

    @property
    def key(self) -> str:
        """Its name in the stage."""
        return f"{self.job.prefix}{self.number:05d}"

    @property
    def file(self) -> str:
        """The file that is there when it is made."""
        return rollouts_file(self.job.set_name, self.number)


def _units(context: RunContext, jobs: Sequence[GenerationJob]) -> Iterator[Sequence[_Chunk]]:
    """Chunks that are made in one go: mostly one, but small ones under fixed vectors side by side.

    The jobs alone decide, not what is missing, so that every process and every attempt makes the same batches.
    """
    alike = list[GenerationJob]()
    for job in jobs:
        if alike and not _share_batches(context, alike[0], job):
            yield from _units_of_alike(context, alike)
            alike.clear()
        alike.append(job)
    yield from _units_of_alike(context, alike)


def _units_of_alike(
    context: RunContext, jobs: Sequence[GenerationJob]
) -> Iterator[Sequence[_Chunk]]:
    """Chunks of jobs that can share batches, in order: as many to a unit as make an even share of them all."""
    limits = context.config.generation
    share = limits.prompts_per_chunk(sum(len(job.prompts) for job in jobs))
    waiting, num_waiting = list[_Chunk](), 0
    for job in jobs:
        for number in range(num_chunks(context, job)):
            size = len(prompts_of_chunk(context, job, number))
            is_full = num_waiting >= share or num_waiting + size > limits.chunk_completions
            if waiting and (is_full or not _share_batches(context, waiting[0].job, job)):
                yield tuple(waiting)
                waiting, num_waiting = [], 0
            waiting.append(_Chunk(job, number))
            num_waiting += size
    if waiting:
        yield tuple(waiting)


def _share_batches(context: RunContext, one: GenerationJob, other: GenerationJob) -> bool:
    """Whether both answer greedily with one model under fixed vectors, which the backend can plan by request."""
    return (
        one.sampling == other.sampling
        and one.sampling.temperature == 0
        and one.num_samples == other.num_samples == 1
        and one.answerer.model == other.answerer.model
        and fixed_from_the_prompt_on(one.answerer) is not None
        and fixed_from_the_prompt_on(other.answerer) is not None
        and Ability.REPLAY_IMPULSES in abilities_of(context.config.generation.backend)
    )


def prompts_of_chunk(context: RunContext, job: GenerationJob, chunk: int) -> Sequence[Prompt]:
    """The prompts that one chunk answers."""
    size = prompts_per_chunk(context, job)
    return job.prompts[chunk * size : (chunk + 1) * size]


def load_answers(context: RunContext, stage: StageDir, job: GenerationJob) -> list[GradedRollout]:
    """Everything that a job made, in order.

    Raises:
        ArtifactError: If there is less, or more.
    """
    store, expected = RolloutStore(stage), num_chunks(context, job)
    if store.num_chunks(job.set_name) != expected:
        raise ArtifactError(
            f"{stage.path}: {store.num_chunks(job.set_name)} chunks in set {job.set_name!r}, the "
            f"settings ask for {expected}; run the {stage.name} stage again"
        )
    return store.read(job.set_name)


def _generate_unit(
    context: RunContext, stage: StageDir, unit: Sequence[_Chunk], advance: Meter
) -> dict[str, dict[str, float]]:
    """Answer, grade and save the chunks of a unit that are missing; return their figures."""
    # Before anything is answered: ranks that decode together must agree about it.
    missing = missing_keys(stage, {chunk.key: [chunk.file] for chunk in unit})
    if len(unit) == 1:
        (chunk,) = unit
        prompts = prompts_of_chunk(context, chunk.job, chunk.number)
        answered = [_answer(context, chunk.job, prompts, advance)]
    else:
        asked = [
            (answerer, prompts_of_chunk(context, chunk.job, chunk.number))
            for chunk in unit
            if (answerer := fixed_from_the_prompt_on(chunk.job.answerer)) is not None
        ]
        listener = token_listener(context, advance)
        answered = answer_side_by_side(asked, unit[0].job.sampling, listener)
    pairs = zip(unit, answered, strict=True)
    found = {
        chunk.key: _save_chunk(context, stage, chunk, made)
        for chunk, made in pairs
        if chunk.key in missing
    }
    return {key: figures for key, figures in found.items() if figures}


def _save_chunk(
    context: RunContext, stage: StageDir, of: _Chunk, made: Answers
) -> dict[str, float]:
    """Grade and save the answers of one chunk; return its figures, none where another rank writes."""
    job, chunk = of.job, of.number
    prompts = prompts_of_chunk(context, job, chunk)
    name = f"{stage.name}/{of.key}"
    if not context.is_mine_to_write(name, [r.token_ids for r in made.rollouts]):
        return {}
    asked = [prompt for prompt in prompts for _ in range(job.num_samples)]
    graded = grade_rollouts(context, made.rollouts, asked, job.task)
    if made.states is not None:
        save_states(
            stage,
            (job.set_name, chunk),
            made.rollouts,
            made.states,
            block_convention=context.resources.described.identity.block_convention,
        )
    if made.decisions is not None:
        save_decisions(stage, job.set_name, chunk, made.decisions)
    if made.num_reused is not None:
        pairs = zip(made.rollouts, made.num_reused, strict=True)
        save_reused(stage, job.set_name, chunk, [Reused(r.prompt_id, n) for r, n in pairs])
    # The rollout table comes last: a chunk counts as made when it is there.
    save_rollouts(stage, job.set_name, chunk, graded)
    figures = {
        "correct_rate": sum(g.grade.correct for g in graded) / len(graded),
        "tokens": sum(g.rollout.total_tokens for g in graded) - sum(made.num_reused or ()),
        "truncated_rate": sum(g.rollout.truncated for g in graded) / len(graded),
        "forward_passes": made.forward_passes,
    }
    if made.states is not None and len(made.states.labels):
        figures["state_norm"] = float(made.states.states.norm(dim=-1).mean())
    if made.num_reused is not None:
        figures["reused_tokens"] = sum(made.num_reused)
    if made.decisions:
        figures |= decision_figures(made.decisions)
    return figures


def _answer(
    context: RunContext, job: GenerationJob, prompts: Sequence[Prompt], advance: Meter
) -> Answers:
    """Answer, counting tokens as they are sampled where backend and answerer let them be heard."""
    answerer, sampling = job.answerer, job.sampling
    if not isinstance(answerer, ModelAnswerer | ContinuedAnswerer):
        return answerer.answer(prompts, num_samples=job.num_samples, sampling=sampling)
    return answerer.answer(
        prompts,
        num_samples=job.num_samples,
        sampling=sampling,
        listener=token_listener(context, advance),
    )


def token_listener(context: RunContext, advance: Meter) -> TokenListener | None:
    """What counts tokens as they are sampled; None where the backend does not let them be heard."""
    if Ability.STREAM not in abilities_of(context.config.generation.backend):
        return None
    return lambda _request, _token: advance.sampled()


def decision_figures(decisions: Sequence[SteeringDecision]) -> dict[str, float]:
    """How often, how strongly and on what grounds a controller intervened."""
    fired = [d for d in decisions if d.chosen >= 0]
    figures = {"intervention_rate": len(fired) / len(decisions)}
    if fired:
        figures["strength"] = sum(d.strength for d in fired) / len(fired)
        # In the mode's own units: of a preview's confidence, or of the value head's estimate.
        figures["gain_over_null"] = sum(
            d.scores[d.candidates.index(d.chosen)] - d.null_score for d in fired
        ) / len(fired)
    return figures


def grade_rollouts(
    context: RunContext,
    rollouts: Sequence[Rollout],
    prompts: Sequence[Prompt],
    task: TaskConfig | None = None,
) -> list[GradedRollout]:
    """Decode, grade and reward completions, of the run's task or another."""
    config = context.config
    grader = context.resources.grader if task is None else context.resources.grader_of(task)
    texts = [context.resources.described.decode(r.token_ids) for r in rollouts]
    grades = grader.grade(texts, [p.gold for p in prompts], [r.truncated for r in rollouts])
    budget = config.generation.max_new_tokens
    return [
        GradedRollout(r, text, grade, reward(grade, r, config.rollout, max_new_tokens=budget))
        for r, text, grade in zip(rollouts, texts, grades, strict=True)
    ]
