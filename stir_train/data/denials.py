"""What takes an answer back: a denial, a comparison, a condition, a correction that follows."""

from __future__ import annotations

import re

_COMPARISON_WORDS = (
    r"at\s+(?:least|most)|(?:more|less|fewer|greater|larger|smaller|higher|lower|other)\s+than"
    r"|up\s+to|no\s+(?:more|less|fewer)|between|anything|any\s+number"
    r"|under|below|above|beyond|within|exceed(?:s|ing)?|(?:short|shy)\s+of|at\s+max(?:imum)?"
    r"|as\s+(?:many|much|few|little)\s+as"
)
_COMPARED = re.compile(
    rf"\b(?:{_COMPARISON_WORDS})\s+(?:[a-z]+\s+){{0,2}}[-+]?[(√]*\.?[0-9]"
    r"|[0-9)]\s*(?:[a-zA-Z]+\s+)?(?:or\s+(?:more|less|fewer|greater|higher|lower|above|below|so)\b"
    r"|and\s+(?:above|below|up|over|under|older|younger|counting)\b"
    r"|at\s+(?:the\s+)?(?:least|most|maximum|minimum)\b|(?:on|up)wards?\b)",
    re.IGNORECASE,
)
_UNTRUE = (
    r"(?:not|never|wrong|incorrect|false|untrue|impossible|invalid|too\s+(?:low|high|many|few))"
)
REJECTED_BEHIND = (
    rf"(?:\s*[,;:(\u2014-]*\s*(?:which\s+|that\s+|it\s+)?"
    rf"(?:(?:is|was|are|were|would\s+be|seems|looks)\s+(?:clearly\s+|also\s+)?{_UNTRUE}\b"
    r"|(?:is|was|are|were|ca)n['\u2019]t\b|cannot\b|fails\b|(?:is|was)\s+out\b"
    r"|(?:does|do|did|would|could)(?:\s+not|n['\u2019]t)\s+(?:work|fit|hold|satisfy|match|make\s+sense)\b)"
    r"|\s*[,;:(\u2014-]*\s*\(?(?:wrong|incorrect|nope|not|too\s+(?:low|high|many|few|large|small))\)?\s*[.!]*$)"
)
"""Pattern of what says, behind an answer, that it is not the answer."""
_DENIAL = re.compile(
    r"(?:\b(?:not|never|cannot|neither|nor|except|no|none\s+of)|n['\u2019]t|\b(?:any|every)thing\s+but)\s+"
    r"(?:(?:be|equals?|to|a|an|the|these|those|exactly|just|only|simply|quite|minus|negative)\s+){0,4}"
    r"[-+]?[(√]*\.?[0-9]"
    rf"|[0-9)]%?(?:\s*[a-zA-Z]+(?<!and))?{REJECTED_BEHIND}",
    re.IGNORECASE,
)
_CORRECTION = (
    r"(?:no|nope|not|actually|wait|but|hmm+|sorry|oops|correction|scratch|however|or|rather)\b"
)
_TAKEN_BACK = re.compile(
    rf"[.!…]+[\"')\]*]*\s+{_CORRECTION}(?![^.]*\bneed)|\?+[\"')\]*]*\s+\w", re.IGNORECASE
)


def is_no_number(phrase: str) -> bool:
    """Whether a phrase denies the number in it, compares with it, asks for it, or corrects it."""
    if _COMPARED.search(phrase) or _DENIAL.search(phrase):
        return True
    first = re.search("[0-9]", phrase)
    return first is not None and is_corrected(phrase[first.end() :])


def is_corrected(rest: str) -> bool:
    """Whether the sentence behind an answer takes it back: "5. No, 7", "5? Hardly"."""
    return _TAKEN_BACK.search(rest) is not None
