"""What answers a run's problems, built from the run: its model, a controller, a student, a baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from stir_train.answering.baseline import BaselineAnswerer
from stir_train.answering.interface import BASE
from stir_train.answering.model import ModelAnswerer
from stir_train.artifacts.tensors import load_tensors
from stir_train.baselines.interface import AnsweringContext, Baseline, Setting
from stir_train.config.import_path import load_object
from stir_train.config.inputs import TaskConfig
from stir_train.config.run import RunConfig
from stir_train.config.steering import (
    CustomSteering,
    PreviewingSteering,
    RetrievingSteering,
    SteeringConfig,
    VectorSteering,
)
from stir_train.data.prompts import Wording, reword, spaced
from stir_train.generation.backend import (
    ABILITY_OF_PLACE,
    Ability,
    ControlSpec,
    GenerationBackend,
)
from stir_train.generation.controller import Steering
from stir_train.models.load import LoadedModel
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import sampling_params
from stir_train.runtime.memory import return_freed_memory
from stir_train.types.directions import DirectionSet
from stir_train.types.places import PLACES_AT_PROMPT, Place
from stir_train.types.rollout import Prompt
from stir_train.types.steering import ControlBasis
from stir_train.types.utility import Utility

ANSWER_PROMPT = "**Final Answer**\n\n\\boxed"
"""Asks for an answer at once where the task has no marker of its own."""


def plain_answerer(context: RunContext, *, capture_blocks: tuple[int, ...] = ()) -> ModelAnswerer:
    """The base model without a controller.

    Args:
        context: The run.
        capture_blocks: Blocks whose control-point states are kept.
    """
    return ModelAnswerer(
        BASE,
        lambda: context.resources.engine,
        control_spec(context, capture_blocks),
        context.config.seed,
        needs=frozenset({Ability.CAPTURE_STATES}) if capture_blocks else frozenset(),
    )


def steered_answerer(
    context: RunContext,
    settings: SteeringConfig,
    basis: ControlBasis | None = None,
    *,
    directions: DirectionSet | None = None,
) -> ModelAnswerer:
    """The base model under the controller that settings describe.

    Args:
        context: The run.
        settings: Of the controller.
        basis: Instead of the run's own.
        directions: Instead of the run's own.
    """
    return ModelAnswerer(
        BASE,
        lambda: context.resources.engine,
        control_spec(context),
        context.config.seed,
        lambda: controller_for(context, settings, basis, directions=directions),
        steering_needs(settings),
        isinstance(settings, VectorSteering)
        and all(action.place in PLACES_AT_PROMPT for action in settings.actions),
    )


def steering_needs(settings: SteeringConfig) -> frozenset[Ability]:
    """What a backend must be able to do under the controller that settings describe.

    Known before the controller is made: of a user's own, from the ``place`` of its class. What only shows
    once it is made, the backend itself refuses.

    Raises:
        ConfigError: If a controller of the user's own cannot be imported.
    """
    if isinstance(settings, VectorSteering):
        return frozenset(ABILITY_OF_PLACE[action.place] for action in settings.actions)
    if isinstance(settings, RetrievingSteering):
        needs = {Ability.ACT_AT_CONTROL_POINTS}
        if isinstance(settings, PreviewingSteering):
            needs.add(Ability.PREVIEW)
        if settings.momentum_gate is not None:
            needs.add(Ability.TELL_UNCERTAINTY)
        return frozenset(needs)
    place: Place = "control_point"
    if isinstance(settings, CustomSteering):
        found = load_object(settings.controller, kind="steering.controller")
        place = getattr(found, "place", place)
    return frozenset({ABILITY_OF_PLACE.get(place, Ability.ACT_AT_CONTROL_POINTS)})


def other_model_answerer(
    context: RunContext, name: str, load: Callable[[], LoadedModel]
) -> ModelAnswerer:
    """Another model, of which one at a time is held beside the base's weights.

    Args:
        context: The run.
        name: Of the model, by which it is known to be loaded already.
        load: Loads it; collective where ranks hold it together.
    """

    def engine() -> GenerationBackend:
        held = context.resources.students
        if name not in held:
            context.resources.close_engines()
            return_freed_memory()
            held[name] = context.resources.make_engine(load())
        return held[name]

    return ModelAnswerer(name, engine, control_spec(context), context.config.seed)


def baseline_answerer(
    context: RunContext, method: Baseline, setting: Setting, *, task: TaskConfig | None = None
) -> BaselineAnswerer:
    """A baseline under one setting; what it learned is read when it is first asked.

    Args:
        context: The run.
        method: The baseline.
        setting: One point of its grid.
        task: What it answers, where that is not the run's own: how answers are marked and read.
    """
    stage, name = context.stage("baselines"), parameters_file(method.name)
    return BaselineAnswerer(
        method,
        setting,
        lambda: load_tensors(stage.verified(name))[0],
        lambda: answering_context(context, task),
    )


def parameters_file(name: str) -> str:
    """Within the baselines stage, what a method took from the harvest split."""
    return f"{name}/parameters.safetensors"


def control_spec(context: RunContext, capture_blocks: tuple[int, ...] = ()) -> ControlSpec:
    """Where the run has control points."""
    return ControlSpec(
        context.resources.automaton, context.config.control_points.max_points, capture_blocks
    )


def controller_for(
    context: RunContext,
    settings: SteeringConfig,
    basis: ControlBasis | None = None,
    *,
    directions: DirectionSet | None = None,
    device: torch.device | None = None,
) -> Steering:
    """The controller that settings describe; without a depth, at the first harvested one.

    The run's own basis and directions are read where no others are given, and only if it uses them; without a
    device, the controller is for the run's own model, which is loaded.
    """
    return context.steering.controller(
        with_depth(settings, context.config),
        device=context.resources.loaded.device if device is None else device,
        basis=basis,
        directions=directions,
    )


def with_depth(settings: SteeringConfig, config: RunConfig) -> SteeringConfig:
    """Settings whose depth is given: their own, or the first harvested one."""
    if isinstance(settings, VectorSteering) or settings.depth is not None:
        return settings
    return settings.model_copy(update={"depth": config.harvest.depths[0]})


def utility_of(config: RunConfig) -> Utility:
    """What an answer is worth in a run."""
    return Utility(config.utility.token_price, config.generation.max_new_tokens)


def answering_context(context: RunContext, task: TaskConfig | None = None) -> AnsweringContext:
    """What baselines answer with, the run's task or another; loads the model."""
    task = task or context.config.task
    tokenizer = context.resources.described.tokenizer
    marker = spaced(task.answer_marker or ANSWER_PROMPT, tokenizer)
    delimiters = context.config.control_points.delimiters

    def answers_of(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[str]:
        grades = context.resources.grader_of(task).grade(
            texts, [p.gold for p in prompts], [False] * len(texts)
        )
        return [grade.extracted for grade in grades]

    def reworded(prompts: Sequence[Prompt], wording: Wording) -> list[Prompt]:
        return reword(prompts, wording, task, tokenizer)

    return AnsweringContext(
        loaded=context.resources.loaded,
        engine=context.resources.engine,
        greedy=sampling_params(context, greedy=True),
        sampled=sampling_params(context, greedy=False),
        control=control_spec(context),
        seed=context.config.seed,
        answers_of=answers_of,
        reword=reworded,
        answer_prompt=tuple(tokenizer(marker, add_special_tokens=False)["input_ids"]),
        delimiter_ids=tuple(
            token_id
            for token, token_id in tokenizer.get_vocab().items()
            if any(d in tokenizer.convert_tokens_to_string([token]) for d in delimiters)
        ),
    )
