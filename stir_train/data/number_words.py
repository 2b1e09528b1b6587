"""The words that matter beside a number: units, operations, numbers in words."""

from __future__ import annotations

import re

from stir_train.data.numbers import SCALES, SIGN_WORDS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


UNITS = _words(
    """
    m g s h l L W V J C F cm mm km dm nm kg mg lb lbs oz ml mL cl dl ft in yd mi hr hrs min mins
    sec secs am pm AM PM a.m p.m mph kph kmh km/h th st nd rd GB MB KB TB Hz kHz MHz GHz kW MW
    kWh Wh kJ kcal cal ct cts yr yrs mo wk wks pts pt qt gal tbsp tsp pcs pc USD EUR GBP CAD AUD
    Rs INR JPY mpg rpm bps dB Pa kPa psi sq cu
    """
)
"""Short words that are units where others, glued to a number or without a vowel, are variables."""
LENGTHS = _words("m cm mm km dm ft in yd mi")
"""Units that may have a 2 or 3 behind them."""
OPERATION_BEFORE = _words(
    """
    half twice double triple root squared cubed log ln third quarter sin cos tan or plus times
    over modulo mod
    """
)
"""Words that change the number after them."""
OPERATION_AFTER = _words(
    """
    or plus minus squared cubed factorial divided mod modulo pi infinity sqrt root choose wrong
    incorrect nor neither through dozen dozens below if unless otherwise else point
    """
)
"""Words that change the number before them."""
NUMBER_WORDS = _words(
    """
    half halves quarter quarters third thirds fourths fifths sixths sevenths eighths ninths tenth
    tenths hundredths thousandths one two three four five six seven eight nine ten eleven twelve
    thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty
    seventy eighty ninety hundred thousand million millionths billionths mil mill score
    tens doubled tripled halved quadrupled
    """
)
SMALL_NUMBERS = _words(
    """
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    """
)
"""Numbers in words; they are not read, but beside digits they change what those say."""
SPELT_NUMBERS = (
    SMALL_NUMBERS
    | SCALES.keys()
    | _words("zero one half halves third thirds quarter quarters fourths fifth fifths tenth tenths")
) - {"bn", "grand"}
"""Words that numbers are spelt with."""
ATTACHED_BEFORE = (
    OPERATION_BEFORE
    | OPERATION_AFTER
    | frozenset(SIGN_WORDS)
    | frozenset(SCALES)
    | _words("to of at and not than least most more less fewer equal exactly percent")
)
"""Words that belong to the number after them."""
ATTACHED_AFTER = ATTACHED_BEFORE | NUMBER_WORDS | {"is", "was"}
"""Words that belong to the number before them."""
_WORDED = "|".join(sorted(SMALL_NUMBERS | SCALES.keys(), reverse=True))
IN_WORDS = re.compile(
    rf"\W*(?:(?:minus|negative|exactly|only|just|about|an?|it's|it\s+is)\s+)?(?:one|zero|{_WORDED})(?!\w)"
    r"(?:[\s-]+(?!of\b)[a-z]+){0,4}\W*",
    re.IGNORECASE,
)
"""A number in words alone, which is not read."""
BESIDE_WORDS = re.compile(
    rf"(?<![\w-])(?:{_WORDED})[\s-]+(?:(?:and|point|by|over|to|times)\s+)?[0-9]"
    rf"|[0-9]%?\s+(?:percent\s+|out\s+)?(?:of|by)\s+(?:the\s+)?(?:{'|'.join(sorted(SMALL_NUMBERS))})\b"
    rf"|[0-9]\s+per\s+(?:{'|'.join(sorted(SCALES))}|mille?)\b"
    rf"|[0-9](?:\s+(?!(?:in|on|for|per|to|with|from|by|at|after|over)\b)[a-z]+\.?)?,?\s+"
    rf"(?:and\s+)?(?:{'|'.join(sorted(SMALL_NUMBERS, reverse=True))})\b",
    re.IGNORECASE,
)
"""Digits beside a number in words: "twenty 5", "5 feet six inches"."""
APPLIED = re.compile(
    r"\b(?:square|cube|reciprocal|inverse|negative|negation|opposite|complement|log(?:arithm)?|factorial"
    r"|multiples?|powers?|divisors?|factors?|divisible|roots?)\s+(?:of|by)\s+[-+]?\.?[0-9]"
    r"|[0-9]\s+(?:raised\s+)?to\s+the\s+(?:[a-z]+\s+)?power\b|[0-9]\s+raised\s+to\b"
    r"|[0-9]\s+to\s+the\s+(?:second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|n-?th)\b"
    r"|[0-9]\s+(?:(?:added|subtracted|taken)\s+(?:to|from)"
    r"|(?:multiplied|divided|increased|decreased|reduced|raised)\s+by)\b"
    r"|[0-9]\.[0-9]+(?:\.{3}|…)",
    re.IGNORECASE,
)
"""What makes another number of the one beside it: "the square of 5", "5 to the third", "0.33..."."""
