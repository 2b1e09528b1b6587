"""Rollouts that something else samples: what answers, what is checked before, what they are known by."""

from __future__ import annotations

from stir_train.answering.external import ExternalAnswerer
from stir_train.answering.interface import Answerer
from stir_train.artifacts.atomic import file_sha256
from stir_train.config.external import ExternalConfig
from stir_train.config.run import RunConfig
from stir_train.distributed.environment import secret
from stir_train.errors import ConfigError, DataError
from stir_train.generation.external.completion import CompletionSource
from stir_train.generation.external.file import CompletionFile
from stir_train.generation.external.server import CompletionServer, RequestLimits, ServerAddress
from stir_train.runtime.answerers import control_spec, plain_answerer
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import sampling_params


def rollout_answerer(context: RunContext) -> Answerer:
    """What gives the rollouts of the harvest, states captured: the run's own model, or something else."""
    blocks = context.resources.captured_blocks
    if not context.config.external.is_used:
        return plain_answerer(context, capture_blocks=blocks)
    return ExternalAnswerer(
        lambda: _source(context),
        lambda: context.resources.engine,
        lambda: context.resources.loaded,
        control_spec(context, blocks),
    )


def require_external(context: RunContext) -> None:
    """Check every line of a file of completions, or that a server serves the model.

    Raises:
        StirError: If the rollouts could not be made from it.
    """
    source = _source(context)
    if isinstance(source, CompletionServer):
        source.require_served()


def external_sources(config: RunConfig) -> dict[str, str]:
    """What rollouts from a file are known by: its hash, wherever it is.

    Raises:
        DataError: If it cannot be read.
    """
    path = config.external.file
    if path is None:
        return {}
    try:
        return {"external rollouts": file_sha256(path)}
    except OSError as error:
        raise DataError(f"external.file: {path} cannot be read: {error.strerror}") from error


def _source(context: RunContext) -> CompletionSource:
    external, vocab_size = context.config.external, context.resources.described.vocab_size
    if external.file is not None:
        return CompletionFile(
            external.file,
            context.splits["harvest"],
            sampling_params(context, greedy=False),
            num_samples=context.config.rollout.num_samples,
            vocab_size=vocab_size,
        )
    assert external.server is not None
    return CompletionServer(
        ServerAddress(
            external.server,
            external.served_model or context.config.model.name,
            _key(external),
        ),
        RequestLimits(external.num_requests, external.timeout_seconds, external.num_retries),
        seed=context.config.seed,
        vocab_size=vocab_size,
    )


def _key(external: ExternalConfig) -> str | None:
    """The server's key, if it has one.

    Raises:
        ConfigError: If the environment lacks it.
    """
    if external.key_variable is None:
        return None
    key = secret(external.key_variable)
    if key is None:
        raise ConfigError(
            f"external.key_variable: the environment has no {external.key_variable}; set it to the "
            f"server's key, or take the setting out"
        )
    return key
