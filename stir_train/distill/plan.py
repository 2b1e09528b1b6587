"""Which students are trained: what each learns from, on which completions, for how many steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stir_train.config.learning import DistillConfig, ObjectiveConfig
from stir_train.distill.replay import steered_block
from stir_train.errors import StageError
from stir_train.types.rollout import Rollout


@dataclass(frozen=True)
class StudentSpec:
    """One student to train.

    Attributes:
        name: Empty for the student that is exported.
        objective: What it learns from.
        samples: The completions.
        num_steps: Optimizer steps.
    """

    name: str
    objective: ObjectiveConfig
    samples: Sequence[Rollout]
    num_steps: int

    @property
    def prefix(self) -> str:
        """Where in the stage its adapter is."""
        return student_prefix(self.name)


def adapter_config(config: DistillConfig, spec: StudentSpec) -> DistillConfig:
    """The settings of a student's adapter: those of all, or of one module of the block that was steered.

    Raises:
        StageError: If its samples were steered in several blocks.
    """
    if not spec.objective.module:
        return config
    return one_module(config, spec.objective, block=steered_block(spec.samples))


def one_module(config: DistillConfig, objective: ObjectiveConfig, *, block: int) -> DistillConfig:
    """The same with an adapter on an objective's module in a block alone."""
    return config.model_copy(update={"targets": (f"{block}.{objective.module}",)})


def student_prefix(name: str) -> str:
    """Where in the stage a student's adapter is; the exported one has no name."""
    return f"also/{name}/" if name else ""


def plan_students(
    config: DistillConfig,
    names: Sequence[str],
    samples_of: Callable[[ObjectiveConfig], Sequence[Rollout]],
) -> list[StudentSpec]:
    """The first of some students, then the others, trained on about as many tokens.

    Args:
        config: Has their objectives.
        names: Of the students; the exported one has none.
        samples_of: The completions that an objective teaches.

    Raises:
        StageError: If an objective has nothing to learn from.
    """
    objectives = {"": config.objective, **config.also}
    specs: list[StudentSpec] = []
    for name in names:
        samples, num_steps = _some(objectives[name], samples_of), config.num_steps
        if specs:
            num_steps = round(num_steps * mean_tokens(specs[0].samples) / mean_tokens(samples))
        specs.append(StudentSpec(name, objectives[name], samples, max(1, num_steps)))
    return specs


def mean_tokens(samples: Sequence[Rollout]) -> float:
    """Mean number of tokens of completions."""
    return sum(len(sample.token_ids) for sample in samples) / len(samples)


def _some(
    objective: ObjectiveConfig, samples_of: Callable[[ObjectiveConfig], Sequence[Rollout]]
) -> Sequence[Rollout]:
    samples = samples_of(objective)
    if not samples:
        lacking = {
            "unverified": "ended by itself",
            "compared": "has another reward than others of its problem",
        }.get(objective.samples, "is correct")
        raise StageError(f"no {objective.samples} rollout {lacking}: there is nothing to distil")
    return samples
