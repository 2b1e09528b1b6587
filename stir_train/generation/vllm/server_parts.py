"""Our parts in the two processes behind vLLM's server: the one that schedules, and the one that runs the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.v1.core.sched.scheduler import Scheduler

from stir_train.config.import_path import load_object
from stir_train.generation.vllm.block_keys import Steered, keyed_blocks
from stir_train.generation.vllm.runner_hooks import require_runner
from stir_train.generation.vllm.served import (
    Attachment,
    ServedSteering,
    attachment_of,
    strength_of,
)
from stir_train.generation.vllm.served_runner import ServedRunner
from stir_train.generation.vllm.track import first_asked
from stir_train.models.blocks import find_blocks

SAY = init_logger("vllm.stir_train").info


class SteeredScheduler(Scheduler):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """vLLM's own scheduler; where it is made, block hashes tell what is steered apart."""

    def __init__(self, vllm_config: VllmConfig, *others: Any, **named: Any) -> None:
        attachment = attachment_of(vllm_config.additional_config)
        # For as long as this process lives, which serves nothing else.
        self._keyed = keyed_blocks(lambda request: _steered(request, attachment))
        self._keyed.__enter__()
        super().__init__(vllm_config, *others, **named)


def _steered(request: Any, attachment: Attachment) -> Steered | None:
    """From where on a request's blocks are its own, or those of its strength."""
    strength = strength_of(
        request.sampling_params.extra_args, has_adapter=request.lora_request is not None
    )
    if not strength:
        return None
    first = first_asked(attachment.places, num_prompt=request.num_prompt_tokens)
    owner = f"strength {strength}" if attachment.shares_prompts else request.request_id
    return None if first is None else Steered(first, owner)


class SteeredWorker:
    """What vLLM adds to its worker, and the server calls once the model is loaded."""

    model_runner: Any
    vllm_config: Any

    def stir_train_attach(self) -> None:
        """Steer this worker's passes from now on."""
        attachment = attachment_of(self.vllm_config.additional_config)
        runner = self.model_runner
        require_runner(runner)
        opener = cast(
            "Callable[..., ServedSteering]", load_object(attachment.opener, kind="stir-train serve")
        )
        steering = opener(attachment.source, runner.device)
        blocks = find_blocks(runner.get_model(), num_blocks=attachment.num_blocks)
        ServedRunner(runner, blocks, steering, SAY)
