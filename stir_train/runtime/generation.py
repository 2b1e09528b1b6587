"""Generate, grade and store completions chunk by chunk; steered generation is this plus a controller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from stir_train.artifacts.run_dir import StageDir
from stir_train.config.inputs import TaskConfig
from stir_train.data.grading import reward
from stir_train.distributed.leases import Note
from stir_train.errors import ArtifactError
from stir_train.generation.backend import (
    ControlSpec,
    GenerationBackend,
    GenerationRequest,
    SamplingParams,
)
from stir_train.generation.controller import Controller
from stir_train.monitoring.console import Advance
from stir_train.monitoring.metrics import Pace
from stir_train.runtime.chunk_scheduler import make_missing
from stir_train.runtime.context import RunContext
from stir_train.stores.rollouts import (
    RolloutStore,
    rollouts_file,
    save_decisions,
    save_rollouts,
)
from stir_train.stores.states import save_states
from stir_train.types.rollout import GradedRollout, Prompt, Rollout
from stir_train.types.steering import SteeringDecision


@dataclass(frozen=True)
class GenerationJob:
    """What to generate for a list of prompts.

    Attributes:
        prompts: In order; chunks are consecutive runs of them.
        num_samples: Per prompt.
        sampling: Greedy or sampled.
        capture_blocks: Blocks whose control-point states are kept.
        make_controller: Makes what steers; None decodes plainly.
        prefix: Directory inside the stage, for stages that hold several sets.
        engine: Makes what decodes; None takes the run's base-model engine.
        answer: Another way to make completions of some prompts, one each, in place of all these.
        task: Judges the answers, where it is not the run's own.
    """

    prompts: Sequence[Prompt]
    num_samples: int
    sampling: SamplingParams
    capture_blocks: tuple[int, ...] = ()
    make_controller: Callable[[], Controller] | None = None
    prefix: str = ""
    engine: Callable[[], GenerationBackend] | None = None
    answer: Callable[[Sequence[Prompt]], list[Rollout]] | None = None
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
    context: RunContext, stage: StageDir, jobs: Sequence[GenerationJob], advance: Advance
) -> None:
    """Make every chunk of the jobs that is not there yet, together with the other ranks."""
    chunks = {
        f"{job.prefix}{chunk:05d}": (job, chunk)
        for job in jobs
        for chunk in range(num_chunks(context, job))
    }
    left, pace = len(chunks), Pace()

    def make(key: str) -> Note:
        job, chunk = chunks[key]
        return _generate_chunk(context, stage, job, chunk)

    def on_finished(key: str, note: Note) -> None:
        nonlocal left
        left -= 1
        job, chunk = chunks[key]
        num_completions = len(prompts_of_chunk(context, job, chunk)) * job.num_samples
        if not note:
            advance(num_completions)
            return
        figures = {
            "set": job.set_name or "rollouts",
            **note,
            "tokens_per_second": note["tokens"] / max(note["seconds"], 1e-6),
            "queue_depth": left,
            "eta_seconds": pace.eta_seconds(left),
        }
        context.metrics.log(stage.name, figures, step=chunk)
        advance(num_completions, f"correct {note['correct_rate']:.0%}")

    # A sharded model is loaded by all ranks at once, and only one is run at a time.
    for _, some in groupby(chunks.items(), key=lambda item: item[1][0].engine):
        mine = dict(some)
        files = {key: rollouts_file(job.set_name, chunk) for key, (job, chunk) in mine.items()}
        (job, _), *_ = mine.values()
        together = _engine_of(context, job) if context.is_sharded else None
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


def _engine_of(context: RunContext, job: GenerationJob) -> GenerationBackend:
    return job.engine() if job.engine else context.resources.engine


def _generate_chunk(
    context: RunContext, stage: StageDir, job: GenerationJob, chunk: int
) -> dict[str, float]:
    """Generate, grade and save one chunk; return its figures."""
    prompts = prompts_of_chunk(context, job, chunk)
    if job.answer is not None:
        return _answer_chunk(context, stage, job, chunk)
    requests = [GenerationRequest(p, k) for p in prompts for k in range(job.num_samples)]
    controller = job.make_controller() if job.make_controller else None
    control = ControlSpec(
        context.resources.automaton, context.config.control_points.max_points, job.capture_blocks
    )
    result = _engine_of(context, job).generate(
        requests, job.sampling, seed=context.config.seed, control=control, controller=controller
    )
    name = f"{stage.name}/{job.prefix}{chunk:05d}"
    if not context.is_mine_to_write(name, [r.token_ids for r in result.rollouts]):
        return {}
    graded = grade_rollouts(context, result.rollouts, [r.prompt for r in requests], job.task)
    if result.states is not None:
        save_states(
            stage,
            (job.set_name, chunk),
            result.rollouts,
            result.states,
            block_convention=context.resources.described.identity.block_convention,
        )
    if controller is not None:
        save_decisions(stage, job.set_name, chunk, result.decisions)
    # The rollout table comes last: a chunk counts as made when it is there.
    save_rollouts(stage, job.set_name, chunk, graded)
    figures = {
        "correct_rate": sum(g.grade.correct for g in graded) / len(graded),
        "tokens": sum(g.rollout.total_tokens for g in graded),
        "truncated_rate": sum(g.rollout.truncated for g in graded) / len(graded),
        "forward_passes": result.cost.forward_passes,
    }
    if result.states is not None and len(result.states.labels):
        figures["state_norm"] = float(result.states.states.norm(dim=-1).mean())
    if result.decisions:
        figures |= decision_figures(result.decisions)
    return figures


def _answer_chunk(
    context: RunContext, stage: StageDir, job: GenerationJob, chunk: int
) -> dict[str, float]:
    """The same by another method's own way of answering."""
    assert job.answer is not None
    prompts = prompts_of_chunk(context, job, chunk)
    graded = grade_rollouts(context, job.answer(prompts), prompts)
    save_rollouts(stage, job.set_name, chunk, graded)
    return {
        "correct_rate": sum(g.grade.correct for g in graded) / len(graded),
        "tokens": sum(g.rollout.total_tokens for g in graded),
        "truncated_rate": sum(g.rollout.truncated for g in graded) / len(graded),
        "forward_passes": sum(g.rollout.forward_passes for g in graded),
    }


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
