"""Settle how a phrase is written, and find the part of it that is about its number."""

from __future__ import annotations

import re

from stir_train.data.number_words import SPELT_NUMBERS

_SUBSCRIPT = re.compile(r"(?<=[a-zA-Z])_\s*(?:\([^()]{0,40}\)|[0-9a-zA-Z]+| [0-9a-zA-Z]{1,5} )")
_TAG = re.compile(r"</?[a-zA-Z]{1,10}\s?/?>")
_TIMES = re.compile(r"(?<=[0-9])\s?[xX]\s?(?=[0-9])")
_RELATIONS = (
    ("=/=", "≠"),
    ("<>", "≠"),
    ("<=", "≤"),
    (">=", "≥"),
    ("!=", "≠"),
    ("=>", "="),
    ("->", "="),
    ("==", "="),
)
_ROOT_WORD = re.compile(r"(?<![a-zA-Z])sqrt\s*(?=\()")
_AND_A_HALF = re.compile(
    r"(?<=[0-9]) and (?:(?:a|one)[ -](half|quarter|third)|(two|three)[ -](quarters|thirds))\b",
    re.IGNORECASE,
)
_AND_A_FRACTION = re.compile(r"(?<=[0-9])\s+and\s+(?=\(?[0-9]{1,3}\)?\s?/\s?\(?[0-9])")
_PARTS = {"half": "1/2", "quarter": "1/4", "third": "1/3"}
_NUM_PARTS = {"two": "2", "three": "3"}
_SPELT = (
    rf"(?<![\w-])(?:(?:{'|'.join(sorted(SPELT_NUMBERS, reverse=True))}|an?)(?![a-zA-Z])"
    r"(?:,?\s+and\s+|[,\s-]\s*)?){1,16}+"
)
_SPELT_BEFORE = re.compile(
    rf"((?:minus|negative)\s+)?{_SPELT}"
    r"(?=\(\s*\(?([-+]?)\.?[0-9][^()]*\)?(?:/\([0-9]+\))?\s*\))",
    re.IGNORECASE,
)
_SPELT_BEHIND = re.compile(rf"(?<=[0-9)])\s*\(\s*{_SPELT}\s*\)", re.IGNORECASE)
"""A number in words and, in brackets, in digits; and the other way round."""
_SENTENCE_END = re.compile(r"(?<=\S)[.!?]+[\"')\]*]*(?=\s+[^\W\d]|\s+[(\[\"'#]|\s*$)")
_REASON = re.compile(
    r"[,;]?\s+(?:because|since|as|which|due to|given that|meaning|i\.e\.|e\.g\.)\s.*", re.DOTALL
)
_SIGNED = r"[-+]?[0-9][0-9.,/]*+"
_DENIED_FIRST = re.compile(rf"\bnot\s+{_SIGNED}(?:,?\s+but\b|,(?=\s))")
_DENIED_LAST = re.compile(
    rf"(?<=[0-9%])((?:\s+[a-zA-Z]+)?),?\s+(?:and\s+)?(?:not|rather than|instead of)\s+{_SIGNED}"
)


def normalise(phrase: str) -> str:
    """Settle how a root, a product, a subscript and a half are written."""
    phrase = _SUBSCRIPT.sub("'", _TAG.sub(" ", phrase))
    phrase = _TIMES.sub("×", _ROOT_WORD.sub("√", phrase))
    for written, sign in _RELATIONS:
        phrase = phrase.replace(written, sign)
    phrase = _SPELT_BEHIND.sub(" ", _SPELT_BEFORE.sub(_sign_word, phrase))
    phrase = _AND_A_FRACTION.sub(" ", _AND_A_HALF.sub(_written_part, phrase))
    return _DENIED_LAST.sub(r"\1 ", _DENIED_FIRST.sub(" ", phrase))


def _sign_word(match: re.Match[str]) -> str:
    """ "minus twelve (12)" keeps its sign, which "minus twelve (-12)" has in its digits."""
    return "" if match[2] == "-" else match[1] or ""


def _written_part(match: re.Match[str]) -> str:
    """ "and a half" as " 1/2", "and three quarters" as " 3/4"."""
    if match[1]:
        return f" {_PARTS[match[1].lower()]}"
    whole = _PARTS[match[3].lower().removesuffix("s")]
    return f" {_NUM_PARTS[match[2].lower()]}{whole[1:]}"


def about_the_number(phrase: str) -> str:
    """The first sentence that holds a digit, without a reason given after it."""
    start = 0
    for match in _SENTENCE_END.finditer(phrase):
        if re.search("[0-9]", phrase[start : match.start()]):
            phrase = phrase[start : match.start()]
            break
        start = match.end()
    else:
        phrase = phrase[start:] if re.search("[0-9]", phrase[start:]) else phrase
    reason = _REASON.search(phrase)
    if reason and re.search("[0-9]", phrase[: reason.start()]):
        phrase = phrase[: reason.start()]
    return phrase
