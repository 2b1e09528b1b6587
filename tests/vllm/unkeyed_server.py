"""`stir-train` whose server does not tell steered blocks of the prefix cache apart; a program for `serving`.

unkeyed_server.py serve RUN ...
"""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

from stir_train.cli import main
from stir_train.generation.vllm.served import Attachment
from stir_train.tools import serve


def _unkeyed(attach: Callable[..., Attachment]) -> Callable[..., Attachment]:
    """Tell vLLM's processes that nothing acts anywhere, which is what the keys go by; controllers act all the same."""

    def attachment(*given: object) -> Attachment:
        return attach(*given).model_copy(update={"places": ()})

    return attachment


if __name__ == "__main__":
    with mock.patch.object(serve, "_attachment", _unkeyed(serve._attachment)):
        main()
