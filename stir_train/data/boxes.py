"""Boxes in LaTeX: what one holds, and whether it is the answer alone or a part of something larger."""

from __future__ import annotations

import re

from stir_train.data.denials import is_no_number
from stir_train.data.number_words import UNITS

BOX = re.compile(r"\\f?box(?:ed)?\s?\{|\\boxed\s(?=\S)")
MAX_BOXES = 64
"""Boxes looked at, from the last."""
MAX_BOX_CHARACTERS = 2000
MAX_NEIGHBOUR_CHARACTERS = 80
"""How far around a box, on its line, is looked at."""

_MARKUP = re.compile(r"[-=]+>|\*\*|__|</?[a-zA-Z]{1,10}>")
_COMMANDS = (
    r"pm|mp|times|cdot|div|ast|geq?|geqslant|leq?|leqslant|gt|lt|neq?|not|in|notin|log|ln|lg|exp|sin|cos|tan"
    r"|sqrt(?:\[[^\]]{0,9}\])?|[dtc]?frac|binom|x?cancel|sout|overline|bar|hat|lfloor|lceil"
)
_LARGER_BEFORE = re.compile(
    rf"""
    (?: (?:^|[\s=($,])[-−]                 # a sign
      | [0-9a-zA-Z)\}}$]\s*[-+*/<>]\s*\$?\s*(?<![a-z]\s[-*/]\s)   # a calculation
      | [\^≤≥≠±×·÷√]\s*
      | \\(?:{_COMMANDS})\s*(?:\{{[^{{}}]{{0,60}}\}}\s*)?\$?[\{{(]?\s*
      | \}}\s*\{{\s*                     # the lower half of a fraction
      | [0-9]
      | (?<![a-zA-Z\\])[b-z]
    )$
    """,
    re.VERBOSE,
)
_LARGER_BEHIND = re.compile(
    r"""
    (?:\\[,;:!\ ]|\s)*+
    (?: \^(?!\s*\{?\s*\\circ) | [≤≥≠±×·÷√]
      | [-+*/]\s*(?:[0-9(]|\\(?!text|mathrm|\)|\]))
      | [<>]\s*[0-9]
      | \\(?:pm|mp|times|cdot|div|ast|geq?|geqslant|leq?|leqslant|gt|lt|neq?|sqrt|pi|log|ln|sin|cos|tan
          |bmod|pmod|mod|ldots|dots|cup|cap|vee|lor|wedge|infty|alpha|beta|theta|lambda)(?![a-zA-Z])
      | (?:\\text\{|[\s$])*(?:hundred|thousand|million|billion|trillion|dozen|lakh|crore)s?\b
      | \$?\s*\?\s+(?:no|nope|not|hmm+|wait)\b
    )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_GLUED_LETTER = re.compile(r"([a-zA-Z])(?![a-zA-Z])")
_JOINT = re.compile(
    r"(?:[\s$;]|\\quad|\\text\s?\{|\\[,;]|,)*(?:,|;|/|&|\bor\b|\band\b|\\lor|\\vee|\\cup)"
    r"(?:[\s$}]|\\quad|\\[,;])*(?:[a-zA-Z](?:_\{?\w\}?)?\s*=\s*)?"
)
"""What stands between two boxes that are two answers."""
_CLAUSE_END = re.compile(r"[.;:!?]\s")


def boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{}``; None where there is none."""
    found = list(BOX.finditer(text))
    return box_content(text, found[-1].end()).strip() if found else None


def box_content(text: str, start: int) -> str:
    """What a box holds, braces matched; an unclosed one reaches to its line's end."""
    window = text[start : start + MAX_BOX_CHARACTERS]
    if text[start - 1] != "{":
        return re.split(r"[\s$]", window, maxsplit=1)[0]
    depth = 1
    for index, character in enumerate(window):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return window[:index]
    return window.split("\n", 1)[0]


def parts_of_larger(text: str) -> set[int]:
    """Where boxes begin that are not the answer alone.

    Such a box is a factor, an argument, a bound, one of several answers, or is denied: ``2\\boxed{3}``,
    ``x \\ge \\boxed{3}``, ``\\boxed{3}`` or ``\\boxed{4}``, "not ``\\boxed{3}``".
    """
    parts: set[int] = set()
    before_it: tuple[int, int, str] | None = None
    for match in list(BOX.finditer(text))[-MAX_BOXES:]:
        content = box_content(text, match.end())
        end = match.end() + len(content)
        end += text[match.end() - 1] == "{" and text[end : end + 1] == "}"
        last_end = before_it[1] if before_it else 0
        if match.start() < last_end:
            continue  # a box within a box
        since = max(last_end - 1, match.start() - MAX_NEIGHBOUR_CHARACTERS, 0)
        before = text[since : match.start()]
        behind = text[end : end + MAX_NEIGHBOUR_CHARACTERS].split("\n", 1)[0]
        behind = BOX.split(behind, maxsplit=1)[0]
        if _is_part(before.rsplit("\n", 1)[-1], behind):
            parts.add(match.start())
        between = text[last_end : match.start()]
        if before_it and content.strip() != before_it[2] and _JOINT.fullmatch(between[:40]):
            parts |= {before_it[0], match.start()}
        before_it = (match.start(), end, content.strip())
    return parts


def _is_part(before: str, behind: str) -> bool:
    before = _MARKUP.sub(" ", before)
    letter = _GLUED_LETTER.match(behind)
    if letter and letter[1] not in UNITS:
        return True
    if _LARGER_BEFORE.search(before) or _LARGER_BEHIND.match(behind):
        return True
    clause = _CLAUSE_END.split(before)[-1]
    said = re.sub(r"[0-9]", "#", clause), re.sub(r"[0-9]", "#", _CLAUSE_END.split(behind)[0])
    return is_no_number(re.sub(r"[$*]|\\[()\[\]]", " ", f"{said[0]}0{said[1]}"))
