"""Read the one number that a phrase states; whatever else stands in the phrase must be words.

A phrase is read whole. Around its number it may have words, a unit, an equation whose other sides
are names or calculations, a remark in brackets, a reason after it. A second number, a variable, an
operator, an inequality or a denial makes it something else than one number: `Ambiguous`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from stir_train.data.denials import is_no_number
from stir_train.data.number_words import (
    APPLIED,
    ATTACHED_AFTER,
    ATTACHED_BEFORE,
    BESIDE_WORDS,
    IN_WORDS,
    LENGTHS,
    NUMBER_WORDS,
    OPERATION_AFTER,
    OPERATION_BEFORE,
    UNITS,
)
from stir_train.data.numbers import Ambiguous, Number, Token, read_value, tokenize
from stir_train.data.phrase_text import about_the_number, normalise

_LABELS = (
    "step|note|part|question|problem|example|section|case|method|approach|figure|table|equation|eq"
    "|chapter|page|solution|exercise|hint|remark|stage|phase|appendix|footnote|line"
)
_LABEL = re.compile(rf"\W*(?:{_LABELS})s?\s*#?\s*[0-9]+(?![0-9])", re.IGNORECASE)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|cannot)|n['\u2019]t)\s+(?:(?:be|the|an?|answer|exactly|just)\s*){1,3}$",
    re.IGNORECASE,
)
_CALCULATING = "+-*/^×÷%√:_&"


def answer_number(phrase: str) -> Number | Ambiguous | None:
    """The one number that a cleaned phrase states; of ``3 * 4 = 12`` it is what the last sign gives.

    Returns:
        None where the phrase holds no value at all: words, a heading such as "Step 2".
    """
    if _LABEL.match(phrase):
        return None
    phrase = normalise(phrase)
    if is_no_number(phrase) or IN_WORDS.fullmatch(phrase):
        return Ambiguous()
    if BESIDE_WORDS.search(phrase) or APPLIED.search(phrase):
        return Ambiguous()
    phrase = about_the_number(phrase)
    exact, sign, rounded = phrase.partition("≈")
    tokens = tokenize(exact)
    if sign and not any(token.kind == "number" for token in tokens):
        tokens = tokenize(rounded)
    return _read_equation(tokens)


def last_number(text: str) -> Number | Ambiguous | None:
    """The number that a cleaned text without a statement ends with: the last of its last line with one."""
    for line in reversed(text.splitlines()):
        tokens = tokenize(normalise(line))
        numbers = [i for i, token in enumerate(tokens) if token.kind == "number"]
        if numbers:
            start, end = _run_around(tokens, numbers[-1])
            if _DENIED_BEFORE.search(_written(tokens[max(start - 5, 0) : start])):
                return Ambiguous()
            return answer_number(_written(tokens[start:end]))
    return None


def _written(tokens: Sequence[Token]) -> str:
    return "".join(token.text if token.glued else f" {token.text}" for token in tokens)


def _run_around(tokens: Sequence[Token], at: int) -> tuple[int, int]:
    """Where the run of tokens begins and ends that is the number at ``at`` with all that belongs to it: signs, brackets, variables, "or more"."""
    start, end = at, at + 1
    while start > 0 and _belongs(tokens, start - 1):
        start -= 1
    while end < len(tokens) and (
        _belongs(tokens, end)
        or (
            tokens[end].kind == "word"
            and (tokens[end].glued or tokens[end].is_text(*ATTACHED_AFTER))
        )
    ):
        end += 1
    if (opening := _opening_of(tokens, start, end)) is not None:
        start = opening
    while end > at + 1 and tokens[end - 1].text in ")]" and _closing(tokens[start:end], 0) is None:
        end -= 1  # it closes a bracket with words in it
    is_dash = tokens[start].text in "-+*" and not tokens[start + 1].glued if start < at else False
    return start + is_dash, end


def _belongs(tokens: Sequence[Token], at: int) -> bool:
    token = tokens[at]
    if token.kind == "word":
        if token.is_text(*ATTACHED_BEFORE) or token.text.endswith(("n't", "n’t")):
            return True
        has_power = at + 1 < len(tokens) and tokens[at + 1].text == "^"
        return has_power or (token.text not in "aAI" and _is_variable(tokens, at))
    if token.kind in ("mark", "comma"):
        # A time, a version, a list without blanks.
        following = at + 1 < len(tokens) and tokens[at + 1]
        return bool(following and following.glued and following.kind == "number" and token.glued)
    return True


def _opening_of(tokens: Sequence[Token], start: int, end: int) -> int | None:
    """Where the bracket opens that closes in a run, if nothing but numbers and signs is in it."""
    depth = 0
    for at in range(end - 1, -1, -1):
        token = tokens[at]
        if token.kind == "word" and not _is_variable(tokens, at):
            return None
        if token.kind == "bracket":
            depth += 1 if token.text in ")]" else -1
            if depth == 0 and at < start:
                return at
        elif depth == 0 and at < start:
            return None
    return None


def _read_equation(tokens: Sequence[Token]) -> Number | Ambiguous | None:
    """Read the sides of an equation: the last that is a number counts, if all the others are clear."""
    sides = _sides(tokens)
    readings = [_read_side(side) for side in sides]
    if len(sides) > 1 and not sides[-1]:
        return Ambiguous()  # "3 ="
    if len(sides) == 1:
        only = readings[0]
        return Ambiguous() if only in ("name", "calculation") else only  # type: ignore[return-value]
    if any(isinstance(reading, Ambiguous) for reading in readings):
        return Ambiguous()
    for side, reading in zip(sides[:-1], readings, strict=False):
        if reading is not None and reading != "name" and any(t.kind == "comma" for t in side):
            return Ambiguous()  # "x = 18, y = 3"
    numbers = [reading for reading in readings if isinstance(reading, Number)]
    if _are_at_odds(sides, readings):
        return Ambiguous()
    if numbers:
        return numbers[-1]
    return Ambiguous() if any(readings) else None


def _are_at_odds(sides: Sequence[Sequence[Token]], readings: Sequence[Reading]) -> bool:
    """Whether bare numbers are said to be equal that are not, not even when rounded: "2 = 5"."""
    bare = [
        reading.value / (100 if reading.percent else 1)
        for side, reading in zip(sides, readings, strict=True)
        if isinstance(reading, Number) and not any(token.kind == "word" for token in side)
    ]
    return any(100 * abs(a - b) > max(abs(a), abs(b)) for a, b in pairwise(bare))


def _sides(tokens: Sequence[Token]) -> list[list[Token]]:
    """Cut at the equals signs that stand in no brackets."""
    sides: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        if token.kind == "bracket":
            depth += 1 if token.text in "([" else -1
        if token.text == "=" and depth <= 0:
            sides.append([])
        else:
            sides[-1].append(token)
    return sides


Reading = Number | Ambiguous | str | None


def _read_side(tokens: Sequence[Token]) -> Reading:
    """A number; or ``"name"`` or ``"calculation"``, which may stand beside one; None for words."""
    tokens = _without_applications(tokens)
    while len(tokens) > 2 and tokens[0].text in "([" and _closing(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    if not any(token.kind == "number" for token in tokens):
        if any(t.kind == "operator" and t.text not in _CALCULATING for t in tokens):
            return Ambiguous()
        is_symbolic = any(
            token.kind in ("operator", "command") or _is_variable(tokens, i)
            for i, token in enumerate(tokens)
        )
        return "name" if is_symbolic else None
    found = _one_number(tokens)
    if found is not None:
        return found
    is_calculation = all(
        token.kind in ("number", "bracket")
        or (token.kind == "word" and not _is_variable(tokens, i))
        or token.text in _CALCULATING
        for i, token in enumerate(tokens)
    )
    return (
        "calculation"
        if is_calculation and any(t.kind == "operator" for t in tokens)
        else Ambiguous()
    )


def _one_number(tokens: Sequence[Token]) -> Number | None:
    """The number of a side that is nothing but words around one."""
    for start in range(len(tokens)):
        value = read_value(tokens, start)
        if value is None:
            if tokens[start].kind in ("number", "operator", "command") or (
                _is_variable(tokens, start)
            ):
                return None
            continue
        number, end = value
        before, after = tokens[:start], tokens[end:]
        opened = [t.text for t in before if t.kind == "bracket"]
        if before and tokens[start].glued and before[-1].kind == "word":
            return None
        if not _may_stand_before(before) or not _may_stand_after(after, number, opened):
            return None
        return number
    return None


def _may_stand_before(tokens: Sequence[Token]) -> bool:
    near = [token.text.lower() for token in tokens[-2:] if token.kind == "word"]
    if any(word in OPERATION_BEFORE for word in near):
        return False
    opening = [token for token in tokens if token.kind == "bracket"]
    return len(opening) <= 1 or _closing(tokens, tokens.index(opening[0])) is not None


def _may_stand_after(tokens: Sequence[Token], number: Number, opened: Sequence[str]) -> bool:
    """Whether what follows a number is a unit, words and remarks."""
    at, num_open = 0, len([b for b in opened if b in "(["]) - len([b for b in opened if b in ")]"])
    words = 0
    while at < len(tokens):
        token = tokens[at]
        if token.kind == "bracket":
            if token.text in ")]" and num_open > 0:
                num_open, at = num_open - 1, at + 1
                continue
            closing = _closing(tokens, at)
            if closing is None or not _is_remark(tokens[at : closing + 1], number):
                return False
            at = closing + 1
            continue
        if token.text == "-" and words and not token.glued and _has_words(tokens[at + 1 :]):
            return True  # an aside
        step = _tail_step(tokens, at, words)
        if step == 0:
            return False
        words += token.kind == "word"
        at += step
    return num_open <= 0


def _tail_step(tokens: Sequence[Token], at: int, words: int) -> int:
    """How many tokens at ``at`` are harmless behind a number; 0 if they change what it says."""
    token = tokens[at]
    following = tokens[at + 1] if at + 1 < len(tokens) else None
    if token.kind == "word":
        return int(_is_harmless_word(tokens, at, is_first=words == 0))
    if token.kind == "comma":
        return int(following is None or not following.glued or following.kind == "mark")
    if token.kind == "mark":
        return 1
    is_unit_sign = following is not None and following.kind == "word"
    if token.text in "/-" and token.kind == "operator":
        return int(is_unit_sign and (token.text == "/" or bool(following and following.glued)))
    if token.text == "^" and words and following is not None and following.kind == "number":
        return 2  # m^2
    return int(token.text in "&_%" and is_unit_sign)


def _is_harmless_word(tokens: Sequence[Token], at: int, *, is_first: bool) -> bool:
    text = tokens[at].text
    word = text.lower()
    if word in OPERATION_AFTER or (is_first and word in NUMBER_WORDS):
        return False
    if is_first and word in ("and", "a") and _next_word(tokens, at) in NUMBER_WORDS | {"a"}:
        return False
    name = text.rstrip("0123456789")
    if text in UNITS or (name in LENGTHS and text.removeprefix(name) in ("2", "3")):
        return True
    if name != text and (len(name) < 2 or tokens[at].glued):
        return False
    is_hyphenated = at > 0 and tokens[at - 1].kind == "operator"
    if tokens[at].glued and text.isascii() and len(text) <= (2 if is_hyphenated else 3):
        return False
    return not _is_variable(tokens, at)


def _is_variable(tokens: Sequence[Token], at: int) -> bool:
    """Whether a word is a variable: one letter, or two or three without a vowel."""
    token = tokens[at]
    name = token.text.rstrip("0123456789'’")
    if token.kind != "word" or token.text in UNITS:
        return False
    if len(name) == 1:
        # Letters of scripts without case are whole words.
        if not (name.isascii() or name.lower() != name.upper()):
            return False
        following = tokens[at + 1] if at + 1 < len(tokens) else None
        beside_words = following is not None and following.kind in ("word", "number")
        return not (name in "aAI" and beside_words and not (following and following.glued))
    return len(name) <= 3 and name.isascii() and not re.search("[aeiouyAEIOUY]", name)


def _is_remark(tokens: Sequence[Token], number: Number) -> bool:
    """Whether a bracket behind a number holds only words, or the same number once more."""
    inner = tokens[1:-1]
    reading = _read_equation(inner)
    if isinstance(reading, Number):
        return reading.equals(number) and not tokens[0].glued
    return reading is None


def _without_applications(tokens: Sequence[Token]) -> list[Token]:
    """``f(2)`` and ``P(A)`` are names: leave the brackets glued to a letter out."""
    kept: list[Token] = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        closing = None
        if token.text == "(" and token.glued and kept and kept[-1].kind in ("word", "command"):
            closing = _closing(tokens, at)
            if closing is not None and _read_equation(tokens[at + 1 : closing]) is None:
                closing = None  # "dollar(s)"
        at = at + 1 if closing is None else closing + 1
        if closing is None:
            kept.append(token)
        else:
            # What is applied is a symbol however it is spelled.
            kept[-1] = Token("command", kept[-1].text, glued=kept[-1].glued)
    return kept


def _closing(tokens: Sequence[Token], opening: int) -> int | None:
    depth = 0
    for at in range(opening, len(tokens)):
        if tokens[at].kind == "bracket":
            depth += 1 if tokens[at].text in "([" else -1
            if depth == 0:
                return at
    return None


def _has_words(tokens: Sequence[Token]) -> bool:
    return any(t.kind == "word" and not _is_variable(tokens, i) for i, t in enumerate(tokens))


def _next_word(tokens: Sequence[Token], at: int) -> str:
    return tokens[at + 1].text.lower() if at + 1 < len(tokens) else ""
