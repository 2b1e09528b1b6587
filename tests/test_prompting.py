"""Methods that change the prompt: the same problems in other words, and what was fed is on record."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest

from stir_train.baselines.few_shot import FewShot, worked_examples
from stir_train.baselines.interface import AnsweringContext, HarvestData, NotApplicable
from stir_train.baselines.prompting import (
    BUDGET,
    LEFT_TO_RIGHT,
    STEP_BY_STEP,
    Instruction,
    TokenBudget,
)
from stir_train.config.baselines import BASELINES
from stir_train.config.inputs import TaskConfig
from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.data.prompts import Wording, reword
from stir_train.evals.metrics import fed_prompts
from stir_train.models.load import LoadedModel
from stir_train.monitoring.console import make_console
from stir_train.runtime.answerers import answering_context
from stir_train.runtime.attempt import read_run
from stir_train.types.rollout import Grade, GradedRollout, Prompt, Rollout

CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def _graded(rollouts: list[Rollout]) -> list[GradedRollout]:
    return [GradedRollout(r, "", Grade(False, "", ""), 0.0) for r in rollouts]


def _stated(prompt: Prompt) -> str:
    """The question without the line break with which the embedded ones end."""
    return prompt.question.removesuffix("\n")


def test_other_words_change_what_is_read_and_nothing_else(
    prompts: list[Prompt], loaded: LoadedModel
) -> None:
    task = TaskConfig(template="Q: {question}\nA: ")
    plain = reword(prompts, Wording(), task, loaded.tokenizer)
    asked = reword(prompts, Wording("just", (("a3", "so 3"),)), task, loaded.tokenizer)
    assert plain[0].text == f"Q: {prompts[0].question}\nA: "
    assert asked[0].text == f"Q: a3\nA: so 3\n\nQ: {_stated(prompts[0])}\njust\n\nA: "
    assert asked[0].token_ids != plain[0].token_ids
    kept = {"text": "", "token_ids": ()}
    assert [dataclasses.replace(p, **kept) for p in asked] == [  # type: ignore[arg-type]
        dataclasses.replace(p, **kept)  # type: ignore[arg-type]
        for p in prompts
    ]


def test_problems_of_another_task_are_asked_in_its_own_template(
    finished: Path, prompts: list[Prompt]
) -> None:
    config = load_config(RunConfig, finished / "smoke" / "config.yaml", [])
    with read_run(config, make_console()) as context:
        for task in (config.task, config.task.model_copy(update={"template": "Q: {question}"})):
            (asked,) = answering_context(context, task).reword(prompts[:1], Wording())
            assert asked.text == task.template.replace("{question}", prompts[0].question)


def test_a_chat_template_gets_examples_and_instruction_in_one_message(
    prompts: list[Prompt], loaded: LoadedModel
) -> None:
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = CHAT
    (worded,) = reword(
        prompts[:1],
        Wording("just", (("a3", "so 3"),)),
        TaskConfig(system_prompt="Hi."),
        tokenizer,
    )
    assert worded.text == (
        f"[system]Hi.[user]a3\n\nso 3\n\n{_stated(prompts[0])}\njust\n[assistant]"
    )


def test_an_instruction_is_behind_the_question_and_its_prompts_are_on_record(
    answering: AnsweringContext, prompts: list[Prompt], harvest: HarvestData, plain: list[Rollout]
) -> None:
    with pytest.raises(NotApplicable, match="no words for"):
        STEP_BY_STEP.prepare(harvest)
    method = Instruction("prompt-own", {"just": "1", "maybe": "2"})
    assert method.prepare(harvest) == {}
    assert method.settings(()) == [{"wording": "just"}, {"wording": "maybe"}]
    just, maybe = (method.answer(answering, {}, s, prompts) for s in method.settings(()))
    for rollout, prompt in zip(just, prompts, strict=True):
        assert rollout.prompt_id == prompt.prompt_id
        assert answering.loaded.decode(rollout.prompt_token_ids) == f"{_stated(prompt)}\n1\n"
    fed = [fed_prompts(_graded(rollouts)) for rollouts in (plain, just, maybe)]
    assert len({record.sha256 for record in fed}) == 3
    assert fed[0] == fed_prompts(_graded(plain[::-1])), "the order does not matter"
    assert fed[1].tokens_mean == fed[0].tokens_mean + 2
    assert set(LEFT_TO_RIGHT.wordings) == {"left-to-right"}


def test_the_stated_budget_is_a_share_of_what_right_answers_took(
    answering: AnsweringContext,
    prompts: list[Prompt],
    harvest: HarvestData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = TokenBudget()
    with pytest.raises(NotApplicable, match="no words"):
        method.prepare(harvest)
    assert "{budget}" in BUDGET
    monkeypatch.setattr("stir_train.baselines.prompting.BUDGET", "{budget}")
    parameters = method.prepare(harvest)
    lengths = [len(g.rollout.token_ids) for g in harvest.graded if g.grade.correct]
    mean = sum(lengths) / len(lengths)
    (rollout,) = method.answer(answering, parameters, {"share": 0.5}, prompts[:1])
    asked = answering.loaded.decode(rollout.prompt_token_ids)
    assert asked == f"{_stated(prompts[0])}\n{round(mean / 2)}\n"
    wrong = [dataclasses.replace(g, grade=Grade(False, "", "")) for g in harvest.graded]
    with pytest.raises(NotApplicable, match="is right"):
        method.prepare(dataclasses.replace(harvest, graded=wrong))


def test_examples_are_the_shortest_right_answers_of_harvest_problems_and_are_saved(
    answering: AnsweringContext, prompts: list[Prompt], harvest: HarvestData
) -> None:
    examples = worked_examples(harvest, 3)
    questions = {p.question: p for p in harvest.prompts}
    for question, response in examples:
        of_it = [g for g in harvest.graded if g.rollout.prompt_id == questions[question].prompt_id]
        right = [g for g in of_it if g.grade.correct]
        shortest = min(right, key=lambda g: len(g.rollout.token_ids))
        assert response == shortest.text.strip()
        assert questions[question].answer in response
    method = FewShot()
    parameters = method.prepare(harvest)
    (rollout,) = method.answer(answering, parameters, {"examples": 2}, prompts[:1])
    shown = "".join(f"{q}{r}\n\n" for q, r in examples[:2])
    assert answering.loaded.decode(rollout.prompt_token_ids) == f"{shown}{prompts[0].question}"


def test_examples_that_do_not_fit_the_context_are_left_out(
    answering: AnsweringContext, prompts: list[Prompt], harvest: HarvestData
) -> None:
    parameters = FewShot().prepare(harvest)
    room = answering.loaded.max_tokens - answering.greedy.max_new_tokens
    many, few = (
        FewShot().answer(answering, parameters, {"examples": k}, prompts[:2]) for k in (8, 1)
    )
    for rollout, other in zip(many, few, strict=True):
        assert len(other.prompt_token_ids) < len(rollout.prompt_token_ids) <= room


def test_thinking_is_no_part_of_an_example(harvest: HarvestData) -> None:
    (first,) = worked_examples(harvest, 1)
    thought = [dataclasses.replace(g, text=f"hmm</think>\n\n{g.text}") for g in harvest.graded]
    assert worked_examples(dataclasses.replace(harvest, graded=thought), 1) == [first]


def test_prompts_are_shipped_first_and_every_backend_can_answer_them() -> None:
    assert [name for name in BASELINES if name.startswith("prompt-")] == list(BASELINES)[:5]
    assert STEP_BY_STEP.needs == FewShot.needs == TokenBudget.needs == frozenset()
