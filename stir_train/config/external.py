"""Rollouts that something else samples: a file of completions, or a server. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from stir_train.config.base import FrozenConfig, NonEmptyText


class ExternalConfig(FrozenConfig):
    """Rollouts of the harvest that something else samples, under the sampling settings of `rollout`.

    Grades, states and log-probabilities are the run's own: it reads every completion in one pass.
    """

    file: Path | None = None
    """Completions as JSON lines, made from the prompts that `stir-train data --prompts` writes."""
    server: str | None = None
    """Address of an OpenAI-compatible server up to and with `/v1`, which samples from prompt token ids and
    returns token ids, as vLLM's does. It must serve the run's own model, without a change."""
    served_model: NonEmptyText | None = None
    """What the server calls the model; None means `model.name`."""
    key_variable: NonEmptyText | None = None
    """Environment variable with the server's key; None sends none. The key itself belongs in no file."""
    num_requests: PositiveInt = 64
    """Requests that each process has under way at a time."""
    timeout_seconds: PositiveFloat = 600.0
    """A request that is not answered for so long is made again."""
    num_retries: Annotated[int, Field(ge=0)] = 6
    """How often a request is made again after a time-out, a lost connection or a busy server, a second
    later, then two, four, and so on up to a minute."""

    @model_validator(mode="after")
    def _one_sampler(self) -> Self:
        if self.file is not None and self.server is not None:
            raise ValueError("file and server: set one of them, rollouts come from one place")
        if self.server is not None:
            address = urlsplit(self.server)
            if address.scheme not in ("http", "https") or not address.hostname:
                raise ValueError(f"server: expected http://HOST:PORT/v1, not {self.server!r}")
            if address.username or address.query or address.fragment:
                raise ValueError(
                    "server: the address carries more than host, port and path; a key is read from the "
                    "environment variable that key_variable names"
                )
        return self

    @property
    def is_used(self) -> bool:
        """Whether something else samples the rollouts."""
        return self.file is not None or self.server is not None

    def sampler(self, model: str) -> str:
        """What samples, as the rollout stage's record names it: not where, since that may move.

        Args:
            model: Name of the run's model.
        """
        return "file" if self.file is not None else f"server of {self.served_model or model}"
