"""A started vLLM: its settings, what is refused of them, and the loop that completes requests."""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import vllm
from pydantic import JsonValue
from transformers import PretrainedConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core import kv_cache_utils
from vllm.v1.engine import core
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from stir_train.errors import ModelError
from stir_train.generation.backend import ControlSpec, GenerationCost
from stir_train.generation.controller import Controller
from stir_train.generation.vllm.block_keys import HASHING, Steered, keyed_blocks
from stir_train.generation.vllm.calls import REQUEST, SamplingCall
from stir_train.generation.vllm.counter_noise import CounterNoise
from stir_train.generation.vllm.extent import BLOCK_TOKENS, Extent
from stir_train.generation.vllm.ranks import (
    LAUNCHED,
    RankExecutor,
    groups_are_formed,
    num_shards,
)
from stir_train.generation.vllm.runner_hooks import FORWARD, SteeredRunner, require_runner
from stir_train.generation.vllm.settings import require_settings
from stir_train.generation.vllm.track import Track
from stir_train.generation.vllm.versions import (
    OF_ENGINE,
    OF_SCHEDULER,
    require_called,
    require_internals,
)
from stir_train.generation.vllm.weights import LOAD_FORMAT, load_weights_from
from stir_train.models.blocks import find_blocks
from stir_train.models.describe import head_width_of
from stir_train.models.load import LoadedModel
from stir_train.models.lora import adapter_rank

PREFILL_TOKENS = 1 << 13
"""Tokens of a pass, which bounds its memory; a longer prompt has a pass to itself."""
ADAPTER_SLOTS = 2
"""Adapters held side by side. Of one alone, vLLM's CPU kernels give it to the base's rows too."""
STEERED = "stir_train_steered"
"""Key of ``extra_args``: from where on a request's blocks are its own."""
CLEANING = "cleanup_dist_env_and_memory"
"""What an engine's shutdown calls last: it ends the process's communication groups, whose engine it may be."""
_LIVE: set[Session] = set()
"""The started engines of this process."""


