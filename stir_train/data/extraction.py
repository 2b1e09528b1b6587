"""Find where a response states its answer; the last statement first, thinking set aside."""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_SEARCHED_CHARACTERS = 1 << 16
"""Only the end of a longer text is searched."""
MAX_STATEMENTS = 16
"""Statements looked at, from the last: a text with ten thousand boxes costs no more."""
MAX_STATEMENT_CHARACTERS = 2000
THINK_END = "</think>"

_PHRASES = re.compile(
    r"""
    \banswers?(?:[ ]+(?:to|for)[ ]+[^.\n:=]{1,80})?+ \s{0,2}[*_]{0,3}
        (?: \s+(?:is|are|would[ ]be|should[ ]be|must[ ]be|will[ ]be|comes[ ]to) \b [*_]{0,3}:? | \s?[:=]\s? )
    | \#\#\#\#
    | <answer>
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BOX = re.compile(r"\\f?box(?:ed)?\s?\{|\\boxed\s(?=\S)")


def after_marker(text: str, marker: str) -> str:
    """What follows the last marker on its line, without a final full stop; empty if none.

    An empty marker takes the whole text.
    """
    tail = text[-MAX_SEARCHED_CHARACTERS:]
    if not marker:
        return tail.strip()
    _, found, rest = tail.rpartition(marker)
    return rest.lstrip(" ").split("\n", 1)[0].strip().removesuffix(".").strip() if found else ""


def statements(text: str, marker: str) -> Iterator[str]:
    """Yield answer phrases, best first.

    After ``</think>`` come the statements of the final part, last first, then those inside the
    thinking. A statement is what follows the configured marker, ``####``, ``<answer>`` or "the
    answer is", or stands in ``\\boxed{}``.
    """
    for part in _parts(text):
        found = [(m.start(), _line_after(part, m.end())) for m in _PHRASES.finditer(part)]
        if marker:
            found += [
                (m.start(), _line_after(part, m.end()))
                for m in re.finditer(re.escape(marker), part)
            ]
        found += [(start, content) for start, content in _boxes(part)]
        # Of two that begin together, the shorter has less around it.
        found.sort(key=lambda item: (item[0], -len(item[1])))
        for _, content in reversed(found[-MAX_STATEMENTS:]):
            if content.strip():
                yield content[:MAX_STATEMENT_CHARACTERS].strip()


def final_part(text: str) -> str:
    """What follows the thinking, or the whole text if nothing does; bounded."""
    return next((part for part in _parts(text) if part.strip()), "")


def _parts(text: str) -> list[str]:
    thinking, end, final = text.rpartition(THINK_END)
    if not end:
        return [text[-MAX_SEARCHED_CHARACTERS:]]
    return [final[-MAX_SEARCHED_CHARACTERS:], thinking[-MAX_SEARCHED_CHARACTERS:]]


def _line_after(text: str, start: int) -> str:
    """The rest of the line, or the next line that holds something."""
    rest = text[start : start + MAX_STATEMENT_CHARACTERS].lstrip(" *_:\n\r\t")
    return rest.split("\n", 1)[0].split("</answer>", 1)[0]


def _boxes(text: str) -> list[tuple[int, str]]:
    """The last boxes with their content, braces matched; an unclosed one reaches to its line's end."""
    matches = list(_BOX.finditer(text))[-MAX_STATEMENTS:]
    return [(match.start(), _box_content(text, match)) for match in matches]


def _box_content(text: str, match: re.Match[str]) -> str:
    window = text[match.end() : match.end() + MAX_STATEMENT_CHARACTERS]
    if not match.group().endswith("{"):
        return re.split(r"[\s$]", window, maxsplit=1)[0]
    depth = 1
    for index, character in enumerate(window):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return window[:index]
    return window.split("\n", 1)[0]


def boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{}``; None where there is none."""
    found = _boxes(text[-MAX_SEARCHED_CHARACTERS:])
    return found[-1][1].strip() if found else None
