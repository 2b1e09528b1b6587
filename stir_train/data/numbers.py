"""Read one exact number from a phrase, or say that the phrase holds none, or more than one.

Everything here is bounded: patterns are linear (possessive where they repeat), digit strings have a
length limit, and values are exact fractions, so that "equal" means equal.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

MAX_DIGITS, MAX_EXPONENT = 1000, 400

_VULGAR = {
    chr(c): unicodedata.normalize("NFKC", chr(c))
    for c in [*range(0xBC, 0xBF), *range(0x2150, 0x215F)]
}
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True))
_MINUS = dict.fromkeys(map(ord, "−–‒﹣－"), "-")
_CURRENCY = "$€£¥₹₽"
_LATEX = (
    (
        re.compile(r"\\(?:text|textbf|mathrm|mathbf|operatorname|mbox)\s*\{([^{}]{0,200})\}"),
        r" \1 ",
    ),
    (re.compile(r"(?<=[0-9])(?=\\[dtc]?frac)"), " "),
    (re.compile(r"\\[dtc]?frac\s*\{\s*([^{}]{1,60})\s*\}\s*\{\s*([^{}]{1,60})\s*\}"), r"\1/\2 "),
    (re.compile(r"\\[dtc]?frac\s*([0-9])\s*([0-9])"), r"\1/\2 "),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), "×"),
    (re.compile(r"\\(?:approx|simeq|doteq)(?![a-zA-Z])"), "≈"),
    (re.compile(r"\\(?:left|right|displaystyle|degree|circ)(?![a-zA-Z])"), " "),
    (re.compile(r"(?<=[0-9])(?:\{,\}|\\[,!])(?=[0-9])"), ""),
    (re.compile(r"\\[,;!: ]"), " "),
    (re.compile(r"\\([%$#&])"), r"\1"),
    (re.compile(r"\^\s*\{\s*([^{}]{1,20})\s*\}"), r"^\1"),
)
_BOLD_DIGITS = re.compile(r"(?<=[0-9)])\*\*(?=[0-9(-])")
_NARROW_GROUPS = re.compile(r"(?<=[0-9])[\u00a0\u202f\u2009](?=[0-9]{3}(?![0-9]))")
_DOLLARS_CENTS = re.compile(r"([0-9]++) dollars?,? and ([0-9]{1,2}) cents?")

_NUMBER = re.compile(
    r"""
    (?<![\w.,^/:]) (?:(?<![)\]][-+])) (?P<sign>[-+](?=[0-9.]))?
    (?P<whole> [0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}(?![0-9]) | [0-9]++ )?
    (?P<decimals> \.[0-9]++ )?
    """,
    re.VERBOSE,
)
_EXPONENT = re.compile(
    r"[eE]([-+]?[0-9]{1,4})(?![0-9.\w])|\s?[×xX*]\s?10\s?\^\s?\(?([-+]?[0-9]{1,4})\)?"
)
_DENOMINATOR = re.compile(r"\s?/\s?([0-9]++(?:\.[0-9]++)?)")
_MIXED = re.compile(r"\s+([0-9]++)\s?/\s?([0-9]++)")
_SCALE = re.compile(r"\s?(thousand|million|billion|trillion)\b")
_PERCENT = re.compile(r"\s?(?:%|per ?cent\b|percentage points?\b)")
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_POWER_OF_TEN = re.compile(r"\^\(?([-+]?[0-9]{1,4})\)?")
_GLUED = re.compile(r"\s?[-+*/×÷^:]\s?[0-9]|[a-zA-Z]*[0-9]|\.[0-9]|,[0-9]")
_DENIED = re.compile(r"\bnot\s+[-+]?[0-9][0-9.,/]*+(?:,?\s+but\b|,)")
_ASSIGNED = re.compile(r"\b([a-zA-Z])\s?=\s?[-+]?[0-9]")
_CONTINUES = re.compile(
    r"""
    \s?[-+*/×÷^:]\s?[$(]?[0-9.]        # an expression, a range, a ratio, a time, a date
    | \s?(?:to|or|and|through)\s+[-$]?[0-9]
    | ,\s?[-$]?[0-9]                     # a list
    | [a-zA-Z]*[0-9] | \.[0-9]           # glued to more digits: a version, a serial number
    | \s?(?:hours?|hrs?|h|minutes?|mins?|days?|weeks?|months?|years?|feet|foot|ft|dollars?|pounds?
        |lbs?|kilograms?|kg|kilomet(?:er|re)s?|km|met(?:er|re)s?|m),?\s+(?:and\s+)?[-$]?[0-9]
    | \s+and\s+a\s+(?:half|quarter|third)
    """,
    re.VERBOSE,
)


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
    """A phrase that names several answers where one was asked for."""


def clean(text: str) -> str:
    """Write LaTeX, Unicode digits, signs and fractions in plain characters; drop invisible ones."""
    text = "".join(
        f" {_VULGAR[c]} ".replace("⁄", "/") if c in _VULGAR else c
        for c in text
        if unicodedata.category(c) != "Cf"
    )
    text = re.sub(
        "[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: "^" + "".join(_SUPERSCRIPTS[c] for c in m.group()), text
    )
    text = _NARROW_GROUPS.sub("", text)
    text = unicodedata.normalize("NFKC", text).translate(_MINUS)
    text = "".join(
        str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text
    )
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = _BOLD_DIGITS.sub("^", text)
    text = re.sub(r"\*\*|__|`|~", " ", text)
    text = re.sub(rf"[{_CURRENCY}](?=[-.]?[0-9])", "", text)
    text = re.sub(rf"[{_CURRENCY}{{}}]", " ", text)
    return _DOLLARS_CENTS.sub(lambda m: f"{m[1]}.{int(m[2]):02d} dollars", text)


def answer_number(phrase: str) -> Number | Ambiguous | None:
    """The number that a cleaned phrase states; of ``3 * 4 = 12`` it is what the last sign gives."""
    phrase = _DENIED.sub(" ", phrase.partition("≈")[0])
    if len(set(_ASSIGNED.findall(phrase))) > 1:
        return Ambiguous()
    readings = [_first_number(part) for part in reversed(phrase.split("="))]
    numbers = [reading for reading in readings if isinstance(reading, Number)]
    if numbers:
        return numbers[0]
    return Ambiguous() if any(readings) else None


def last_number(text: str) -> Number | None:
    """The last number of a cleaned text that is no part of a range, ratio, date or list."""
    for line in reversed(text.splitlines()):
        numbers = [n for part in line.split("=") for n in _whole_numbers(part)]
        if numbers:
            return numbers[-1]
    return None


def _first_number(part: str) -> Number | Ambiguous | None:
    for match in _NUMBER.finditer(part):
        parsed = _complete(match, part)
        if parsed is not None:
            number, end = parsed
            return Ambiguous() if number is None or _CONTINUES.match(part, end) else number
    return None


def _whole_numbers(part: str) -> list[Number]:
    numbers, position = [], 0
    for match in _NUMBER.finditer(part):
        parsed = _complete(match, part) if match.start() >= position else None
        if parsed is not None:
            number, position = parsed
            if number is not None and not _GLUED.match(part, position):
                numbers.append(number)
    return numbers


def _complete(match: re.Match[str], text: str) -> tuple[Number | None, int] | None:
    """Read on after the digits.

    Returns the number and where it ends; no number where what stands there is malformed, and None
    where there are no digits at all.
    """
    whole, decimals = match["whole"] or "", match["decimals"] or ""
    if not whole and not decimals:
        return None
    if len(whole) + len(decimals) > MAX_DIGITS:
        return None, match.end()
    value = Fraction((whole.replace(",", "") or "0") + decimals)
    factor, end = _factor(value, text, match.end())
    if factor is None:
        return None, end
    if mixed := _MIXED.match(text, end) if whole.isdigit() and not decimals else None:
        top, bottom = int(mixed[1][:MAX_DIGITS]), int(mixed[2][:MAX_DIGITS])
        if not 0 < top < bottom:
            return None, mixed.end()
        value, end = value + Fraction(top, bottom), mixed.end()
    if scale := _SCALE.match(text, end):
        factor, end = factor * _SCALES[scale[1]], scale.end()
    percent = _PERCENT.match(text, end)
    sign = -1 if match["sign"] == "-" else 1
    return Number(sign * value * factor, percent is not None), percent.end() if percent else end


def _factor(value: Fraction, text: str, end: int) -> tuple[Fraction | None, int]:
    """What a denominator or an exponent after the digits multiplies them by; None if malformed."""
    if fraction := _DENOMINATOR.match(text, end):
        bottom = Fraction(fraction[1][:MAX_DIGITS])
        return (1 / bottom if bottom else None), fraction.end()
    power = _POWER_OF_TEN.match(text, end) if value == 10 else None
    exponent = power or _EXPONENT.match(text, end)
    if exponent is None:
        return Fraction(1), end
    digits = next(group for group in exponent.groups() if group)
    power_of_ten = int(digits) - (power is not None)
    if abs(power_of_ten) > MAX_EXPONENT:
        return None, exponent.end()
    return Fraction(10) ** power_of_ten, exponent.end()