class Session:
    """A vLLM engine over a loaded model, for as long as its extent suffices."""

    def __init__(
        self, loaded: LoadedModel, extent: Extent, options: Mapping[str, JsonValue]
    ) -> None:
        """Start it.

        Args:
            loaded: Whose weights it takes.
            extent: How large it is.
            options: Further arguments of vLLM's `EngineArgs`.

        Raises:
            ModelError: If vLLM cannot run the model.
            StageError: If vLLM lacks what we reach into.
        """
        require_internals(
            {
                "GPUModelRunner": (GPUModelRunner, (FORWARD,)),
                "kv_cache_utils": (kv_cache_utils, (HASHING,)),
                "core": (core, (CLEANING,)),
                "LLMEngine": (LLMEngine, OF_ENGINE),
            }
        )
        self.extent = extent
        self._adapter = None if loaded.adapter is None else _adapter_request(loaded.adapter)
        self._engine = _start(loaded, extent, options)
        (self._runner,) = self._engine.model_executor.collective_rpc(_runner_of)
        require_runner(self._runner)
        require_internals({"Scheduler": (self._scheduler, OF_SCHEDULER)})
        if self._runner.device.type != loaded.device.type:
            raise ModelError(
                f"generation.backend=vllm: this vLLM is one for {self._runner.device.type}, and the model is on "
                f"{loaded.device}; set model.device, or install the other vLLM"
            )
        self._blocks = find_blocks(self._runner.get_model(), num_blocks=loaded.identity.num_blocks)
        (self._noise,) = (
            processor
            for processor in self._runner.input_batch.logitsprocs.all
            if isinstance(processor, CounterNoise)
        )
        _LIVE.add(self)

    def close(self) -> None:
        """Give its memory back; engines beside it go on."""
        _LIVE.discard(self)
        with _groups_kept(others_need_them=bool(_LIVE) or groups_are_formed()):
            self._engine.engine_core.shutdown()

    def complete(
        self,
        tracks: Sequence[Track],
        sampling: SamplingCall,
        control: ControlSpec | None,
        controllers: Sequence[Controller],
    ) -> tuple[list[tuple[tuple[int, ...], str]], GenerationCost]:
        """Complete requests, from a cache that holds nothing of other calls.

        Args:
            tracks: The requests, in order; one at least.
            sampling: How their tokens are chosen.
            control: Where control points are.
            controllers: Who steers.

        Returns:
            Sampled tokens and vLLM's reason to stop of each, and the cost.
        """
        cost = GenerationCost()
        steered = SteeredRunner(self._runner, self._blocks, tracks, control, controllers, cost)
        owners = _owners(tracks, controllers)
        longest = max(track.num_context for track in tracks)
        # The same call makes the same batches, whatever was called before.
        self._scheduler.max_num_scheduled_tokens = max(PREFILL_TOKENS, longest)
        self._engine.reset_prefix_cache()
        self._noise.call = sampling
        try:
            with steered.attached(), keyed_blocks(_steered) as hashing:
                names = [
                    self._add(track, sampling, controllers, owner)
                    for track, owner in zip(tracks, owners, strict=True)
                ]
                finished = self._run()
        except BaseException:
            self._abort()
            raise
        finally:
            self._noise.call = None
        completions = [finished[name] for name in names]
        lengths = [
            track.num_context + len(tokens)
            for track, (tokens, _) in zip(tracks, completions, strict=True)
        ]
        require_called(
            {
                f"GPUModelRunner.{FORWARD}": cost.forward_passes > 0,
                f"kv_cache_utils.{HASHING}": hashing.is_called or max(lengths) < BLOCK_TOKENS,
                "its logits processors": all(sampling.logprobs),
            }
        )
        return completions, cost

    @property
    def _scheduler(self) -> Any:
        return self._engine.engine_core.engine_core.scheduler

    def _add(
        self, track: Track, call: SamplingCall, controllers: Sequence[Controller], owner: int
    ) -> str:
        """Queue a request: one completion each, since vLLM would share the extra arguments of several."""
        request, name = track.request, str(track.index)
        first = track.first_steered([c.place for c in controllers])
        self._engine.add_request(
            name,
            TokensPrompt(prompt_token_ids=[*request.prompt.token_ids, *request.prefix_token_ids]),
            vllm.SamplingParams(
                n=1,
                temperature=0,
                max_tokens=call.sampling.max_new_tokens - len(request.prefix_token_ids),
                stop_token_ids=list(call.sampling.stop_token_ids),
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                extra_args={
                    REQUEST: track.index,
                    STEERED: None if first is None else Steered(first, owner),
                },
            ),
            lora_request=self._adapter,
        )
        return name

    def _run(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Complete what is queued; sampled tokens and vLLM's reason to stop, by request."""
        finished = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    made = output.outputs[0]
                    finished[output.request_id] = (tuple(made.token_ids), made.finish_reason)
        return finished

    def _abort(self) -> None:
        """Leave no request behind for the next call."""
        states = self._engine.output_processor.request_states
        self._engine.abort_request(list(states), internal=True)


def _steered(request: Any) -> Steered | None:
    steered: Steered | None = request.sampling_params.extra_args[STEERED]
    return steered


def _runner_of(worker: Any) -> Any:
    return worker.model_runner


def _owners(tracks: Sequence[Track], controllers: Sequence[Controller]) -> list[int]:
    """Whose steered blocks are: each request's own, but samples of one plan share what is planned."""
    if controllers:
        return [track.index for track in tracks]
    first: dict[tuple[int, ...], int] = {}
    plans = [tuple(id(impulse) for impulse in track.request.planned) for track in tracks]
    return [first.setdefault(plan, track.index) for plan, track in zip(plans, tracks, strict=True)]


def _adapter_request(directory: Path) -> LoRARequest:
    return LoRARequest("adapter", 1, str(directory))


@contextmanager
def _groups_kept(*, others_need_them: bool) -> Iterator[None]:
    """Keep the process's communication groups where others use them; memory is freed all the same."""
    cleaning = getattr(core, CLEANING)

    def free_memory() -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    setattr(core, CLEANING, free_memory if others_need_them else cleaning)
    try:
        yield
    finally:
        setattr(core, CLEANING, cleaning)


def _start(loaded: LoadedModel, extent: Extent, options: Mapping[str, JsonValue]) -> LLMEngine:
    """Start an engine over the weights of a loaded model.

    Raises:
        ModelError: If vLLM cannot run it.
    """
    load_weights_from(loaded.model)
    set_num_threads = torch.set_num_threads
    with tempfile.TemporaryDirectory(prefix="stir-train-vllm-") as directory:
        _config_of(loaded).save_pretrained(directory)
        arguments: dict[str, Any] = {
            **_arguments(loaded, extent),
            "model": directory,
            **options,
        }
        try:
            config = EngineArgs(**arguments).create_engine_config()
            require_settings(
                config,
                what="generation.backend=vllm",
                given_by="generation.options",
                num_shards=num_shards(),
            )
            return LLMEngine(
                vllm_config=config,
                executor_class=RankExecutor if groups_are_formed() else Executor.get_class(config),
                log_stats=False,
                multiprocess_mode=False,
            )
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"generation.backend=vllm: no memory for {loaded.identity.name} and a cache of "
                f"{extent.num_blocks * BLOCK_TOKENS} tokens; set generation.max_cache_tokens, or lower "
                "generation.max_rows"
            ) from error
        except (ValueError, NotImplementedError, TypeError) as error:
            raise ModelError(
                f"generation.backend=vllm: vLLM cannot run {loaded.identity.name}: {error}"
            ) from error
        finally:
            # Its CPU worker replaces this function for the whole process.
            torch.set_num_threads = set_num_threads


