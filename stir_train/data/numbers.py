"""Exact numbers, and the grammar of one: digits however they are grouped, fractions, powers of ten.

Everything here is bounded: patterns are linear (possessive where they repeat), digit strings have a
length limit, and values are exact fractions, so that "equal" means equal.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

MAX_DIGITS, MAX_EXPONENT, MAX_NESTING = 1000, 400, 8

TokenKind = Literal["number", "word", "operator", "bracket", "comma", "mark", "command"]

_TOKEN = re.compile(
    r"""
    (?P<number>
        (?: (?<![0-9.,]) [1-9][0-9]{0,2}(?:,[0-9]{2,3})*,[0-9]{3}(?![0-9]|,[0-9])
          | (?<![0-9.,]) [1-9][0-9]{0,2}(?P<gap>[ _'])[0-9]{3}(?:(?P=gap)[0-9]{3})*+
            (?![0-9]|,[0-9]|\s?/)
          | [0-9]++ )
        (?:\.[0-9]++)?
        (?:[eE][-+]?[0-9]{1,4}(?![\w.]))?
      | (?<!\w) \.[0-9]++ (?:[eE][-+]?[0-9]{1,4}(?![\w.]))? )
    | (?P<word> [^\W\d_]+(?:['’][^\W\d_]*)*[0-9]*+ )
    | (?P<command> \\(?:[a-zA-Z]+|.) )
    | (?P<other> \S )
    """,
    re.VERBOSE | re.DOTALL,
)
_OPERATORS = "-+*/^%&|<>=_‰‱⌊⌋⌈⌉"

SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "hundreds": 10**2, "thousands": 10**3, "millions": 10**6, "billions": 10**9,
    "trillions": 10**12, "bn": 10**9, "grand": 10**3, "lakh": 10**5, "crore": 10**7,
}  # fmt: skip
_SUFFIXES = {
    "k": 10**3, "K": 10**3, "M": 10**6, "mn": 10**6, "B": 10**9, "bn": 10**9,
}  # fmt: skip
"""Letters that scale the digits they are glued to; `m` is a metre."""
SIGN_WORDS = {"minus": -1, "negative": -1, "plus": 1, "positive": 1}


@dataclass(frozen=True)
class Number:
    """An exact value; ``percent`` when a percent sign or word followed it."""

    value: Fraction
    percent: bool = False

    def __str__(self) -> str:
        """The value as a decimal if it has a short one, or as a fraction."""
        value = self.value
        rest = value.denominator
        for factor in (2, 5):
            while rest % factor == 0:
                rest //= factor
        short = rest == 1 and value.denominator < 10**12 and abs(value.numerator) < 10**24
        written = f"{Decimal(value.numerator) / value.denominator:f}" if short else str(value)
        return written + "%" * self.percent

    def equals(self, other: Number) -> bool:
        """Whether two numbers mean the same.

        When just one says percent, 50 % means 50 (the sign is a unit) or 0.5; but 0.5 % does not
        mean 0.5.
        """
        if self.percent == other.percent:
            return self.value == other.value
        percent, plain = (self, other) if self.percent else (other, self)
        if abs(percent.value) >= 1 and plain.value == percent.value:
            return True
        return plain.value == percent.value / 100


@dataclass(frozen=True)
class Ambiguous:
    """A phrase that names something else than one answer: several, an expression, an inequality."""


@dataclass(frozen=True)
class Token:
    """A piece of a phrase; ``glued`` when nothing stands between it and the piece before."""

    kind: TokenKind
    text: str
    glued: bool

    def is_text(self, *texts: str) -> bool:
        """Whether it is one of these, whatever its case."""
        return self.text.lower() in texts


def tokenize(text: str) -> list[Token]:
    """Cut a cleaned text into numbers, words, operators, brackets and marks."""
    tokens, end = [], 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        named: TokenKind
        if kind == "other":
            named = _kind_of_sign(match.group())
        elif match["number"] is not None:
            named = "number"
        else:
            named = "word" if kind == "word" else "command"
        tokens.append(Token(named, match.group(), glued=match.start() == end and end > 0))
        end = match.end()
    return tokens


def _kind_of_sign(sign: str) -> TokenKind:
    if sign in "()[]":
        return "bracket"
    if sign in ",;":
        return "comma"
    is_operator = sign in _OPERATORS or unicodedata.category(sign) in ("Sm", "Mn", "Me")
    return "operator" if is_operator else "mark"


def read_value(tokens: Sequence[Token], start: int) -> tuple[Number, int] | None:
    """Read the number that begins at a token.

    ``value = sign? (decimal | mixed | fraction | root | decimal × 10^n) scale? percent?``

    Returns:
        The number and the index of the token after it; None where none begins, or what begins is
        no number (a division by zero, the root of no square).
    """
    sign, at = 1, start
    if at < len(tokens) and (tokens[at].text in "+-" or tokens[at].is_text(*SIGN_WORDS)):
        text = tokens[at].text.lower()
        sign, at = SIGN_WORDS.get(text, -1 if text == "-" else 1), at + 1
    held = _magnitude(tokens, at, depth=0)
    if held is None:
        return None
    value, at = held
    factor, at = _scale(tokens, at)
    percent, at = _percent(tokens, at)
    return Number(sign * value * factor, percent), at


def _magnitude(tokens: Sequence[Token], at: int, depth: int) -> tuple[Fraction, int] | None:
    first = _atom(tokens, at, depth)
    if first is None:
        return None
    value, end = first
    if _text(tokens, end) == "/" and (bottom := _atom(tokens, end + 1, depth)) is not None:
        return None if bottom[0] == 0 else (value / bottom[0], bottom[1])
    if _is_plain_integer(tokens, at) and end == at + 1:
        mixed = _proper_fraction(tokens, end, depth)
        if mixed is not None:
            return value + mixed[0], mixed[1]
    if _text(tokens, end) in ("×", "*") and _text(tokens, end + 1) == "10":
        power = _power_of_ten(tokens, end + 1)
        return None if power is None else (value * power[0], power[1])
    if _text(tokens, at) == "10" and _text(tokens, end) == "^":
        return _power_of_ten(tokens, at)
    return value, end


def _atom(tokens: Sequence[Token], at: int, depth: int) -> tuple[Fraction, int] | None:
    """Digits, a root, or a number in round brackets."""
    if at >= len(tokens) or depth > MAX_NESTING:
        return None
    token = tokens[at]
    if token.kind == "number":
        value = _literal(token.text)
        return None if value is None else (value, at + 1)
    if token.text == "√":
        return _root(tokens, at + 1, depth)
    if token.text != "(":
        return None
    at += 1
    sign = 1
    if _text(tokens, at) in ("-", "+"):
        sign, at = (-1 if tokens[at].text == "-" else 1), at + 1
    inner = _magnitude(tokens, at, depth + 1)
    if inner is None or _text(tokens, inner[1]) != ")":
        return None
    return sign * inner[0], inner[1] + 1


def _root(tokens: Sequence[Token], at: int, depth: int) -> tuple[Fraction, int] | None:
    """An exact root of a fraction; its index stands in square brackets."""
    index = 2
    if _text(tokens, at) == "[" and _text(tokens, at + 2) == "]":
        index, at = int(tokens[at + 1].text), at + 3
    inner = _atom(tokens, at, depth)
    if inner is None or index < 2 or inner[0] < 0:
        return None
    roots = [_integer_root(part, index) for part in inner[0].as_integer_ratio()]
    top, bottom = roots
    return None if top is None or bottom is None else (Fraction(top, bottom), inner[1])


def _integer_root(value: int, index: int) -> int | None:
    """The whole root, by bisection; None if there is none."""
    low, high = 0, 1 << (value.bit_length() // index + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**index < value:
            low = middle + 1
        else:
            high = middle
    return low if low**index == value else None


def _proper_fraction(tokens: Sequence[Token], at: int, depth: int) -> tuple[Fraction, int] | None:
    """The fraction of a mixed number: both parts positive, the lower one larger."""
    if at >= len(tokens) or (tokens[at].kind == "number" and tokens[at].glued):
        return None
    top = _atom(tokens, at, depth)
    if top is None or _text(tokens, top[1]) != "/":
        return None
    bottom = _atom(tokens, top[1] + 1, depth)
    if bottom is None or not 0 < top[0] < bottom[0]:
        return None
    return top[0] / bottom[0], bottom[1]


def _power_of_ten(tokens: Sequence[Token], at: int) -> tuple[Fraction, int] | None:
    """``10^n`` or ``10^(-n)``."""
    if _text(tokens, at + 1) != "^":
        return None
    at += 2
    bracketed = _text(tokens, at) == "("
    at += bracketed
    sign = 1
    if _text(tokens, at) in ("-", "+"):
        sign, at = (-1 if tokens[at].text == "-" else 1), at + 1
    if not _is_plain_integer(tokens, at) or len(tokens[at].text) > len(str(MAX_EXPONENT)):
        return None
    exponent = sign * int(tokens[at].text)
    if abs(exponent) > MAX_EXPONENT or (bracketed and _text(tokens, at + 1) != ")"):
        return None
    return Fraction(10) ** exponent, at + 1 + bracketed


def _literal(text: str) -> Fraction | None:
    digits, _, exponent = re.sub("[ _',]", "", text).lower().partition("e")
    if len(digits) > MAX_DIGITS or abs(int(exponent or 0)) > MAX_EXPONENT:
        return None
    return Fraction(digits) * Fraction(10) ** int(exponent or 0)


def _scale(tokens: Sequence[Token], at: int) -> tuple[int, int]:
    factor = 1
    if at < len(tokens) and tokens[at].glued and tokens[at].text in _SUFFIXES:
        return _SUFFIXES[tokens[at].text], at + 1
    while at < len(tokens) and tokens[at].is_text(*SCALES) and factor < 10**12:
        factor, at = factor * SCALES[tokens[at].text.lower()], at + 1
    return factor, at


def _percent(tokens: Sequence[Token], at: int) -> tuple[bool, int]:
    if at >= len(tokens):
        return False, at
    if tokens[at].is_text("%", "percent", "pct"):
        return True, at + 1
    following = at + 1 < len(tokens) and tokens[at + 1]
    if following and (
        (tokens[at].is_text("per") and following.is_text("cent"))
        or (tokens[at].is_text("percentage") and following.is_text("point", "points"))
    ):
        return True, at + 2
    return False, at


def _is_plain_integer(tokens: Sequence[Token], at: int) -> bool:
    return at < len(tokens) and tokens[at].text.isdecimal()


def _text(tokens: Sequence[Token], at: int) -> str:
    return tokens[at].text if at < len(tokens) else ""
