"""What a later stage would refuse, asked before the first one begins: of settings, model and problems.

A run may take days; what its configuration, its model's files and its problems say at the start is
not left to be found at the end. All that is wrong is listed at once. No weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

from rich.console import Console

from stir_train.config.deepspeed import deepspeed_config
from stir_train.config.inputs import SPREAD
from stir_train.config.pipeline import stages_off
from stir_train.config.run import RunConfig
from stir_train.config.steering import PreviewingSteering
from stir_train.data.chat import chat_lines
from stir_train.distill.plan import one_module
from stir_train.distill.terms import make_terms
from stir_train.errors import StageError, StirError
from stir_train.models.describe import ModelDescription
from stir_train.models.load import resolve_device
from stir_train.models.lora_targets import require_servable_targets
from stir_train.monitoring.console import caution
from stir_train.runtime.context import RunContext
from stir_train.runtime.external import require_external
from stir_train.runtime.teaching import instructed_prompts
from stir_train.types.rollout import Prompt

NUM_LISTED = 8
"""Prompts that an error lists before it counts the rest."""


def require_feasible(
    context: RunContext, stages: Sequence[str], *, remade: Collection[str] = ()
) -> None:
    """Check what the named stages, those of them that are not made yet, would refuse.

    Args:
        context: The run.
        stages: Which are to be made.
        remade: Those that are to be made again, although they are there.

    Raises:
        StageError: Listing all of it; a single refusal is raised as it is.
    """
    left = {
        name
        for name in stages
        if name not in stages_off(context.config)
        and (name in remade or not context.stage(name).is_complete)
    }
    problems: list[StirError] = []
    for check in _checks(context, left):
        try:
            check()
        except StirError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise StageError(f"{len(problems)} things would stop this run later:\n{listed}")


def tell_about_model(context: RunContext) -> None:
    """Say, before there are rollouts, what the model itself decides: its chat template, and what ends an answer."""
    if context.stage("rollout").is_complete:
        return
    described, task = context.resources.described, context.config.task
    if task.chat_template is None and described.tokenizer.chat_template is not None:
        for line in chat_lines(task, described.tokenizer):
            context.console.print(line, soft_wrap=True)
    _warn_of_stop_tokens(context.console, described)


def _warn_of_stop_tokens(console: Console, described: ModelDescription) -> None:
    """Say where completions may not end by themselves: they would all be cut off."""
    eos = described.tokenizer.eos_token_id
    if not described.stop_token_ids:
        said = "this model has no stop token: every completion runs to generation.max_new_tokens"
    elif eos is not None and eos not in described.stop_token_ids:
        said = (
            f"the tokenizer's end-of-sequence token {described.tokenizer.eos_token!r} (id {eos}) ends no "
            f"completion: the model's generation_config.json stops at {_listed(described)}; if "
            "completions are cut off, add it to eos_token_id there"
        )
    else:
        return
    console.print(caution(said), soft_wrap=True)


def _checks(context: RunContext, left: set[str]) -> Iterator[Callable[[], None]]:
    """What can be asked of the stages that are left."""
    config = context.config
    if not left - {"report"}:
        return
    _ = context.resources.described  # where there is no model, nothing else can be asked
    if config.model.device != SPREAD:
        yield lambda: _require_device(context)
    yield lambda: _require_prompts(context, "evaluate" in left)
    if "rollout" in left and config.external.is_used:
        yield lambda: require_external(context)
    if left & {"value", "distill"}:
        yield lambda: _require_engine(context)
    if "distill" in left:
        yield lambda: _require_targets(config)
        yield lambda: _require_teachable(context)
    if "directions" in left and config.model.sharding == "zero3":
        yield partial(_refuse_zero3, config)


def _require_targets(config: RunConfig) -> None:
    """Check the modules that get adapters; which block is steered is not known yet, and does not matter."""
    require_servable_targets(config.model, config.distill)
    for objective in (config.distill.objective, *config.distill.also.values()):
        if objective.module:
            require_servable_targets(config.model, one_module(config.distill, objective, block=0))


def _require_prompts(context: RunContext, asks_others: bool) -> None:
    """Check that the model can read every prompt of every split, and has room for a completion."""
    described = context.resources.described
    places = {problem.problem_id: problem.place for problem in context.problems}
    asked: dict[str, Sequence[Prompt]] = {name: split for name, split in context.splits.items()}
    if asks_others:
        asked |= {f"evaluate.out_of_domain.{n}": p for n, p in context.out_of_domain.items()}
    require_known_tokens(asked, places, described.vocab_size)
    require_room(asked, places, described.max_tokens, context.config.generation.max_new_tokens)


def _require_device(context: RunContext) -> None:
    resolve_device(context.config.model.device, context.world.launch.local_rank)


def require_known_tokens(
    asked: Mapping[str, Sequence[Prompt]], places: Mapping[str, str], vocab_size: int
) -> None:
    """Check that a model has a row for every token of its prompts.

    Args:
        asked: Prompts by split or task.
        places: Where problems stand in their source, by id.
        vocab_size: Rows of the model's embedding.

    Raises:
        StageError: Naming a prompt that holds another, by where it stands.
    """
    for name, prompts in asked.items():
        for prompt in prompts:
            beyond = max(prompt.token_ids, default=0)
            if beyond >= vocab_size:
                place = places.get(prompt.prompt_id) or repr(prompt.question[:60])
                raise StageError(
                    f"{place} ({name}) holds token {beyond}, and the model's embedding has {vocab_size} "
                    "rows: its tokenizer is another model's, or was extended without the model"
                )


def require_room(
    asked: Mapping[str, Sequence[Prompt]],
    places: Mapping[str, str],
    max_tokens: int,
    max_new_tokens: int,
) -> None:
    """Check that prompts and completions fit a context.

    Args:
        asked: Prompts by split or task.
        places: Where problems stand in their source, by id.
        max_tokens: Of the context.
        max_new_tokens: Of a completion.

    Raises:
        StageError: Naming those that do not, by where they stand.
    """
    wrong = [
        f"{places.get(prompt.prompt_id) or repr(prompt.question[:60])} ({name}): "
        f"{len(prompt.token_ids)} tokens"
        for name, prompts in asked.items()
        for prompt in prompts
        if not prompt.token_ids or len(prompt.token_ids) + max_new_tokens > max_tokens
    ]
    if wrong:
        more = [f"and {len(wrong) - NUM_LISTED} more"] if len(wrong) > NUM_LISTED else []
        listed = "\n".join(f"    {line}" for line in [*wrong[:NUM_LISTED], *more])
        raise StageError(
            f"{len(wrong)} prompts do not fit: with generation.max_new_tokens={max_new_tokens} a prompt "
            f"has 1 to {max(0, max_tokens - max_new_tokens)} tokens of the model's context of "
            f"{max_tokens}; lower the budget, or take these problems out\n{listed}"
        )


def _require_engine(context: RunContext) -> None:
    """Check that the launch can train as configured."""
    train, num_ranks = context.config.train, context.world.size
    deepspeed_config(train)
    if train.engine == "plain" and num_ranks > 1:
        raise StageError(
            f"train.engine: plain trains in one process, this launch has {num_ranks}; use auto or "
            "deepspeed"
        )


def _require_teachable(context: RunContext) -> None:
    """Check every student's objective against what may teach it."""
    config = context.config
    tried = config.tune.modes if config.tune.enabled else (config.steering.mode,)
    for objective in (config.distill.objective, *config.distill.also.values()):
        make_terms(objective)
        instructed_prompts(context, objective)
        if not objective.on_policy:
            continue
        if not objective.instruction and all(
            isinstance(config.example_of(mode), PreviewingSteering) for mode in tried
        ):
            raise StageError(
                "distill.objective.on_policy: a controller that previews before it acts cannot judge a "
                f"finished completion in one pass, and tune.modes are {', '.join(tried)}; add value, "
                "similarity or static"
            )
        if config.train.zero_stage == 3 and context.world.size > 1:
            raise StageError(
                "distill.objective.on_policy: every process samples from the student by itself, and "
                "train.zero_stage=3 holds no whole one; use a stage below 3"
            )


def _refuse_zero3(config: RunConfig) -> None:
    wanted = "tune.modes: vector" if config.uses_directions else "basis.directions: reward_gradient"
    raise StageError(
        f"{wanted} takes gradients on every rank by itself, and model.sharding=zero3 makes ranks wait for one "
        "another: set model.sharding to tensor or none"
    )


def _listed(described: ModelDescription) -> str:
    return ", ".join(
        f"{described.tokenizer.convert_ids_to_tokens(i)!r} (id {i})"
        for i in described.stop_token_ids
    )
