"""Let a person watch: one prompt answered by a method, or a completion with its decisions."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from stir_train.answering.methods import GREEDY, PUBLISHED, STEERED, STUDENT, published_rule
from stir_train.answering.model import ModelAnswerer
from stir_train.data.problems import SourceProblem
from stir_train.data.prompts import render_prompts
from stir_train.errors import StageError
from stir_train.generation.backend import Ability, TokenListener, require_abilities
from stir_train.generation.open import abilities_of
from stir_train.monitoring.console import caution
from stir_train.runtime.answerers import plain_answerer, steered_answerer
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import sampling_params
from stir_train.runtime.lineage import require_lineage
from stir_train.runtime.students import student_answerer
from stir_train.runtime.upstream import WHY, abstains
from stir_train.types.answers import Answers
from stir_train.types.rollout import Prompt
from stir_train.types.steering import SteeringDecision

METHODS = (GREEDY, STEERED, PUBLISHED, STUDENT)
_MADE_BY = {STEERED: "tune", PUBLISHED: "value", STUDENT: "distill"}


def stream_answer(
    context: RunContext, question: str, method: str, write: Callable[[str], None]
) -> Answers:
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
    prompt = tune_problem(context, index)
    answer = _answer(context, prompt, method, None)
    rollout = answer.rollouts[0]
    decided = {decision.token_index: decision for decision in answer.decisions or ()}
    console.print(Text(prompt.text.rstrip(), style="dim"))
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
            f"gold answer {prompt.answer}; {len(rollout.token_ids)} tokens, "
            f"{rollout.preview_tokens} more in previews, {rollout.forward_passes} passes",
            style="dim",
        )
    )


def tune_problem(context: RunContext, index: int) -> Prompt:
    """One problem of the tune split.

    Raises:
        StageError: If there is no such problem.
    """
    prompts = context.splits["tune"]
    if not 0 <= index < len(prompts):
        raise StageError(f"--index: the tune split has problems 0 to {len(prompts) - 1}")
    return prompts[index]


def _answer(
    context: RunContext, prompt: Prompt, method: str, listener: TokenListener | None
) -> Answers:
    answerer, backend = method_answerer(context, method), context.config.generation.backend
    needs = answerer.needs | ({Ability.STREAM} if listener is not None else set())
    require_abilities(backend, abilities_of(backend), needs, f"--method {method}")
    return answerer.answer(
        [prompt],
        num_samples=1,
        sampling=sampling_params(context, greedy=True),
        listener=listener,
    )


def method_answerer(context: RunContext, method: str) -> ModelAnswerer:
    """What answers by a method's name.

    Raises:
        StageError: If there is no such method, or its stage is not finished.
        ArtifactError: If what it reads is damaged, or not this configuration's.
    """
    if method in _MADE_BY:
        require_lineage(context, _MADE_BY[method])
    if method == GREEDY:
        return plain_answerer(context)
    if method == STUDENT:
        context.stage("distill").require_complete()
        return student_answerer(context)
    if method == PUBLISHED:
        return steered_answerer(context, published_rule(), context.steering.basis())
    if method == STEERED:
        if abstains(context.run_dir):
            context.console.print(caution(f"{WHY}: this is greedy decoding"), soft_wrap=True)
        return steered_answerer(context, context.steering.choice())
    raise StageError(f"--method: {method!r} is none of {', '.join(METHODS)}")


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