def _arguments(loaded: LoadedModel, extent: Extent) -> dict[str, Any]:
    """What the engine is started with. What follows from it here, the options may not change."""
    adapter: dict[str, Any] = {}
    launched: dict[str, Any] = {}
    if groups_are_formed():
        launched = {
            "distributed_executor_backend": LAUNCHED,
            "tensor_parallel_size": num_shards(),
        }
    if loaded.adapter is not None:
        adapter = {
            "enable_lora": True,
            "max_loras": ADAPTER_SLOTS,
            "max_lora_rank": adapter_rank(loaded.adapter),
        }
    return {
        "load_format": LOAD_FORMAT,
        "skip_tokenizer_init": True,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "seed": 0,
        "max_model_len": extent.max_length,
        "max_num_seqs": extent.max_rows,
        "max_num_batched_tokens": max(PREFILL_TOKENS, extent.max_length, extent.max_rows),
        # A controller that acts on a whole prompt must see the whole prompt in one pass.
        "enable_chunked_prefill": False,
        "enable_prefix_caching": True,
        "block_size": BLOCK_TOKENS,
        "num_gpu_blocks_override": extent.num_blocks,
        "kv_cache_memory_bytes": extent.num_blocks * BLOCK_TOKENS * _token_bytes(loaded),
        # The cache's size is given; vLLM would still refuse to start where less than this share is free.
        "gpu_memory_utilization": 0.05,
        "enforce_eager": True,
        "async_scheduling": False,
        "logits_processors": [CounterNoise],
        "disable_log_stats": True,
        **launched,
        **adapter,
    }


def _config_of(loaded: LoadedModel) -> PretrainedConfig:
    """The model's configuration; weights that were stored quantised are not, in memory."""
    config: PretrainedConfig = copy.deepcopy(loaded.model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [loaded.identity.architecture]
    return config


def _token_bytes(loaded: LoadedModel) -> int:
    """Memory of a token in this rank's cache: keys and values of every block."""
    config = loaded.model.config.get_text_config()
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_width = head_width_of(config)
    assert head_width is not None, "the engine refuses a model without attention"
    numbers = 2 * config.num_hidden_layers * num_heads * head_width
    whole = numbers * loaded.model.dtype.itemsize
    return int(whole // num_shards())
