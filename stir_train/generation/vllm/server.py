"""vLLM's own OpenAI-compatible server, with controllers in its passes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.entry import (
    build_and_serve,
    build_async_engine_client_from_engine_args,
)
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import setup_server
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.core import kv_cache_utils
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from stir_train.generation.vllm.block_keys import HASHING
from stir_train.generation.vllm.runner_hooks import FORWARD
from stir_train.generation.vllm.served import Attachment, refusal
from stir_train.generation.vllm.served_runner import UPDATE
from stir_train.generation.vllm.settings import require_settings
from stir_train.generation.vllm.versions import require_internals

ATTACH = "stir_train_attach"
"""The method of `SteeredWorker`."""
BEAM = "-beam-"
"""In the names that vLLM gives to the steps of a beam search."""


def serve(arguments: Sequence[str], attachment: Attachment | None) -> None:
    """Serve until told to stop.

    Args:
        arguments: Of ``vllm serve``.
        attachment: How requests are steered; None steers none.

    Raises:
        StageError: If vLLM lacks what we reach into, or would run where hooks do not reach.
    """
    require_internals(
        {
            "GPUModelRunner": (GPUModelRunner, (FORWARD, UPDATE)),
            "kv_cache_utils": (kv_cache_utils, (HASHING,)),
        }
    )
    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    parsed = parser.parse_args(list(arguments))
    configure_logging_from_args(parsed)
    validate_parsed_serve_args(parsed)
    # As in vLLM's own: a server that is told to stop while it starts ends the processes behind it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    asyncio.run(_serve(parsed, attachment))


async def _serve(parsed: Any, attachment: Attachment | None) -> None:
    """As vLLM's own ``run_server`` does, but attach before the first request, and look at each."""
    engine_arguments = AsyncEngineArgs.from_cli_args(parsed)
    context = UsageContext.OPENAI_API_SERVER
    if attachment is not None:
        require_settings(
            engine_arguments.create_engine_config(context),
            what="stir-train serve",
            given_by="vLLM's arguments",
        )
    address, socket = setup_server(parsed, reuse_port=False)
    try:
        async with build_async_engine_client_from_engine_args(
            engine_arguments, usage_context=context
        ) as engine:
            if attachment is not None:
                await engine.collective_rpc(ATTACH)
            engine.generate = _checked(engine.generate, steers=attachment is not None)
            stopping = await build_and_serve(engine, address, socket, parsed)
        await stopping
    finally:
        socket.close()


def _checked(plain: Callable[..., Any], *, steers: bool) -> Callable[..., Any]:
    """Refuse what cannot be answered as it is asked, which the client is told as a bad request."""

    def generate(prompt: Any, sampling_params: Any, request_id: str, **others: Any) -> Any:
        why = refusal(
            sampling_params.extra_args,
            has_adapter=others.get("lora_request") is not None,
            steers=steers,
            is_beam=BEAM in request_id,
        )
        if why is not None:
            raise ValueError(why)
        return plain(prompt, sampling_params, request_id, **others)

    return generate
