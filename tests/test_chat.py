"""Chat templates: used where there is one, the same on every day, refused in words."""

from __future__ import annotations

import copy

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from stir_train.config.inputs import ModelConfig, TaskConfig
from stir_train.data.chat import chat_lines, describe_chat, render_messages
from stir_train.data.problems import SourceProblem
from stir_train.data.prompts import encode_rendered, prompts_sha256, render_prompts
from stir_train.errors import DataError
from stir_train.models.describe import load_tokenizer
from stir_train.types.rollout import Prompt

TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    + TURNS
)
DATED = "Today is {{ strftime_now('%d %b %Y') }}. " + TURNS
DATED_UNLESS_TOLD = (
    "{% if day is not defined %}{% set day = strftime_now('%Y') %}{% endif %}{{ day }} " + TURNS
)
THINKS = (
    TURNS
    + "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think></think>{% endif %}"
)
DEFAULT_SYSTEM = "[system]You are helpful." + TURNS


def _tokenizer(template: str | None) -> PreTrainedTokenizerBase:
    tokenizer = copy.deepcopy(load_tokenizer(ModelConfig(name="embedded/addition")))
    tokenizer.chat_template = template
    return tokenizer


def _render(chat: str | None, /, **task: object) -> Prompt:
    problem = SourceProblem("1+1?", "2", content="1+1?")
    (prompt,) = render_prompts([problem], TaskConfig(**task), _tokenizer(chat))  # type: ignore[arg-type]
    return prompt


def test_a_chat_template_is_used_where_there_is_one_and_that_is_said() -> None:
    assert _render(TURNS).text == "[user]1+1?"
    assert _render(TURNS, chat_template=True).text == "[user]1+1?"
    assert _render(TURNS, chat_template=False).text == "1+1?"
    assert _render(None).text == "1+1?"
    assert _render(TURNS, system_prompt="Be brief.").text == "[system]Be brief.[user]1+1?"
    for template, task, said in (
        (TURNS, {}, "used (the tokenizer has one"),
        (TURNS, {"chat_template": True}, "used (task.chat_template"),
        (TURNS, {"chat_template": False}, "not used (off)"),
        (None, {}, "not used (the tokenizer has none)"),
    ):
        assert said in chat_lines(TaskConfig(**task), _tokenizer(template))[0]  # type: ignore[arg-type]
    for task in (
        {"chat_template": True},
        {"system_prompt": "x"},
        {"chat_template_kwargs": {"enable_thinking": True}},
    ):
        with pytest.raises(DataError, match="tokenizer has no chat template"):
            _render(None, **task)


def test_arguments_reach_the_template_and_must_be_known_to_it() -> None:
    assert _render(THINKS).text.endswith("<think>\n")
    assert _render(THINKS, chat_template_kwargs={"enable_thinking": False}).text.endswith(
        "<think></think>"
    )
    with pytest.raises(DataError, match="does not read enable_thinkin; it reads enable_thinking"):
        _render(THINKS, chat_template_kwargs={"enable_thinkin": False})
    with pytest.raises(DataError, match="it reads no arguments"):
        _render(TURNS, chat_template_kwargs={"enable_thinking": False})


def test_a_template_that_refuses_or_is_broken_is_an_error_of_ours() -> None:
    assert _render(NO_SYSTEM).text == "[user]1+1?"
    with pytest.raises(DataError, match=r"no system here; take task\.system_prompt out"):
        _render(NO_SYSTEM, system_prompt="Be brief.")
    with pytest.raises(DataError, match="cannot be parsed"):
        _render("{% for %}")
    with pytest.raises(DataError, match="refuses the messages"):
        _render("{{ messages.nothing.at.all }}")


def test_prompts_are_the_same_on_every_day() -> None:
    with pytest.raises(DataError, match=r"writes today's date .* set task\.prompt_date"):
        _render(DATED)
    assert _render(DATED, prompt_date="2026-01-31").text == "Today is 31 Jan 2026. [user]1+1?"
    told = {"chat_template_kwargs": {"day": "Monday"}}
    assert _render(DATED_UNLESS_TOLD, **told).text == "Monday [user]1+1?"
    with pytest.raises(DataError, match="writes today's date"):
        _render(DATED_UNLESS_TOLD)
    with pytest.raises(DataError, match="works out how it writes"):
        _render("{% set form = '%Y' %}{{ strftime_now(form) }}" + TURNS, prompt_date="2026-01-31")


def test_what_a_template_adds_is_described() -> None:
    def described(template: str, **task: object) -> tuple[bool, bool, str]:
        found = describe_chat(TaskConfig(**task), _tokenizer(template))  # type: ignore[arg-type]
        return found.opens_think, found.writes_date, found.system_text

    assert described(TURNS)[:2] == (False, False)
    assert described(THINKS)[0]
    assert not described(THINKS, chat_template_kwargs={"enable_thinking": False})[0]
    assert "You are helpful." in described(DEFAULT_SYSTEM)[2]
    assert "You are helpful." in " ".join(chat_lines(TaskConfig(), _tokenizer(DEFAULT_SYSTEM)))
    assert described(DATED, prompt_date="2026-01-31")[1]
    assert "2026-01-31" in " ".join(
        chat_lines(TaskConfig(prompt_date="2026-01-31"), _tokenizer(DATED))
    )  # type: ignore[arg-type]


def test_the_hash_of_prompts_covers_rendering_and_golds_but_not_their_order() -> None:
    first, second = _render(TURNS), _render(TURNS, template="Q: {question}")
    assert first.prompt_id == second.prompt_id
    assert prompts_sha256([first]) != prompts_sha256([second])
    assert prompts_sha256([first, second]) == prompts_sha256([second, first])


def test_a_prompt_from_elsewhere_gets_its_special_tokens_once() -> None:
    tokenizer = _tokenizer(None)
    mark, number = str(tokenizer.eos_token), tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{mark} $A", special_tokens=[(mark, number)]
    )
    plain = encode_rendered("1+1?", tokenizer)
    assert plain[0] == number
    assert encode_rendered(f"{mark}1+1?", tokenizer) == plain


def test_messages_from_elsewhere_are_rendered_as_they_are_by_the_tasks_date() -> None:
    messages = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user")]
    task = TaskConfig(system_prompt="Not asked for.", prompt_date="2024-05-06")  # type: ignore[arg-type]
    rendered = render_messages(messages, task, _tokenizer(DATED))
    assert rendered == "Today is 06 May 2024. [user]u[assistant]a[user]u"
