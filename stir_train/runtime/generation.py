"""Answer, grade and store problems chunk by chunk, whatever it is that answers them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from stir_train.answering.continued import ContinuedAnswerer
from stir_train.answering.interface import Answerer
from stir_train.answering.model import ModelAnswerer
from stir_train.artifacts.run_dir import StageDir
from stir_train.config.inputs import TaskConfig
from stir_train.data.grading import reward
from stir_train.distributed.leases import Note
from stir_train.errors import ArtifactError
from stir_train.generation.backend import Ability, SamplingParams, TokenListener, require_abilities
from stir_train.generation.open import abilities_of
from stir_train.monitoring.console import Meter
from stir_train.monitoring.metrics import Pace
from stir_train.runtime.chunk_scheduler import make_missing
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
    """Prompts in a full chunk: as many as make up the configured completions, at least one."""
    return max(1, context.config.generation.chunk_completions // job.num_samples)


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
    chunks = {
        f"{job.prefix}{chunk:05d}": (job, chunk)
        for job in jobs
        for chunk in range(num_chunks(context, job))
    }
    left, pace = len(chunks), Pace()
    num_finished: Counter[str] = Counter()

    def make(key: str) -> Note:
        job, chunk = chunks[key]
        return _generate_chunk(context, stage, job, chunk, advance)

    def on_finished(key: str, note: Note) -> None:
        nonlocal left
        left -= 1
        job, chunk = chunks[key]
        num_finished[job.prefix] += 1
        num_completions = len(prompts_of_chunk(context, job, chunk)) * job.num_samples
        if not note:
            advance(num_completions)
            return
        figures = {
            **note,
            "tokens_per_second": note["tokens"] / max(note["seconds"], 1e-6),
            "queue_depth": left,
            "eta_seconds": pace.eta_seconds(left),
        }
        # Counted, not numbered: other ranks finish theirs in between.
        context.metrics.log(stage.name, figures, step=num_finished[job.prefix], series=job.set_name)
        said = f"correct {note['correct_rate']:.0%}"
        if note["truncated_rate"]:
            said += f", cut off {note['truncated_rate']:.0%}"
        advance(num_completions, said, int(note["tokens"]))

    # A sharded model is loaded by all ranks at once, and only one is run at a time.
    for _, some in groupby(chunks.items(), key=lambda item: item[1][0].answerer.model):
        mine = dict(some)
        files = {key: rollouts_file(job.set_name, chunk) for key, (job, chunk) in mine.items()}
        (job, _), *_ = mine.values()
        together = job.answerer.open() if context.is_sharded else None
        make_missing(context, stage, files, make, on_finished, together=together)


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


def _generate_chunk(
    context: RunContext, stage: StageDir, job: GenerationJob, chunk: int, advance: Meter
) -> dict[str, float]:
    """Answer, grade and save one chunk; return its figures."""
    prompts = prompts_of_chunk(context, job, chunk)
    made = _answer(context, job, prompts, advance)
    name = f"{stage.name}/{job.prefix}{chunk:05d}"
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
