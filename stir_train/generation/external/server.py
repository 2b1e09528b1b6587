"""Completions from an OpenAI-compatible server, asked by prompt token ids for token ids."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, ValidationError

from stir_train.errors import StageError
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.external.completion import Completion, fault_of
from stir_train.types.rollout import FinishReason

BUSY = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Status codes after which the same request may succeed."""
MAX_PAUSE_SECONDS = 60.0
SHOWN_CHARACTERS = 300
"""Of what a server says."""


@dataclass(frozen=True)
class ServerAddress:
    """Which server, and what it serves.

    Attributes:
        url: Up to and with ``/v1``.
        model: What it calls the model.
        key: Sent as a bearer token; None sends none.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class RequestLimits:
    """How a server is asked.

    Attributes:
        num_requests: Under way at a time.
        timeout_seconds: Of one.
        num_retries: After a time-out, a lost connection or one of `BUSY`.
    """

    num_requests: int
    timeout_seconds: float
    num_retries: int


class _Choice(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    finish_reason: FinishReason
    token_ids: tuple[int, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    choices: tuple[_Choice]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str


class _Models(BaseModel):
    model_config = ConfigDict(frozen=True)

    data: tuple[_Model, ...]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key goes to no other server than the one that is named."""

    def redirect_request(self, *_arguments: object) -> None:
        """Answer None, which makes an error of the redirection."""


class CompletionServer:
    """A server as a `CompletionSource`."""

    def __init__(
        self,
        address: ServerAddress,
        limits: RequestLimits,
        *,
        seed: int,
        vocab_size: int,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Send nothing yet.

        Args:
            address: Which server.
            limits: How it is asked.
            seed: With each request's prompt and sample, of the seed that the server is given.
            vocab_size: Of the run's model.
            pause: Waits between tries, for so many seconds.
        """
        self._address, self._limits, self._pause = address, limits, pause
        self._seed, self._vocab_size = seed, vocab_size
        self._opener = urllib.request.build_opener(_NoRedirects())

    def require_served(self) -> None:
        """Check that the server is there and serves the model.

        Raises:
            StageError: If not; names what it serves.
        """
        body = self._send("models", None)
        try:
            served = [model.id for model in _Models.model_validate_json(body).data]
        except ValidationError as error:
            raise self._failed("models", f"no list of models: {_shown(body)}") from error
        if self._address.model not in served:
            raise StageError(
                f"external.served_model: {self._address.url} serves {', '.join(served) or 'nothing'}, "
                f"not {self._address.model}"
            )

    def complete(
        self, requests: Sequence[GenerationRequest], sampling: SamplingParams
    ) -> list[Completion]:
        """A completion of each request, in order.

        Raises:
            StageError: If the server does not give one, or one that was not sampled as asked.
        """
        pool = ThreadPoolExecutor(self._limits.num_requests, thread_name_prefix="completions")
        try:
            return list(pool.map(lambda request: self._complete(request, sampling), requests))
        finally:
            pool.shutdown(cancel_futures=True)

    def _complete(self, request: GenerationRequest, sampling: SamplingParams) -> Completion:
        prompt = request.prompt
        body = self._send("completions", _asked(self._address.model, request, sampling, self._seed))
        try:
            (choice,) = _Answer.model_validate_json(body).choices
        except ValidationError as error:
            raise self._failed("completions", f"no completion: {_shown(body)}") from error
        if choice.token_ids is None:
            raise self._failed(
                "completions",
                "no token_ids, although return_token_ids was asked for: use a server that returns them, "
                "as vLLM's does, or sample into a file and set external.file",
            )
        if choice.prompt_token_ids not in (None, prompt.token_ids):
            raise self._failed("completions", f"other prompt tokens for {prompt.prompt_id}")
        completion = Completion(choice.token_ids, choice.finish_reason)
        fault = fault_of(completion, sampling, vocab_size=self._vocab_size)
        if fault is not None:
            raise self._failed("completions", f"for {prompt.prompt_id}: {fault}")
        return completion

    def _send(self, path: str, body: bytes | None) -> bytes:
        """What the server answers; asked again where that may help.

        Raises:
            StageError: If it refuses, or gives no answer however often it is asked.
        """
        headers = {"Content-Type": "application/json"}
        if self._address.key is not None:
            headers["Authorization"] = f"Bearer {self._address.key}"
        asked = urllib.request.Request(f"{self._address.url.rstrip('/')}/{path}", body, headers)
        for number in range(self._limits.num_retries + 1):
            if number:
                self._pause(min(2.0 ** (number - 1), MAX_PAUSE_SECONDS))
            try:
                with self._opener.open(asked, timeout=self._limits.timeout_seconds) as answer:
                    content: bytes = answer.read()
                    return content
            except urllib.error.HTTPError as error:
                said = f"status {error.code}: {_shown(error.read())}"
                if error.code not in BUSY:
                    raise self._failed(path, said) from error
            except (OSError, http.client.HTTPException) as error:
                said = str(error) or type(error).__name__
        raise self._failed(path, f"{said}; asked {self._limits.num_retries + 1} times")

    def _failed(self, path: str, said: str) -> StageError:
        return StageError(f"external.server: {self._address.url}/{path} answered {said}")


def _asked(model: str, request: GenerationRequest, sampling: SamplingParams, seed: int) -> bytes:
    """A request for one completion; all that a server could have defaults for is said."""
    named = f"{seed}/{request.prompt.prompt_id}/{request.sample}"
    return json.dumps(
        {
            "model": model,
            "prompt": request.prompt.token_ids,
            "n": 1,
            "stream": False,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": int.from_bytes(hashlib.sha256(named.encode()).digest()[:4]) >> 1,
            # The run's stop tokens are all of them, whatever the server takes from the model's files.
            "stop_token_ids": sampling.stop_token_ids,
            "ignore_eos": True,
            "return_token_ids": True,
        }
    ).encode()


def _shown(content: bytes) -> str:
    text = " ".join(content.decode(errors="replace").split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
