"""vLLM among the ranks of a launch: an engine a rank, or one for each group that holds a model together.

vLLM makes its process groups when an engine starts, with all ranks of the launch. Ours start engines when
their first chunk needs one, which may be at different times, or never. So all ranks make the groups
together once, before, and engines find them made. A controller runs on every rank of a group: states are whole
there after a block's all-reduce, so that all decide, and sample, the same.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import ParallelConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.platforms import current_platform
from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher, UniProcExecutor

from stir_train.distributed.environment import environment
from stir_train.distributed.world import World, num_processes
from stir_train.errors import StageError
from stir_train.generation.vllm.versions import OF_GROUPS, require_internals

LAUNCHED = "external_launcher"
"""vLLM's name for processes that somebody else has started."""
SHARED_MEMORY_NAME = "VLLM_DIST_IDENT"
"""Variable that ranks on CPUs agree on where they are to share memory."""


class RankExecutor(ExecutorWithExternalLauncher):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Runs this rank's part of a model, in this process."""

    def _distributed_args(self) -> tuple[str, int, int]:
        """As vLLM's, but a rank that sees one GPU of several has its number, not the rank's."""
        method, rank, local_rank = super()._distributed_args()
        return method, rank, _device_number(local_rank)

    def determine_available_memory(self) -> Any:
        """Ask this rank alone: the cache's size is given, and other groups may not be starting."""
        return UniProcExecutor.determine_available_memory(self)


def form_groups(world: World, size: int) -> None:
    """Make vLLM's process groups, once. Collective over all ranks.

    Args:
        world: All ranks.
        size: Consecutive ranks that hold a model together.

    Raises:
        StageError: If vLLM lacks what we reach into.
    """
    require_internals({"parallel_state": (parallel_state, OF_GROUPS)})
    if parallel_state.model_parallel_is_initialized():
        return
    parallel = ParallelConfig(tensor_parallel_size=size, distributed_executor_backend=LAUNCHED)
    with (
        # On CPUs vLLM would add up over shared memory, in another order on every rank: states would differ
        # in their last bits, and with them decisions. Ranks that do not agree on a name add up by gloo.
        environment({SHARED_MEMORY_NAME: str(world.rank)}),
        set_current_vllm_config(VllmConfig(parallel_config=parallel)),
    ):
        parallel_state.init_distributed_environment(
            world.size,
            world.rank,
            "env://",
            _device_number(world.launch.local_rank),
            current_platform.dist_backend,
        )
        parallel_state.initialize_model_parallel(size)


def _device_number(local_rank: int) -> int:
    """Of the GPU that this rank has joined the launch with; on CPUs, the rank's place on its host."""
    return torch.cuda.current_device() if torch.cuda.is_available() else local_rank


def groups_are_formed() -> bool:
    """Whether this is one of several ranks, ready to start an engine.

    Raises:
        StageError: If it is one that never met the others.
    """
    if num_processes() == 1:
        return False
    if not parallel_state.model_parallel_is_initialized():
        raise StageError(
            f"generation.backend=vllm: this is one of {num_processes()} processes of a launch, and what "
            "it does is done by one; start it without a launcher"
        )
    return True


def num_shards() -> int:
    """Consecutive ranks that hold a model together."""
    formed = groups_are_formed()
    return int(parallel_state.get_tensor_model_parallel_world_size()) if formed else 1
