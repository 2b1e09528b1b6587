"""Find where a response states its answer: the last statement first, thinking set aside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from stir_train.config.inputs import BOX_MARKER
from stir_train.data.boxes import BOX, box_content, parts_of_larger

MAX_SEARCHED_CHARACTERS = 1 << 16
"""Only the end of a longer text is searched."""
MAX_STATEMENTS = 16
"""Statements looked at, from the last: a text with ten thousand boxes costs no more."""
MAX_MARKERS = 64
"""Markers looked at, from the last, those without a value included."""
MAX_STATEMENT_CHARACTERS = 2000
_THINK = r"(?:seed:)?think(?:ing)?|thought|reasoning|reflection|analysis|scratch_?pad|(?:inner_)?monologue|cot"
_THINK_END = re.compile(
    rf"</\s*(?:{_THINK})\s*>|\[/THINK\]|◁/think▷|<\|(?:end_of_thought|end_thinking|/think)\|>"
    r"|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_THINK_START = re.compile(
    rf"<\s*(?:{_THINK})\s*>|\[THINK\]|◁think▷|<\|(?:begin_of_thought|start_thinking|think)\|>",
    re.IGNORECASE,
)
_END_TOKENS = re.compile(
    r"(?:\s*(?:<\|/?\w{1,40}\|>|<｜[^｜\n]{1,40}｜>|<eos>|<end_of_turn>))+\s*$"
)
"""What a chat format ends a turn with, where a decoder left it in."""
_NEXT_PROBLEM = re.compile(
    r"^[#* ]{0,8}(?:question|problem|exercise|q)[* ]{0,4}:", re.IGNORECASE | re.MULTILINE
)
"""Where a base model goes on with a problem of its own making."""

MarkerKind = Literal["marker", "phrase", "json", "hashes", "box"]

_PHRASES = re.compile(
    r"""
    \banswers?(?:[ ]+(?:to|for)[ ]+[^.\n:=]{1,80}?)? \s{0,2}[*_]{0,3}
        (?: \s+(?:is|are|would[ ]be|should[ ]be|must[ ]be|will[ ]be|comes[ ]to) \b [*_]{0,3}:? | \s?[:=]\s? )
    | <answer>
    | ^[#*_>\ ]{0,10}(?:the\ )?(?:final\ )?answer[*_\ ]{0,4}$
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_JSON_KEY = re.compile(r"[\"'](?:final[_ ]?)?answer[\"']\s{0,4}:\s{0,4}", re.IGNORECASE)
_JSON_VALUE = re.compile(r"\"((?:[^\"\\\n]|\\.)*)\"|'([^'\n]*)'|(\[[^\]]*\])|([^,}\n]*)")
_HASHES = re.compile(r"(?<!#)#{4,6}(?!#)")
_HEADING = re.compile(r"\W{0,4}(?:[a-zA-Z]{2,}|[0-9]+[.)]\s+[a-zA-Z])")
_EMPTY_BOX = re.compile(r"\\f?box(?:ed)?\s?\{\s*\}")
_BLOCK_OPENS = re.compile(r"(?:\$\$|\\\[|\\\(|`{3,}\w{0,20}|\[|\\begin\{[a-z]{1,20}\*?\})")
_BLOCK_CLOSES = re.compile(r"(?:\$\$|\\\]|\\\)|`{3,}|\]|\\end\{[a-z]{1,20}\*?\})[.,]?")
_RULE = re.compile(r"[-*_=:>#\s]*")
_BULLET = re.compile(r"(?:[-*+•]|>)\s+(?=\S)")


@dataclass(frozen=True)
class Statement:
    """What a response says its answer is.

    Attributes:
        text: The phrase.
        is_marked: Whether it stands where the task asked for it.
        in_box: Whether it is what a box holds, and so mathematics: "5!" is a factorial there.
        is_part: Whether it is a part of what is stated: a factor, one of several answers, a denied one.
    """

    text: str
    is_marked: bool
    in_box: bool = False
    is_part: bool = False


def after_marker(text: str, marker: str) -> str:
    """What follows the last marker that something follows, without a final full stop; empty if none.

    An empty marker takes the whole text.
    """
    tail = text[-MAX_SEARCHED_CHARACTERS:]
    if not marker:
        return tail.strip()
    if marker == BOX_MARKER:
        return next(
            ("" if s.is_part else s.text for s in statements(tail, marker) if s.is_marked), ""
        )
    for end in reversed([m.end() for m in re.finditer(re.escape(marker), tail)][-MAX_MARKERS:]):
        line = tail[end:].split("\n", 1)[0].strip()
        value = line if _RULE.fullmatch(line) is None else _value_after(tail, end)
        if value := value.removesuffix(".").strip():
            return value
    return ""


def answer_parts(text: str) -> list[str]:
    """The reply, then the thinking around it; only those that hold something, each bounded.

    What follows a thinking that is opened again, and never closed, is thinking.
    """
    ends = list(_THINK_END.finditer(text))
    thinking = text[: ends[-1].start()] if ends else ""
    reply = text[ends[-1].end() :] if ends else text
    opened = _THINK_START.search(reply)
    if opened and reply[: opened.start()].strip():
        reply, thinking = reply[: opened.start()], f"{thinking}\n{reply[opened.end() :]}"
    parts = (
        _END_TOKENS.sub("", reply[-MAX_SEARCHED_CHARACTERS:]),
        thinking[-MAX_SEARCHED_CHARACTERS:],
    )
    return [part for part in parts if part.strip()]


def statements(part: str, marker: str) -> Iterator[Statement]:
    """Yield the statements of a part, best first: the last, and of two the one with less around it.

    A statement is what follows the configured marker, ``####``, ``<answer>`` or "the answer is", on
    its line or in the line or block below, or stands in ``\\boxed{}`` or under a key of JSON. A marker without a value is
    no statement, and neither is a heading with text below it.
    """
    found = [(match.start(), match.end(), "phrase") for match in _PHRASES.finditer(part)]
    found += [(match.start(), match.end(), "json") for match in _JSON_KEY.finditer(part)]
    found += [(match.start(), match.end(), "hashes") for match in _HASHES.finditer(part)]
    found += [(match.start(), match.end(), "box") for match in BOX.finditer(part)]
    if marker and marker != BOX_MARKER:
        places = re.finditer(re.escape(marker), part)
        found += [(match.start(), match.end(), "marker") for match in places]
    held: list[_Held] = []
    parts = parts_of_larger(part)
    for start, end, kind in sorted(found)[-MAX_MARKERS:]:
        text = _value_of(part, end, kind)
        if kind == "hashes" and _is_heading(part, end):
            continue
        is_marked = kind == ("box" if marker == BOX_MARKER else "marker")
        if _EMPTY_BOX.sub("", text).strip(" $"):
            held.append((start, -len(text), is_marked, text.strip(), kind == "box"))
    held = _before_next_problem(part, sorted(held))
    for start, _, is_marked, text, in_box in held[: -MAX_STATEMENTS - 1 : -1]:
        is_part = in_box and start in parts
        yield Statement(text[:MAX_STATEMENT_CHARACTERS], is_marked, in_box, is_part)


_Held = tuple[int, int, bool, str, bool]
"""Where a statement begins, minus its length, whether it is marked, its text, whether it is in a box."""


def _before_next_problem(part: str, held: list[_Held]) -> list[_Held]:
    """The statements, without those about a problem that a base model made up after its answer."""
    answered = next((start for start, _, is_marked, *_ in held if is_marked), None)
    following = _NEXT_PROBLEM.search(part, answered) if answered is not None else None
    return [one for one in held if one[0] < following.start()] if following else held


def _value_of(part: str, start: int, kind: str) -> str:
    if kind == "box":
        return box_content(part, start)
    if kind == "json":
        value = _JSON_VALUE.match(part[start : start + MAX_STATEMENT_CHARACTERS])
        return next((group for group in value.groups() if group), "") if value else ""
    return _value_after(part, start)


def _value_after(text: str, start: int) -> str:
    """The rest of the line; where that holds nothing, the next line or block that does."""
    lines = text[start : start + MAX_STATEMENT_CHARACTERS].split("\n")
    first = lines[0].lstrip(" *_:\t\r")
    in_block = _BLOCK_OPENS.fullmatch(first.strip()) is not None
    if not in_block and _RULE.fullmatch(first) is None:
        return first.split("</answer>", 1)[0].rstrip(" *_")
    block: list[str] = []
    for line in map(str.strip, lines[1:]):
        if in_block and _BLOCK_CLOSES.fullmatch(line):
            break
        if in_block:
            block.append(line)
        elif _BLOCK_OPENS.fullmatch(line):
            in_block = True
        elif _RULE.fullmatch(line) is None:
            return _BULLET.sub("", line.lstrip("_:"), count=1).split("</answer>", 1)[0]
    return " ".join(block)


def _is_heading(text: str, start: int) -> bool:
    """Whether what follows hashes are words with more text below: a heading, not an answer."""
    line, _, below = text[start : start + MAX_STATEMENT_CHARACTERS].partition("\n")
    return _HEADING.match(line) is not None and bool(below.strip())
