"""Judge answers: extract what follows the marker, compare it with the gold answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from decimal import Decimal, InvalidOperation

from stir_train.config.stages import RolloutConfig, TaskConfig
from stir_train.types.rollout import Grade, Rollout

MAX_GRADED_CHARACTERS = 1 << 16
"""Only the end of a longer text is searched for an answer."""
MATH_TIMEOUT_SECONDS = 10.0
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_LETTER = re.compile(r"\(?\b([A-J])\b\)?")


def grade_responses(
    texts: Sequence[str], answers: Sequence[str], truncated: Sequence[bool], config: TaskConfig
) -> list[Grade]:
    """Grade completions against gold answers; a truncated completion is wrong."""
    extracted = [extract_answer(text, config.answer_marker) for text in texts]
    verdicts: dict[int, bool | None] = {}
    open_items = [i for i, e in enumerate(extracted) if e and not truncated[i]]
    if config.grader == "math":
        pairs = [(answers[i], extracted[i]) for i in open_items]
        verdicts = dict(zip(open_items, _grade_math(pairs), strict=True))
    else:
        same = {"exact": _same_text, "numeric": _same_number, "choice": _same_choice}[config.grader]
        verdicts = {i: same(answers[i], extracted[i]) for i in open_items}
    return [_grade(extracted[i], truncated[i], verdicts.get(i)) for i in range(len(texts))]


def extract_answer(text: str, marker: str) -> str:
    """What follows the last marker on its line, without a final full stop; empty if none."""
    tail = text[-MAX_GRADED_CHARACTERS:]
    _, found, rest = tail.rpartition(marker)
    if not found:
        return ""
    return rest.lstrip(" ").split("\n", 1)[0].strip().removesuffix(".").strip()


def reward(grade: Grade, rollout: Rollout, config: RolloutConfig, *, max_new_tokens: int) -> float:
    """``1[correct] - length_penalty * num_tokens / max_new_tokens``."""
    share = len(rollout.token_ids) / max_new_tokens
    return float(grade.correct) - config.length_penalty * share


def _grade(extracted: str, truncated: bool, verdict: bool | None) -> Grade:
    if truncated:
        return Grade(correct=False, extracted=extracted, reason="truncated")
    if not extracted:
        return Grade(correct=False, extracted="", reason="no answer")
    if verdict is None:
        return Grade(correct=False, extracted=extracted, reason="checker timed out")
    return Grade(correct=verdict, extracted=extracted, reason="equal" if verdict else "different")


def _same_text(gold: str, found: str) -> bool:
    return gold.strip() == found.strip()


def _same_number(gold: str, found: str) -> bool:
    gold_value, found_value = _last_number(gold), _last_number(found)
    return gold_value is not None and gold_value == found_value


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    if not numbers:
        return None
    try:
        return Decimal(numbers[-1].replace(",", ""))
    except InvalidOperation:
        return None


def _same_choice(gold: str, found: str) -> bool:
    letters = _LETTER.findall(found)
    return bool(letters) and letters[0] == gold.strip()


def _grade_math(pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
    """Verify in another process with a time-out each; None where it timed out or crashed."""
    verdicts: list[bool | None] = []
    pool = ProcessPoolExecutor(1)
    for gold, found in pairs:
        future = pool.submit(_verify_math, gold, found)
        try:
            verdicts.append(future.result(timeout=MATH_TIMEOUT_SECONDS))
        except (FutureTimeoutError, BrokenProcessPool):
            verdicts.append(None)
            for process in (pool._processes or {}).values():  # noqa: SLF001 - no public way to kill
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            pool = ProcessPoolExecutor(1)
    pool.shutdown()
    return verdicts


def _verify_math(gold: str, found: str) -> bool:
    from math_verify import parse, verify  # noqa: PLC0415 - only the worker needs it

    parsed_gold = parse(f"${gold}$", parsing_timeout=None)
    return bool(
        verify(parsed_gold, parse(f"${found}$", parsing_timeout=None), timeout_seconds=None)
    )
