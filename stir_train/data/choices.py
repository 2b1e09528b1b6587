"""Read which option, or yes or no, an answer phrase picks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stir_train.data.number_phrases import answer_number
from stir_train.data.numbers import Ambiguous, Number
from stir_train.data.plain_text import clean

LETTERS = "ABCDEFGHIJ"

_NEGATED = re.compile(
    r"(?:\bnot|n't|\bneither|\bnor|\bexcept|\brather than|\binstead of|\beliminate|\bexclude"
    r"|\brule out|\bruling out)\s+(?:(?:option|choice|answer)\s+)?[(\[]?$",
    re.IGNORECASE,
)
_REJECTED = re.compile(
    r"[)\].:]?\s+(?:is|was|are|seems)\s+(?:not\b|wrong|incorrect|false|out\b)|[)\].:]?\s+isn't",
    re.IGNORECASE,
)
_CANDIDATE = re.compile(
    r"(?<![\w'’-])(?P<open>[(\[])?(?P<letter>[A-Ja-j])(?P<close>[)\].:,;!?])?(?![\w'’-])"
)
_NAMED = re.compile(r"(?:option|choice|answer|letter)\s*:?\s*[(\[]?$", re.IGNORECASE)
_CONNECTED = re.compile(
    r"[)\]]?\s*(?:/|,|&|\bor\b|\band\b|,\s*and)\s*[(\[]?(?P<letter>[A-J])(?![\w'’])"
)
_AFTER_LETTER_A = re.compile(
    r"\s+(?:is|was|because|since|as|which|for|due|based|would|seems|best|matches|fits)\b|\s*$|\s*[—–-]\s"
)
_DIGIT = re.compile(r"[(\[]?(?:(?:option|choice|answer)\s+)?[(\[]?([1-9])[)\].]?$", re.IGNORECASE)
_BOOLEAN = re.compile(
    r"\b(not\s+|n't\s+)?(yes|no|true|false|correct|incorrect)\b(?!\s+(?:one|doubt|matter|longer|more))",
    re.IGNORECASE,
)
_MEANS = {
    "yes": True, "true": True, "correct": True, "no": False, "false": False, "incorrect": False,
}  # fmt: skip


def picked_option(phrase: str, options: Sequence[str]) -> str | Ambiguous | None:
    """The letter that a phrase picks: named, or by the option's own text, or by its number.

    Args:
        phrase: What a response states as its answer.
        options: The texts of the options, in order; empty when only letters are known.
    """
    phrase = clean(phrase).strip(" \t\n*.$\"'")
    texts = [_plain(option) for option in options]
    if texts and (whole := _plain(phrase)) in texts:
        return LETTERS[texts.index(whole)] if texts.count(whole) == 1 else Ambiguous()
    allowed = LETTERS[: len(options)] if options else LETTERS
    letter = _named_letter(phrase, allowed)
    if letter is not None:
        return letter
    digit = _DIGIT.match(phrase)
    numeric = any(isinstance(answer_number(clean(text)), Number) for text in texts)
    if digit and not numeric and int(digit[1]) <= len(options):
        return LETTERS[int(digit[1]) - 1]
    return _contained(_plain(phrase), texts)


def last_option(text: str, options: Sequence[str]) -> str | Ambiguous | None:
    """What the last line picks, for a response that states no answer in so many words."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    return picked_option(lines[-1][-500:], options)


def picked_boolean(phrase: str) -> str | Ambiguous | None:
    """``yes`` or ``no``, as a phrase says; true and correct mean yes, a negation turns it round."""
    found = list(_BOOLEAN.finditer(clean(phrase)))
    if not found:
        return None
    first = found[0]
    if len(found) > 1:
        between = clean(phrase)[first.end() : found[1].start()]
        if re.fullmatch(r"\s*(?:/|and|or|&)\s*", between, re.IGNORECASE):
            return Ambiguous()
    meaning = _MEANS[first[2].lower()]
    return "yes" if meaning is not bool(first[1]) else "no"


def last_boolean(text: str) -> str | Ambiguous | None:
    """Yes or no where it opens a sentence of the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    opening = re.findall(
        r"(?:^|[.!?:]\s+|\bso,?\s+|\btherefore,?\s+)[*_\"']*(yes|no|true|false)\b(?!\s+[a-z])",
        lines[-1][-500:],
        re.IGNORECASE,
    )
    return picked_boolean(opening[-1]) if opening else None


def _named_letter(phrase: str, allowed: str) -> str | Ambiguous | None:
    """The first letter that is an answer: no article, no pronoun, not ruled out."""
    for match in _CANDIDATE.finditer(phrase):
        letter = match["letter"]
        before, rest = phrase[: match.start()], phrase[match.end() :]
        decorated = bool(match["open"] and match["close"]) or match["close"] in (")", "]", ".", ":")
        whole = not before.strip() and not rest.strip()
        named = _NAMED.search(before) is not None
        if letter.islower() and not (match["close"] in (")", "]") or whole or named):
            continue
        bare = not (decorated or whole or named or match["close"])
        if letter == "I" and bare:
            continue
        if letter == "A" and bare and not (_AFTER_LETTER_A.match(rest) or _CONNECTED.match(rest)):
            continue
        if _NEGATED.search(before) or _REJECTED.match(phrase[match.end("letter") :]):
            continue
        letter = letter.upper()
        if letter not in allowed:
            return None
        connected = _CONNECTED.match(phrase, match.end("letter"))
        if connected and connected["letter"] != letter:
            return Ambiguous()
        return letter
    return None


def _contained(phrase: str, texts: Sequence[str]) -> str | Ambiguous | None:
    """The one option whose text occurs in the phrase; one that is part of another found does not count."""
    found = [
        (i, text)
        for i, text in enumerate(texts)
        if text and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", phrase)
    ]
    outer = [
        (i, text)
        for i, text in found
        if not any(text != longer and text in longer for _, longer in found)
    ]
    if not outer:
        return None
    return LETTERS[outer[0][0]] if len(outer) == 1 else Ambiguous()


def _plain(text: str) -> str:
    """Text without case, articles, punctuation at the ends and extra space."""
    words = clean(text).casefold().strip(" \t\n.,;:!?\"'()[]$*").split()
    if len(words) > 1 and words[0] in ("a", "an", "the"):
        words = words[1:]
    return " ".join(words)
