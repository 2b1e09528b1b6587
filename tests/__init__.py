"""The tests, and how the package is type-checked while they run (`--jaxtyping-packages`)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def checked_when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """What beartype makes of a function, made at the first call: most are never called by one process.

    jaxtyping asks for two functions of each: one that takes the arguments and returns ``Any``, and one that takes
    and checks them all again, for the sake of the value returned. The second is left its return annotation alone:
    sizes that the first has bound still hold for it.
    """
    returned = function.__annotations__.get("return", Any)
    if returned is not Any:
        function.__annotations__ = {"return": returned}

    @functools.cache
    def checked() -> Callable[..., Any]:
        from beartype import beartype

        return beartype(function)

    @functools.wraps(function)
    def check(*arguments: Any, **named: Any) -> Any:
        return checked()(*arguments, **named)

    return check
