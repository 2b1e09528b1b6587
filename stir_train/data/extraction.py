"""Find where a response states its answer: the last statement first, thinking set aside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from stir_train.config.inputs import BOX_MARKER

MAX_SEARCHED_CHARACTERS = 1 << 16
"""Only the end of a longer text is searched."""
MAX_STATEMENTS = 16
"""Statements looked at, from the last: a text with ten thousand boxes costs no more."""
MAX_MARKERS = 64
"""Markers looked at, from the last, those without a value included."""
MAX_STATEMENT_CHARACTERS = 2000
_THINK = r"think(?:ing)?|thought|reasoning|reflection"
_THINK_END = re.compile(rf"</\s*(?:{_THINK})\s*>|\[/THINK\]|◁/think▷", re.IGNORECASE)
_THINK_START = re.compile(rf"<\s*(?:{_THINK})\s*>|\[THINK\]|◁think▷", re.IGNORECASE)

MarkerKind = Literal["marker", "phrase", "hashes", "box"]

_PHRASES = re.compile(
    r"""
    \banswers?(?:[ ]+(?:to|for)[ ]+[^.\n:=]{1,80}?)? \s{0,2}[*_]{0,3}
        (?: \s+(?:is|are|would[ ]be|should[ ]be|must[ ]be|will[ ]be|comes[ ]to) \b [*_]{0,3}:? | \s?[:=]\s? )
    | <answer>
    | ^[#*_>\ ]{0,10}(?:the\ )?(?:final\ )?answer[*_\ ]{0,4}$
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_HASHES = re.compile(r"(?<!#)#{4,6}(?!#)")
_HEADING = re.compile(r"\W{0,4}(?:[a-zA-Z]{2,}|[0-9]+[.)]\s+[a-zA-Z])")
_BOX = re.compile(r"\\f?box(?:ed)?\s?\{|\\boxed\s(?=\S)")
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
    """

    text: str
    is_marked: bool
    in_box: bool = False


def after_marker(text: str, marker: str) -> str:
    """What follows the last marker that something follows, without a final full stop; empty if none.

    An empty marker takes the whole text.
    """
    tail = text[-MAX_SEARCHED_CHARACTERS:]
    if not marker:
        return tail.strip()
    if marker == BOX_MARKER:
        return next((s.text for s in statements(tail, marker) if s.is_marked), "")
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
    parts = (reply[-MAX_SEARCHED_CHARACTERS:], thinking[-MAX_SEARCHED_CHARACTERS:])
    return [part for part in parts if part.strip()]


def statements(part: str, marker: str) -> Iterator[Statement]:
    """Yield the statements of a part, best first: the last, and of two the one with less around it.

    A statement is what follows the configured marker, ``####``, ``<answer>`` or "the answer is", on
    its line or in the line or block below, or stands in ``\\boxed{}``. A marker without a value is
    no statement, and neither is a heading with text below it.
    """
    found = [(match.start(), match.end(), "phrase") for match in _PHRASES.finditer(part)]
    found += [(match.start(), match.end(), "hashes") for match in _HASHES.finditer(part)]
    found += [(match.start(), match.end(), "box") for match in _BOX.finditer(part)]
    if marker and marker != BOX_MARKER:
        places = re.finditer(re.escape(marker), part)
        found += [(match.start(), match.end(), "marker") for match in places]
    held = []
    for start, end, kind in sorted(found)[-MAX_MARKERS:]:
        text = _box_content(part, end) if kind == "box" else _value_after(part, end)
        if kind == "hashes" and _is_heading(part, end):
            continue
        is_marked = kind == ("box" if marker == BOX_MARKER else "marker")
        if _EMPTY_BOX.sub("", text).strip(" $"):
            held.append((start, -len(text), is_marked, text.strip(), kind == "box"))
    for _, _, is_marked, text, in_box in sorted(held)[: -MAX_STATEMENTS - 1 : -1]:
        yield Statement(text[:MAX_STATEMENT_CHARACTERS], is_marked, in_box)


def boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{}``; None where there is none."""
    tail = text[-MAX_SEARCHED_CHARACTERS:]
    found = list(_BOX.finditer(tail))
    return _box_content(tail, found[-1].end()).strip() if found else None


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


def _box_content(text: str, start: int) -> str:
    """What a box holds, braces matched; an unclosed one reaches to its line's end."""
    window = text[start : start + MAX_STATEMENT_CHARACTERS]
    if text[start - 1] != "{":
        return re.split(r"[\s$]", window, maxsplit=1)[0]
    depth = 1
    for index, character in enumerate(window):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return window[:index]
    return window.split("\n", 1)[0]
