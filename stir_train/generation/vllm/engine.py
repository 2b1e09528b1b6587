"""The backend: what it can do, what it refuses, and its results as our types.

It imports no vLLM until it completes a request.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from pydantic import JsonValue

from stir_train.data.control_points import ControlPointAutomaton
from stir_train.distributed.collective_forward import CollectiveForward
from stir_train.distributed.environment import environment
from stir_train.distributed.world import World
from stir_train.errors import ConfigError, ModelError
from stir_train.generation.backend import (
    Ability,
    ControlSpec,
    GenerationCall,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
    TokenListener,
)
from stir_train.generation.checks import require_possible
from stir_train.generation.controller import Steering, controllers_of
from stir_train.generation.teacher_forced import teacher_force
from stir_train.generation.vllm.calls import SamplingCall
from stir_train.generation.vllm.extent import Extent
from stir_train.generation.vllm.heads import require_heads
from stir_train.generation.vllm.track import Track
from stir_train.generation.vllm.versions import installed_version, load_part
from stir_train.models.describe import head_width_of
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt, Rollout
from stir_train.types.trajectory import CapturedStates

if TYPE_CHECKING:
    from stir_train.generation.vllm.session import Session

SETTING = "generation.backend"
SESSION = "stir_train.generation.vllm.session:Session"
GROUPS = "stir_train.generation.vllm.ranks:form_groups"
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""While vLLM starts: it lives in this process, where controllers are, and runs models by the runner that
we hook into, and tells nobody that it is used."""
PROBE_TOKENS = 8
"""Tokens of the prompt and the completion by which an engine is checked when it starts."""
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Of the states that vLLM and transformers compute, relative to their norm."""
MIN_LENGTH = 256
"""Tokens for which an engine is started at least; one that is too short is started again, twice as long."""
REFUSED: Mapping[str, str] = {
    "enforce_eager": "hooks on compiled graphs never run, so this backend runs eagerly",
    "compilation_config": "hooks on compiled graphs never run, so this backend runs eagerly",
    "async_scheduling": "a controller decides before the next token is scheduled",
    "speculative_config": "drafted tokens would be steered before they are accepted",
    "pipeline_parallel_size": "a pass is steered in one process",
    "tensor_parallel_size": "it is model.shards",
    "distributed_executor_backend": "it follows from the launch",
    "data_parallel_size": "each rank has an engine of its own",
    "enable_chunked_prefill": "a prompt is steered in one pass",
    "max_model_len": "it follows from generation.max_new_tokens and the prompts",
    "max_num_seqs": "it is generation.max_rows",
    "num_gpu_blocks_override": "it follows from generation.max_cache_tokens",
    "kv_cache_memory_bytes": "it follows from generation.max_cache_tokens",
    "block_size": "it is fixed",
    "dtype": "it is model.dtype",
    "model": "it is model.name",
    "load_format": "weights are those of the loaded model",
    "logits_processors": "tokens are chosen by this package",
}
"""What ``generation.options`` may not say, and why."""


class VLLMEngine:
    """A `GenerationBackend` over vLLM in this process, one a process."""

    name = "vllm"
    abilities = frozenset(Ability) - {
        Ability.PREVIEW,
        Ability.EDIT_WEIGHTS,
        Ability.TELL_UNCERTAINTY,
    }
    collective_forward: CollectiveForward | None = None

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_rows: int,
        max_cache_tokens: int | None = None,
        options: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """Prepare to complete requests side by side; vLLM is started by the first.

        Args:
            loaded: The frozen model, whose weights vLLM copies.
            max_rows: At most this many rows.
            max_cache_tokens: Tokens that the cache holds; None holds all rows at their longest.
            options: Further arguments of vLLM's engine.

        Raises:
            ConfigError: If an option is one of those that are refused.
            ModelError: If ranks hold the model together otherwise than vLLM does, or its attention does not
                compute the model's heads.
            StageError: If there is no vLLM, or not the supported one.
        """
        self.check_installation(options or {})
        if loaded.collective_forward is not None:
            raise ModelError(
                "generation.backend=vllm: expected model.sharding=none or tensor, found zero3, whose ranks "
                "take turns in passes; use generation.backend=transformers for it"
            )
        width = head_width_of(loaded.model.config)
        require_heads(loaded.identity.name, width, loaded.device.type)
        self._loaded, self._options = loaded, dict(options or {})
        self._max_rows, self._max_cache_tokens = max_rows, max_cache_tokens
        self._session: Session | None = None

    @staticmethod
    def check_installation(options: Mapping[str, JsonValue]) -> str:
        """Refuse what cannot work, without importing vLLM; return vLLM's version.

        Raises:
            ConfigError: If an option is one of those that are refused.
            StageError: If there is no vLLM, or not the supported one.
        """
        for name in options:
            if name in REFUSED:
                raise ConfigError(
                    f"generation.options.{name}: not with generation.backend=vllm: {REFUSED[name]}"
                )
        return installed_version()

    @staticmethod
    def prepare_ranks(world: World, *, num_shards: int) -> None:
        """Make vLLM's process groups, so that each group of ranks starts its engine when it needs one.

        Raises:
            StageError: If vLLM lacks what we reach into.
        """
        if world.size > 1:
            form = cast("Callable[[World, int], None]", load_part(GROUPS, kind=SETTING))
            with starting_vllm():
                form(world, num_shards)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingParams,
        *,
        seed: int,
        control: ControlSpec | None = None,
        controller: Steering | None = None,
        listener: TokenListener | None = None,
    ) -> GenerationResult:
        """Complete every request.

        Raises:
            DataError: If a prompt and its token budget do not fit the model's context.
            ModelError: If vLLM cannot run the model, or runs it otherwise than transformers.
            StageError: If a controller needs what this backend lacks.
        """
        call = GenerationCall(requests, sampling, seed, control, controller, listener)
        require_possible(self, call, max_tokens=self._loaded.max_tokens)
        if not requests:
            return GenerationResult((), _stack([], control, self._loaded))
        longest = max(len(request.prompt.token_ids) for request in requests)
        self._require_session(longest + sampling.max_new_tokens)
        return self._complete(call)

    def close(self) -> None:
        """Give vLLM's memory back; the next call starts it again."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _complete(self, call: GenerationCall) -> GenerationResult:
        assert self._session is not None, "a session is started before"
        automaton = None if call.control is None else call.control.automaton
        tracks = [Track(index, request, automaton) for index, request in enumerate(call.requests)]
        sampling = SamplingCall(
            tuple(call.requests), call.sampling, tuple(call.noise_keys()), call.listener
        )
        controllers = controllers_of(call.controller)
        made, cost = self._session.complete(tracks, sampling, call.control, controllers)
        rollouts = tuple(
            _rollout(track, tokens, logprobs, stopped=reason == "stop")
            for track, (tokens, reason), logprobs in zip(
                tracks, made, sampling.logprobs, strict=True
            )
        )
        decisions = tuple(decided for track in tracks for decided in track.decisions)
        states = _stack(tracks, call.control, self._loaded)
        return GenerationResult(rollouts, states, cost, decisions)

    def _require_session(self, length: int) -> None:
        """Start vLLM, or start it again where it is too short for a prompt and its budget."""
        if self._session is not None and self._session.extent.max_length >= length:
            return
        self.close()
        rounded = max(MIN_LENGTH, 1 << (length - 1).bit_length())
        extent = Extent(
            self._max_rows, min(rounded, self._loaded.max_tokens), self._max_cache_tokens
        )
        with starting_vllm():
            start = cast("type[Session]", load_part(SESSION, kind=SETTING))
            self._session = start(self._loaded, extent, self._options)
        try:
            self._require_same_model()
        except BaseException:
            self.close()
            raise

    def _require_same_model(self) -> None:
        """Complete a short prompt, and compare every block's states with those of the loaded model.

        Raises:
            ModelError: If they differ by more than rounding: then vLLM's blocks return something else.
        """
        loaded = self._loaded
        blocks = tuple(range(loaded.identity.num_blocks))
        everywhere = torch.ones((1, loaded.vocab_size), dtype=torch.bool)
        automaton = ControlPointAutomaton(
            torch.zeros_like(everywhere, dtype=torch.long), everywhere
        )
        ids = tuple(i % loaded.vocab_size for i in range(1, PROBE_TOKENS + 1))
        request = GenerationRequest(Prompt("probe", "", "", ids, ""))
        control = ControlSpec(automaton, PROBE_TOKENS, blocks)
        made = self._complete(GenerationCall([request], SamplingParams(PROBE_TOKENS), 0, control))
        assert made.states is not None, "blocks are captured"
        read = teacher_force(loaded, made.rollouts, blocks, max_points=PROBE_TOKENS).states
        theirs, ours = made.states.states, read.states[: len(made.states.labels)]
        errors = ((theirs - ours).norm(dim=-1) / ours.norm(dim=-1)).amax(0)
        worst = int(errors.argmax())
        limit = TOLERANCES[loaded.model.dtype]
        if not float(errors[worst]) <= limit:
            raise ModelError(
                f"generation.backend=vllm: after block {worst} of {loaded.identity.name} the states of vLLM "
                f"and transformers differ by {float(errors[worst]):.2g} of their norm, over {limit:g}; use "
                "generation.backend=transformers for this model"
            )


