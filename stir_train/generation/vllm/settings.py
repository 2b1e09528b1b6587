"""What vLLM has made of its settings, and whether we can steer there."""

from __future__ import annotations

from vllm.config import CompilationMode, VllmConfig

from stir_train.errors import StageError


def require_settings(config: VllmConfig, *, what: str, given_by: str, num_shards: int = 1) -> None:
    """Refuse settings, vLLM's own choice or the environment's too, under which we cannot steer.

    Args:
        config: vLLM's.
        what: Needs to steer, as a user knows it.
        given_by: Where a user gives settings of vLLM's.
        num_shards: Ranks that hold the model together, each of which we steer.

    Raises:
        StageError: If a pass would not be ours, silently.
    """
    wrong = {
        "compiled graphs": config.compilation_config.mode != CompilationMode.NONE,
        "asynchronous scheduling": config.scheduler_config.async_scheduling,
        "speculative decoding": config.speculative_config is not None,
        "several processes": config.parallel_config.world_size_across_dp != num_shards,
        "the V2 model runner": config.use_v2_model_runner,
    }
    found = [name for name, is_on in wrong.items() if is_on]
    if found:
        raise StageError(
            f"{what}: vLLM would use {' and '.join(found)}, where hooks do not reach; leave that out of "
            f"{given_by} and of the environment"
        )
