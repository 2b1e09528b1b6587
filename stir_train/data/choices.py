"""Read which option, or yes or no, an answer phrase picks; a phrase that picks two picks none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stir_train.data.denials import REJECTED_BEHIND, is_corrected
from stir_train.data.number_phrases import answer_number
from stir_train.data.numbers import Ambiguous, Number
from stir_train.data.plain_text import clean

LETTERS = "ABCDEFGHIJ"

_DENIED = re.compile(
    r"(?:\b(?:not|never|cannot|neither|nor|no|except|rather\s+than|instead\s+of|over|besides|unlike|without|avoid"
    r"|eliminat(?:e|es|ed|ing)|exclud(?:e|es|ed|ing)|rul(?:e|es|ed|ing)\s+out|(?:any|every)thing\s+but"
    r"|all\s+but|none\s+but)|n['\u2019]t)\s+"
    r"(?:(?:be|the|a|an|exactly|quite|option|choice|answer|letter)\s+){0,3}[(\[\"']?$",
    re.IGNORECASE,
)
"""What stands before an option that is not picked."""
_ALSO_DENIED = re.compile(r"\s*[)\]]?\s*(?:,?\s*(?:or|nor|and)|/)\s*(?:option\s+)?[(\[]?", re.I)
_REJECTED = re.compile(rf"[)\].:]?{REJECTED_BEHIND}", re.IGNORECASE)
_CANDIDATE = re.compile(
    r"(?<![\w'’-])(?P<open>[(\[])?(?P<letter>[A-Ja-j])(?P<close>[)\].:,;!?])?(?![\w'’-])"
)
_NAMED = re.compile(r"(?:option|choice|answer|letter)\s*:?\s*[(\[]?$", re.IGNORECASE)
_LETTERED = re.compile(
    r"\b(?:vitamin|plan|hepatitis|grade|class|team|type|figure|fig\.|table|part|section|appendix"
    r"|exhibit|point|step|group)\s+$",
    re.IGNORECASE,
)
"""What has a letter as its own name."""
_MEASURED = re.compile(r"[0-9]\s?°?\s?$|[K-Z]\s?&\s?$")
"""Before a unit, or the second letter of a name: "20 °C", "3 D", "R & D"."""
_AN_ARTICLE = re.compile(
    r"\s+(?!(?:is|was|because|since|as|which|for|due|based|would|seems|best|matches|fits|or|and|nor|vs"
    r"|plus|then|if|but|not|rather|over|with|possibly|perhaps|maybe)\b)[a-zA-Z]{2,}"
)
_REASON = re.compile(
    r"[,;]?\s+(?:because|since|as|due\s+to|given\s+that|which|unlike|based\s+on)\s", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"[.!][\"')\]*]*\s+(?=[A-Z0-9(])")
_ASKED = re.compile(r"[)\]]?\?+[\"')\]*]*\s+\w")
_OR_ANOTHER = re.compile(
    r"\b(?:or|and|nor)\s+(?:none|neither|all|both|any|another|something|maybe|possibly|else)\b",
    re.I,
)
_NO_OPTION = re.compile(
    r"\W*(?:none|neither|both|all|any|either|each|cannot|can't|unknown)\b", re.IGNORECASE
)
_LISTED = re.compile(r"[-*\s]{0,4}[(\[]?[A-J][)\].:]\s*\S")
_DIGIT = re.compile(r"[(\[]?(?:(?:option|choice|answer)\s+)?[(\[]?([1-9])[)\].]?$", re.IGNORECASE)
_BOOLEAN = re.compile(
    r"\b(yes|yep|yeah|no|nope|nah|true|untrue|false|correct|incorrect)\b"
    r"(?!\s+(?:one|doubt|matter|longer|more|answer|option|choice|statement|idea|clue|information|way|opinion"
    r"|particular|evidence|problem|wonder|reason|solution|need|exceptions?)\b)",
    re.IGNORECASE,
)
_MEANS = {
    "yes": True, "yep": True, "yeah": True, "true": True, "correct": True,
    "no": False, "nope": False, "nah": False, "false": False, "incorrect": False, "untrue": False,
}  # fmt: skip
_TAKEN_BACK = re.compile(r"\s+(?:is|was|would\s+be)\s+(?:not|wrong|incorrect|false)\b", re.I)
_INITIAL = re.compile(r"\W*([yYTnNF])\W*")
_NEGATION = r"(?:\b(?:not|never|cannot|neither|nor|hardly|nothing|without|no\s+way|(?:any|every)thing\s+but|far\s+from)|n['\u2019]t)"
_TURNED = re.compile(rf"{_NEGATION}\s+(?:(?:be|a|the|quite|exactly|entirely)\s+){{0,2}}$", re.I)
_NEAR_NEGATION = re.compile(
    rf"{_NEGATION}(?:\s+(?!(?:so|therefore|hence|thus|but|and|answer)\b)[\w'’]+){{1,8}}\s+$",
    re.IGNORECASE,
)
_UNSURE = re.compile(
    r"\b(?:maybe|perhaps|possibly|might|depends|unless|unsure|not\s+sure|either|if|neither|both|refuted"
    r"|(?<!no )doubt|wrong\s+to"
    r"|(?:partially|partly|half|sometimes|occasionally|almost|nearly|only)[\s-]+(?:true|correct|yes|false|no))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Mention:
    """An option that a phrase names by its letter.

    Attributes:
        letter: Its capital letter.
        start: Where it stands.
        end: Where it ends, brackets left out.
        is_denied: It is said not to be the answer.
    """

    letter: str
    start: int
    end: int
    is_denied: bool


def picked_option(phrase: str, options: Sequence[str]) -> str | Ambiguous | None:
    """The letter that a phrase picks: named, or by the option's own text, or by its number.

    Args:
        phrase: What a response states as its answer.
        options: The texts of the options, in order; empty when only letters are known.

    Returns:
        None where the phrase names no option; Ambiguous where it names several, denies those it names,
        asks, or takes its pick back.
    """
    phrase = clean(phrase).strip(" \t\n*.$\"'")
    texts = [_plain(option) for option in options]
    if texts and (whole := _plain(phrase)) in texts:
        return LETTERS[texts.index(whole)] if texts.count(whole) == 1 else Ambiguous()
    mentions = list(_mentions(phrase))
    if mentions:
        picked = _picked(phrase, mentions, texts)
        if picked is not None:
            return picked
    digit = _DIGIT.match(phrase)
    numeric = any(isinstance(answer_number(clean(text)), Number) for text in texts)
    if digit and not numeric and int(digit[1]) <= len(options):
        return LETTERS[int(digit[1]) - 1]
    contained = _contained(phrase, texts)
    if contained is None and (mentions or _NO_OPTION.match(phrase)):
        return Ambiguous()
    return contained


def last_option(text: str, options: Sequence[str]) -> str | Ambiguous | None:
    """What the last line picks, for a response that states no answer in so many words."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or lines[-1].endswith("?"):
        return None
    if len(lines) > 1 and _LISTED.match(lines[-1]) and _LISTED.match(lines[-2]):
        return Ambiguous()  # the options, once more
    return picked_option(lines[-1][-500:], options)


