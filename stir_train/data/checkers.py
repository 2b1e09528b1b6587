"""Run checks that model text could hang or blow up in a pool of processes, each with a hard time-out."""

from __future__ import annotations

import logging
import multiprocessing
import re
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Literal

from pebble import ProcessExpired, ProcessPool

from stir_train.data.denials import is_no_number
from stir_train.data.number_phrases import answer_number
from stir_train.data.numbers import Number
from stir_train.data.plain_text import clean

Failure = Literal["timed out", "crashed"]

TIMEOUT_SECONDS = 10.0
MAX_WORKER_BYTES = 4 << 30
"""Address space of a worker: text that makes a checker allocate more than this crashes it alone."""


_BASE = re.compile(r"[0-9]\s*_\s*\{?\s*([0-9]+)")
_ROWS = re.compile(r"\\\\(?![a-zA-Z])")
MAX_PLACES = 15
_OPENED = re.compile(r"[\s$]*(?:[^=\s(){}]{1,3}\s*=\s*)?(?:\\left\s*)?(\(|\\\{)")
_DECIMAL = re.compile(r"\s*-?[0-9]{1,15}(?:\.[0-9]{1,15})?\s*")
_UNFINISHED = re.compile(r"(?:[-+*/^=?]|\\(?:cdot|times|ldots|dots|div)|\.{2,})\s*$")
_SCALED = re.compile(r"\b(?:hundred|thousand|million|billion|trillion|dozen|lakh|crore)s?\b", re.I)
_ELEMENT = re.compile(r"\s*\$?\s*-?[0-9./\s]+\\(?:not)?(?:in|ni|subset)\b")


class CheckerPool:
    """Worker processes, started on first use, replaced when they time out or crash."""

    def __init__(self, num_workers: int, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self.num_workers = num_workers
        self.timeout_seconds = timeout_seconds
        self._pool: ProcessPool | None = None

    def close(self) -> None:
        """Stop the worker processes; a later ``map`` starts new ones."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def map(
        self, check: Callable[..., Any], items: Sequence[tuple[Any, ...]]
    ) -> list[Any | Failure]:
        """Apply ``check(*item)`` to every item; a failure stands where its result would.

        ``check`` must be importable, and must not itself return a string that names a failure.
        """
        if self._pool is None:
            self._pool = ProcessPool(
                max_workers=self.num_workers,
                context=multiprocessing.get_context("spawn"),
                initializer=_prepare_worker,
            )
            # Importing the checker's libraries is not what the time-out is about.
            for ready in [self._pool.schedule(warm_up) for _ in range(self.num_workers)]:
                ready.result()
        futures = [
            self._pool.schedule(check, args=item, timeout=self.timeout_seconds) for item in items
        ]
        return [_outcome(future) for future in futures]


def _outcome(future: Any) -> Any:
    try:
        return future.result()
    except FutureTimeoutError:
        return "timed out"
    except (ProcessExpired, MemoryError, RecursionError):
        return "crashed"


def _prepare_worker() -> None:
    """Bound the worker's memory, and keep math-verify from warning that its own time-out is off."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_WORKER_BYTES, MAX_WORKER_BYTES))


def warm_up() -> None:
    """Import what the checks need."""
    import math_verify  # noqa: F401, PLC0415 - only workers need it


def check_math(gold: str, found: str) -> bool:
    """Whether math-verify finds ``found`` equal to ``gold`` (it is asymmetric: gold first)."""
    from math_verify import parse, verify  # noqa: PLC0415 - only workers need it

    if _is_read_in_part(found, gold):
        return False
    if _bracket(gold) + _bracket(found) in ("({", "{("):
        return False  # a point and a set
    if (same := _are_one_number(gold, found)) is not None:
        return same
    # The pool's time-out replaces the library's, which works in a main thread alone.
    parsed_gold = parse(_as_math(gold), parsing_timeout=None)
    parsed = parse(_as_math(found), parsing_timeout=None)
    return bool(verify(parsed_gold, parsed, timeout_seconds=None))


def _are_one_number(gold: str, found: str) -> bool | None:
    """Whether two numbers are equal, exactly: math-verify compares six digits. None where either is none.

    Nor of a gold answer that no decimal is, such as a third: there six digits may be what was meant.
    """
    if "!" in gold + found or "[" in gold + found:
        return None
    wanted, number = (answer_number(clean(text.strip("$ "))) for text in (gold, found))
    if not isinstance(wanted, Number) or not isinstance(number, Number):
        return None
    is_decimal = 10**MAX_PLACES % wanted.value.denominator == 0
    return number.equals(wanted) if is_decimal else None


def _bracket(text: str) -> str:
    """The bracket that an answer as a whole stands in."""
    opened = _OPENED.match(text)
    return opened[1].lstrip("\\") if opened else ""


def _is_read_in_part(found: str, gold: str) -> bool:
    """Whether math-verify would leave out what changes the answer: a base, a second row, a set, a scale, a denial."""
    bases = [_BASE.findall(text) for text in (found, gold)]
    if bases[0] and bases[0] != bases[1] and set(bases[0]) != {"10"}:
        return True
    if _ROWS.search(found) and not _ROWS.search(gold):
        return True
    for changes in (_UNFINISHED.search, _SCALED.search, lambda text: is_no_number(clean(text))):
        if changes(found.strip("$ ")) and not changes(gold.strip("$ ")):
            return True
    sides = found.strip("$ ").split("=")
    numbers = {float(side) for side in sides if _DECIMAL.fullmatch(side)}
    return len(numbers) > 1 or _ELEMENT.match(found) is not None


def is_mathematics(gold: str) -> bool:
    """Whether math-verify reads a gold answer as mathematics, and finds it equal to itself."""
    from math_verify import parse, verify  # noqa: PLC0415 - only workers need it

    if gold.count("{") != gold.count("}") or gold.count("\\left") != gold.count("\\right"):
        return False
    parsed = parse(_as_math(gold), parsing_timeout=None)
    is_read = any(not isinstance(part, str) for part in parsed)
    return is_read and bool(verify(parsed, parsed, timeout_seconds=None))


def search_pattern(pattern: str, text: str) -> str | None:
    """The first group of a pattern's last match in ``text``; None where it does not match."""
    found = None
    for match in re.finditer(pattern, text):
        found = match
    return None if found is None else (found[1] or "")


def _as_math(text: str) -> str:
    text = text.strip().strip("$").strip()
    return f"${text}$"
