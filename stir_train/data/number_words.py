"""The words that matter beside a number: units, operations, numbers in words."""

from __future__ import annotations

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
    seventy eighty ninety hundred thousand million
    """
)
SMALL_NUMBERS = _words(
    """
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    """
)
"""Numbers in words; they are not read, but beside digits they change what those say."""
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