@contextmanager
def starting_vllm() -> Iterator[None]:
    """Its environment; of what a library warns while it starts, a user can mend nothing."""
    with environment(ENVIRONMENT), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _rollout(
    track: Track, tokens: tuple[int, ...], logprobs: Mapping[int, float], *, stopped: bool
) -> Rollout:
    """A finished completion; a prefix has no log-probabilities, as in our own engine."""
    prefix = track.request.prefix_token_ids
    sampled = tuple(logprobs[len(prefix) + place] for place in range(len(tokens)))
    return Rollout(
        prompt_id=track.request.prompt.prompt_id,
        sample=track.request.sample,
        prompt_token_ids=track.request.prompt.token_ids,
        token_ids=(*prefix, *tokens),
        logprobs=(float("nan"),) * len(prefix) + sampled,
        control_points=tuple(track.control_points),
        finish_reason="stop" if stopped else "length",
        impulses=tuple(track.impulses),
        forward_passes=track.forward_passes,
    )


def _stack(
    tracks: Sequence[Track], control: ControlSpec | None, loaded: LoadedModel
) -> CapturedStates | None:
    """The captured states in request order; None if none were asked for."""
    if control is None or not control.capture_blocks:
        return None
    states = [state for track in tracks for state in track.states]
    shape = (0, len(control.capture_blocks), loaded.identity.width)
    stacked = torch.stack(states).cpu() if states else torch.zeros(shape)
    labels = tuple(label for track in tracks for label in track.labels)
    return CapturedStates(labels, control.capture_blocks, stacked)
