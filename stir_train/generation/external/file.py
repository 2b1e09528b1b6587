"""Prompts out as JSON lines, and completions of them in: every line is checked before one is used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, ValidationError

from stir_train.artifacts.atomic import write_text
from stir_train.errors import DataError
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.external.completion import Completion, fault_of
from stir_train.types.rollout import FinishReason, Prompt

MAX_LISTED = 20


class CompletionLine(BaseModel):
    """One line of a file of completions; other keys are ignored.

    Attributes:
        prompt_id: As in the file of prompts.
        sample: From 0 to ``rollout.num_samples`` - 1.
        prompt_token_ids: What the sampler was fed.
        token_ids: What it sampled, the stop token included.
        finish_reason: ``stop``, or ``length`` at the token budget.
        temperature, top_p, top_k: What it was sampled with; 0 or -1 as ``top_k`` keeps all.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    prompt_id: str
    sample: int
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    temperature: float
    top_p: float
    top_k: int = 0

    @property
    def completion(self) -> Completion:
        """The sampled tokens and why they end, without what they were sampled for."""
        return Completion(self.token_ids, self.finish_reason)


def write_prompts(
    path: Path, prompts: Sequence[Prompt], sampling: SamplingParams, *, num_samples: int
) -> None:
    """Write what is to be sampled: a line a prompt, each with the sampling settings."""
    asked = {
        "num_samples": num_samples,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_new_tokens": sampling.max_new_tokens,
        "stop_token_ids": sampling.stop_token_ids,
    }
    lines = [
        {"prompt_id": p.prompt_id, "text": p.text, "prompt_token_ids": p.token_ids, **asked}
        for p in prompts
    ]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


class CompletionFile:
    """A checked file of completions; a `CompletionSource`. Only the places of its lines are held."""

    def __init__(
        self,
        path: Path,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        *,
        num_samples: int,
        vocab_size: int,
    ) -> None:
        """Check every line, and that there is one for every sample of every prompt.

        Raises:
            DataError: Listing what is wrong.
        """
        self._path, self._num_samples, self._vocab_size = path, num_samples, vocab_size
        self._prompts: Mapping[str, Prompt] = {prompt.prompt_id: prompt for prompt in prompts}
        self._offsets: dict[tuple[str, int], int] = {}
        bad: list[str] = []
        for number, offset, line in self._lines():
            try:
                held = _parse(line)
                key = held.prompt_id, held.sample
                if key in self._offsets:
                    raise DataError(f"sample {held.sample} of {held.prompt_id} is there already")
                self._offsets[key] = offset
                self._require_usable(held, sampling)
            except DataError as error:
                bad.append(f"line {number}: {error}")
        bad += self._missing()
        if bad:
            more = [f"and {len(bad) - MAX_LISTED} more"] if len(bad) > MAX_LISTED else []
            listed = "\n".join(f"  - {line}" for line in [*bad[:MAX_LISTED], *more])
            raise DataError(
                f"{path} cannot be imported, {len(bad)} things are wrong; "
                f"`stir-train data --prompts` writes what is to be sampled\n{listed}"
            )

    def complete(
        self, requests: Sequence[GenerationRequest], sampling: SamplingParams
    ) -> list[Completion]:
        """A completion of each request, in order; their lines are read and checked again.

        Raises:
            DataError: If the file changed meanwhile.
        """
        made = []
        with _opened(self._path) as stream:
            for request in requests:
                key = request.prompt.prompt_id, request.sample
                stream.seek(self._offsets[key])
                try:
                    held = _parse(stream.readline())
                    self._require_usable(held, sampling)
                except DataError as error:
                    raise DataError(f"{self._path} changed while it was read: {error}") from error
                if (held.prompt_id, held.sample) != key:
                    raise DataError(f"{self._path} changed while it was read")
                made.append(held.completion)
        return made

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Number, offset and text of every line that is not blank."""
        offset = 0
        with _opened(self._path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, offset, line
                offset += len(line)

    def _require_usable(self, held: CompletionLine, sampling: SamplingParams) -> None:
        """Check that a line is a completion of a prompt of the run, sampled as the run asks.

        Raises:
            DataError: If it is not.
        """
        prompt = self._prompts.get(held.prompt_id)
        if prompt is None:
            raise DataError(f"prompt_id {held.prompt_id!r} is no problem of the harvest split")
        if not 0 <= held.sample < self._num_samples:
            raise DataError(
                f"sample {held.sample} of {held.prompt_id}; rollout.num_samples={self._num_samples} "
                f"numbers them 0 to {self._num_samples - 1}"
            )
        if held.prompt_token_ids != prompt.token_ids:
            raise DataError(
                f"prompt_token_ids of {held.prompt_id} are not those that the run renders: "
                f"{_difference(held.prompt_token_ids, prompt.token_ids)}"
            )
        given = {"temperature": held.temperature, "top_p": held.top_p, "top_k": max(held.top_k, 0)}
        for name, value in given.items():
            wanted = getattr(sampling, name)
            if value != wanted:
                raise DataError(f"{name} {value:g}, rollout.{name} is {wanted:g}")
        fault = fault_of(held.completion, sampling, vocab_size=self._vocab_size)
        if fault is not None:
            raise DataError(f"sample {held.sample} of {held.prompt_id}: {fault}")

    def _missing(self) -> list[str]:
        """A line for every prompt that lacks samples."""
        found = []
        for prompt_id in self._prompts:
            lacking = [k for k in range(self._num_samples) if (prompt_id, k) not in self._offsets]
            if lacking:
                found.append(f"{prompt_id}: no samples {', '.join(map(str, lacking))}")
        return found


def _parse(line: bytes) -> CompletionLine:
    try:
        return CompletionLine.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{where}: {first['msg']}" if where else first["msg"]) from error


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"external.file: {path} cannot be read: {error.strerror}") from error


def _difference(given: Sequence[int], wanted: Sequence[int]) -> str:
    """Where two lists of token ids part."""
    if len(given) != len(wanted):
        return f"{len(given)} tokens, expected {len(wanted)}"
    at = next(i for i, (a, b) in enumerate(zip(given, wanted, strict=True)) if a != b)
    return f"token {at} is {given[at]}, expected {wanted[at]}"