def picked_boolean(phrase: str) -> str | Ambiguous | None:
    """``yes`` or ``no``, as a phrase says; true and correct mean yes, a negation turns it round.

    Returns:
        None where it says neither; Ambiguous where it says both, hedges, asks, or takes it back.
    """
    phrase = clean(phrase)
    if letter := _INITIAL.fullmatch(phrase):
        return "yes" if letter[1] in "yYT" else "no"
    first = _BOOLEAN.search(phrase)
    if first is None:
        return None
    if is_corrected(phrase[first.end() :]):
        return Ambiguous()
    phrase = phrase[: _end_of_claim(phrase, first.end())]
    if _UNSURE.search(phrase):
        return Ambiguous()
    meanings = set()
    for found in _BOOLEAN.finditer(phrase):
        before = phrase[: found.start()]
        if _NEAR_NEGATION.search(before):
            return Ambiguous()
        if _TAKEN_BACK.match(phrase[found.end() :]):
            return Ambiguous()
        meanings.add(_MEANS[found[1].lower()] is not bool(_TURNED.search(before)))
    if len(meanings) > 1:
        return Ambiguous()
    return "yes" if meanings.pop() else "no"


def last_boolean(text: str) -> str | Ambiguous | None:
    """Yes or no where it opens a sentence of the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    opening = re.findall(
        r"(?:^|[.!?:]\s+|\bso,?\s+|\btherefore,?\s+)[*_\"']*"
        r"(?:(?:the\s+(?:statement|claim|answer)|it|this|that)\s+is\s+)?((?:yes|no|true|false)\b(?!\s+[a-z])(?:\s*(?:[/|;,-]|or|and)\s*(?:yes|no|true|false)\b)?)",
        lines[-1][-500:],
        re.IGNORECASE,
    )
    return picked_boolean(opening[-1]) if opening else None


def _end_of_claim(phrase: str, start: int) -> int:
    """Where the reason or the next sentence begins, behind what was picked."""
    ends = [found.start() for p in (_REASON, _SENTENCE_END) if (found := p.search(phrase, start))]
    return min(ends, default=len(phrase))


def _mentions(phrase: str) -> Iterator[_Mention]:
    """The letters of a phrase that name options: no article, no pronoun, no name of another thing."""
    before_it: _Mention | None = None
    for match in _CANDIDATE.finditer(phrase):
        letter, start, end = match["letter"], match.start("letter"), match.end("letter")
        before, rest = phrase[: match.start()], phrase[match.end() :]
        whole = not before.strip() and not rest.strip()
        named = _NAMED.search(before) is not None
        if letter.islower() and not (match["close"] in (")", "]") or whole or named):
            continue
        bare = not (match["open"] or match["close"] or whole or named)
        if bare and (letter == "I" or (letter == "A" and _AN_ARTICLE.match(rest))):
            continue
        if bare and (_LETTERED.search(before) or _MEASURED.search(before)):
            continue
        denied = bool(_DENIED.search(before)) or _REJECTED.match(phrase[end:]) is not None
        if before_it is not None and before_it.is_denied:
            denied = denied or _ALSO_DENIED.fullmatch(phrase[before_it.end : start]) is not None
        before_it = _Mention(letter.upper(), start, end, denied)
        yield before_it


def _picked(
    phrase: str, mentions: Sequence[_Mention], texts: Sequence[str]
) -> str | Ambiguous | None:
    """What the letters of a phrase pick; None where all of them are denied."""
    first = next((mention for mention in mentions if not mention.is_denied), None)
    if first is None:
        return None
    end = _end_of_claim(phrase, first.end)
    claim, rest = phrase[first.end : end], phrase[first.end :]
    picked = {m.letter for m in mentions if not m.is_denied and m.start < end}
    is_open = _ASKED.match(rest) or is_corrected(rest) or _OR_ANOTHER.search(claim)
    if len(picked) > 1 or is_open or first.letter not in LETTERS[: len(texts) or None]:
        return Ambiguous()
    behind = _plain(re.sub(r"^[)\].:,;\s=>→(–-]+", "", rest))
    beside = [
        (len(text), text)
        for text in texts
        if text
        and (
            re.match(rf"{re.escape(text)}(?!\w)", behind)
            or _plain(phrase[: first.start]).rstrip("( ") == text
        )
    ]
    own = texts[LETTERS.index(first.letter)] if texts else ""
    return first.letter if not beside or max(beside)[1] == own else Ambiguous()


def _contained(phrase: str, texts: Sequence[str]) -> str | Ambiguous | None:
    """The one option whose text occurs in the phrase; one that is part of another found does not count."""
    plain = _plain(phrase)
    places = {
        i: [m for m in re.finditer(_alone(text), plain)] for i, text in enumerate(texts) if text
    }
    found = [(i, texts[i]) for i, matches in places.items() if matches]
    outer = [
        (i, text)
        for i, text in found
        if not any(text != longer and text in longer for _, longer in found)
    ]
    if not outer:
        return None
    held = [
        i
        for i, _ in outer
        if not all(
            _DENIED.search(plain[: m.start()]) or _REJECTED.match(plain[m.end() :])
            for m in places[i]
        )
    ]
    if len(held) != 1:
        return Ambiguous()
    rest = plain[places[held[0]][-1].end() :]
    return Ambiguous() if _ASKED.match(rest) or is_corrected(rest) else LETTERS[held[0]]


def _alone(text: str) -> str:
    """A pattern of an option's text that is not part of something larger: 20 in 20.5, -20 or 20 %."""
    before = r"(?<![\w])(?<!\w-)"
    behind = r"(?!\w)"
    if text[0].isdigit() or len(text) <= 2:
        before += r"(?<![-+*/^√±<>])(?<![0-9][.,])"
    if text[-1].isdigit() or len(text) <= 2:
        behind += r"(?!\s?[*/^%!+√π]|\s?-\s?[0-9]|[.,][0-9])"
    return before + re.escape(text) + behind


def _plain(text: str) -> str:
    """Text without case, articles, punctuation at the ends and extra space."""
    words = clean(text).casefold().strip(" \t\n.,;:!?\"'()[]$*").split()
    if len(words) > 1 and words[0] in ("a", "an", "the"):
        words = words[1:]
    return " ".join(words)
