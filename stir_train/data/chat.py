"""Render a question through a tokenizer's chat template, the same on every day and machine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser

from stir_train.config.inputs import TaskConfig
from stir_train.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLOCK = "strftime_now"
"""The function by which a template asks for today's date."""
Message = Mapping[str, str]
"""A message of a chat: `role` and `content`."""
PROBE_DATE = date(1999, 9, 9)
_ROLE_WORDS = re.compile(r"\b(?:system|user|assistant|model|human)\b|[:\s]+", re.IGNORECASE)


@dataclass(frozen=True)
class ChatDescription:
    """What a chat template adds to a question.

    Attributes:
        opens_think: The prompt ends inside ``<think>``.
        writes_date: A date is in the prompt.
        system_text: Text before the question that neither task nor question holds; may be empty.
    """

    opens_think: bool
    writes_date: bool
    system_text: str


def uses_chat_template(config: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts go through the chat template: as the task says, else if there is one.

    Raises:
        DataError: If it is asked for, or something that only it can carry, and there is none.
    """
    if tokenizer.chat_template is not None:
        return config.chat_template is not False
    for name, value in (
        ("chat_template", config.chat_template),
        ("system_prompt", config.system_prompt),
        ("chat_template_kwargs", config.chat_template_kwargs),
    ):
        if value:
            raise DataError(f"task.{name} is set, but this model's tokenizer has no chat template")
    return False


def render_chat(text: str, config: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """One user message, after the task's system prompt, ready for the reply.

    Raises:
        DataError: As `render_messages`.
    """
    messages = [{"role": "user", "content": text}]
    if config.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": config.system_prompt})
    return render_messages(messages, config, tokenizer)


def render_messages(
    messages: Sequence[Message], config: TaskConfig, tokenizer: PreTrainedTokenizerBase
) -> str:
    """Messages as they are, ready for the reply, by the task's arguments and date.

    Raises:
        DataError: If the template refuses the messages, does not know an argument, or writes
            today's date and `task.prompt_date` does not say which.
    """
    template, variables = _parsed_template(tokenizer)
    unknown = sorted(set(config.chat_template_kwargs) - variables)
    if unknown:
        offered = ", ".join(sorted(variables - {"messages", "add_generation_prompt", CLOCK}))
        raise DataError(
            f"task.chat_template_kwargs: this model's chat template does not read "
            f"{', '.join(unknown)}; it reads {offered or 'no arguments'}"
        )
    if CLOCK not in variables:
        return _apply(messages, config, tokenizer, template)
    if config.prompt_date is not None:
        return _apply(messages, config, tokenizer, _with_date(template, config.prompt_date))
    rendered = [
        _apply(messages, config, tokenizer, _with_date(template, day))
        for day in (PROBE_DATE, date(2001, 2, 3))
    ]
    if rendered[0] != rendered[1]:
        raise DataError(
            "this model's chat template writes today's date into every prompt, so a run would not "
            "have the same prompts on two days; set task.prompt_date to the date it is to write"
        )
    return rendered[0]


def describe_chat(config: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> ChatDescription:
    """Say what the template adds around a question."""
    question = "QUESTION-7f3a"
    rendered = render_chat(question, config, tokenizer)
    before, _, after = rendered.partition(question)
    for known in (*tokenizer.all_special_tokens, config.system_prompt or ""):
        before = before.replace(known, " ") if known else before
    for token in tokenizer.get_added_vocab():
        before = before.replace(token, " ")
    text = " ".join(before.split())
    has_text = bool(_ROLE_WORDS.sub("", text))
    return ChatDescription(
        opens_think=after.rfind("<think>") > after.rfind("</think>"),
        writes_date=CLOCK in _parsed_template(tokenizer)[1] and config.prompt_date is not None,
        system_text=text if has_text else "",
    )


def chat_lines(config: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Sentences that say how prompts are rendered, for a person to read."""
    if not uses_chat_template(config, tokenizer):
        reason = "off" if tokenizer.chat_template is not None else "the tokenizer has none"
        return [f"chat template: not used ({reason})"]
    told = "task.chat_template" if config.chat_template else "the tokenizer has one"
    described = describe_chat(config, tokenizer)
    lines = [f"chat template: used ({told}; task.chat_template=false leaves it out)"]
    if described.opens_think:
        lines.append("  it opens <think>: the reply begins with thinking")
    if described.writes_date:
        lines.append(f"  it writes the date {config.prompt_date} (task.prompt_date)")
    if described.system_text:
        lines.append(f"  it puts in, before the question: {described.system_text!r}")
    return lines


def _parsed_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, frozenset[str]]:
    """The template, and the names that it takes from outside.

    Raises:
        DataError: If it is no template.
    """
    template = str(tokenizer.get_chat_template())
    try:
        tree = _environment().parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"this model's chat template cannot be parsed (line {error.lineno}: {error.message}); "
            "mend its tokenizer, or set task.chat_template=false"
        ) from error
    names = jinja2.meta.find_undeclared_variables(tree)
    return template, frozenset(names - {"raise_exception", "namespace", "dict", "range"})


def _environment() -> jinja2.Environment:
    """Parses what transformers parses; nothing is rendered with it."""
    return jinja2.Environment(extensions=["jinja2.ext.loopcontrols", _Generation], autoescape=False)


class _Generation(jinja2.ext.Extension):
    """The ``{% generation %}`` block, by which templates mark what an assistant says."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 wants a set

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the block's body without the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _with_date(template: str, day: date) -> str:
    """The template with its clock stopped at a day's midnight, by a macro in front.

    Raises:
        DataError: If it asks for a date in a form that it works out itself.
    """
    calls = [
        call
        for call in _environment().parse(template).find_all(jinja2.nodes.Call)
        if isinstance(call.node, jinja2.nodes.Name) and call.node.name == CLOCK
    ]
    forms = {c.args[0].value for c in calls if c.args and isinstance(c.args[0], jinja2.nodes.Const)}
    if not all(c.args and isinstance(c.args[0], jinja2.nodes.Const) for c in calls):
        raise DataError(
            "this model's chat template works out how it writes today's date, which cannot be "
            "fixed; set task.chat_template=false, or mend the template"
        )
    midnight = datetime.combine(day, time())
    written = {form: midnight.strftime(form) for form in sorted(forms)}
    return f"{{%- macro {CLOCK}(form) -%}}{{{{- {written!r}[form] -}}}}{{%- endmacro -%}}{template}"


def _apply(
    messages: Sequence[Message],
    config: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
) -> str:
    arguments: dict[str, Any] = dict(config.chat_template_kwargs)
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
                **arguments,
            )
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise DataError(_refusal(messages, error)) from error


def _refusal(messages: Sequence[object], error: Exception) -> str:
    hint = (
        "take task.system_prompt out and put its text into task.template, if it refuses system "
        "messages"
        if len(messages) > 1
        else "mend it, or set task.chat_template=false"
    )
    return f"this model's chat template refuses the messages: {error}; {hint}"
