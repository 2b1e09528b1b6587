"""Let a person watch: one prompt answered by a method, or a completion with its decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from stir_train.config.steering import SteeringConfig
from stir_train.data.problems import SourceProblem
from stir_train.data.prompts import render_prompts
from stir_train.errors import StageError
from stir_train.generation.backend import (
    ControlSpec,
    GenerationBackend,
    GenerationRequest,
    GenerationResult,
)
from stir_train.generation.controller import Controller
from stir_train.recipes.methods import (
    GREEDY,
    PUBLISHED,
    STEERED_METHOD,
    STUDENT,
    published_rule,
    student_engine,
)
from stir_train.recipes.tune import controller_for
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import sampling_params
from stir_train.types.rollout import Prompt
from stir_train.types.steering import SteeringDecision

METHODS = (GREEDY, STEERED_METHOD, PUBLISHED, STUDENT)


@dataclass(frozen=True)
class Answer:
    """One completion with the decisions made along it."""

    prompt: Prompt
    result: GenerationResult
    decisions: Sequence[SteeringDecision]


def stream_answer(
    context: RunContext, question: str, method: str, write: Callable[[str], None]
) -> Answer:
    """Answer one question greedily with a method, writing text as it comes.

    Raises:
        StageError: If there is no such method.
    """
    problem = SourceProblem(question, answer="", content=question)
    (prompt,) = render_prompts(
        [problem], context.config.task, context.resources.described.tokenizer
    )
    tokens: list[int] = []
    written = 0

    def on_token(_request: int, token: int) -> None:
        nonlocal written
        tokens.append(token)
        # Decode from the start: a piece of a character becomes text only with its other pieces.
        text = context.resources.described.decode(tokens).removesuffix("\N{REPLACEMENT CHARACTER}")
        write(text[written:])
        written = len(text)

    return _answer(context, prompt, method, on_token)


def show_decisions(context: RunContext, index: int, method: str, console: Console) -> None:
    """Print a tune problem's completion with what happened at each control point.

    Raises:
        StageError: If there is no such problem or method.
    """
    prompts = context.splits["tune"]
    if not 0 <= index < len(prompts):
        raise StageError(f"--index: the tune split has problems 0 to {len(prompts) - 1}")
    answer = _answer(context, prompts[index], method, None)
    rollout = answer.result.rollouts[0]
    decided = {decision.token_index: decision for decision in answer.decisions}
    console.print(Text(answer.prompt.text.rstrip(), style="dim"))
    start = 0
    for point, token_index in enumerate(rollout.control_points, start=1):
        console.print(
            Text(
                context.resources.described.decode(
                    rollout.token_ids[start : token_index + 1]
                ).rstrip()
            )
        )
        console.print(_describe(point, decided.get(token_index)))
        start = token_index + 1
    console.print(Text(context.resources.described.decode(rollout.token_ids[start:]), style="bold"))
    console.print(
        Text(
            f"gold answer {answer.prompt.answer}; {len(rollout.token_ids)} tokens, "
            f"{rollout.preview_tokens} more in previews, {rollout.forward_passes} passes",
            style="dim",
        )
    )


def _answer(
    context: RunContext, prompt: Prompt, method: str, listener: Callable[[int, int], None] | None
) -> Answer:
    if method not in METHODS:
        raise StageError(f"--method: {method!r} is none of {', '.join(METHODS)}")
    controller = _controller(context, method)
    result = _engine(context, method).generate(
        [GenerationRequest(prompt)],
        sampling_params(context, greedy=True),
        seed=context.config.seed,
        control=ControlSpec(context.resources.automaton, context.config.control_points.max_points),
        controller=controller,
        listener=listener,
    )
    return Answer(prompt, result, result.decisions)


def _controller(context: RunContext, method: str) -> Controller | None:
    settings: dict[str, Callable[[], SteeringConfig]] = {
        STEERED_METHOD: context.steering.choice,
        PUBLISHED: published_rule,
    }
    if method not in settings:
        return None
    return controller_for(context, settings[method](), context.steering.basis())


def _engine(context: RunContext, method: str) -> GenerationBackend:
    if method != STUDENT:
        return context.resources.engine
    context.stage("distill").require_complete()
    return student_engine(context)


def _describe(point: int, decision: SteeringDecision | None) -> Text:
    if decision is None:
        return Text(f"  ── point {point}", style="dim")
    scored = ", ".join(
        f"{entry}: {score:+.3f}"
        for entry, score in zip(decision.candidates, decision.scores, strict=True)
    )
    seen = f"null {decision.null_score:+.3f}; {scored or 'no candidate'}"
    if not decision.strength:
        return Text(f"  ── point {point}: left alone ({seen})", style="dim")
    return Text(
        f"  ━━ point {point}: entry {decision.chosen} x {decision.strength:.2f} into block "
        f"{decision.block} ({seen})",
        style="bold blue",
    )
