"""Load a model that is larger than one device: over several ranks, or over a process's devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.distributed.utils import TransformersDeviceMesh
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from stir_train.distributed.collective_forward import CollectiveForward
from stir_train.distributed.deepspeed_api import (
    import_deepspeed,
    shard_weights,
    zero3_inference_config,
)
from stir_train.distributed.world import World
from stir_train.errors import ModelError


def load_tensor_parallel(
    path: str, settings: dict[str, Any], world: World, shards: int, device: torch.device
) -> PreTrainedModel:
    """Split every layer over groups of ``shards`` consecutive ranks. Collective.

    transformers splits over a whole launch. Here a launch may hold several copies: the mesh is ours.

    Raises:
        ModelError: If ranks, heads or the architecture cannot be split so.
    """
    if world.size % shards or world.size < shards:
        raise ModelError(
            f"model.shards: a launch of {world.size} processes cannot hold whole copies of {shards} "
            f"shards; start a multiple of {shards} (torchrun --nproc-per-node, srun --ntasks)"
        )
    config = AutoConfig.from_pretrained(
        path,
        revision=settings.get("revision"),
        trust_remote_code=settings.get("trust_remote_code", False),
    )
    _require_divisible(config.get_text_config(), shards)
    # The axes of transformers' own mesh, one row a group.
    axes = {"pp": 1, "dp_replicate": world.size // shards, "fsdp": 1, "tp": shards}
    mesh = world.mesh(device.type, axes)

    def prepare(
        _cls: type, /, distributed_config: DistributedConfig, **_device_map: object
    ) -> tuple[DistributedConfig, object, TransformersDeviceMesh]:
        return distributed_config, device, TransformersDeviceMesh(mesh, mesh)

    # There is no public look-up of the class.
    base: Any = AutoModelForCausalLM._model_mapping[type(config)]  # noqa: SLF001
    ours: Any = type(base.__name__, (base,), {"prepare_distribute_model": classmethod(prepare)})
    model: PreTrainedModel = ours.from_pretrained(
        path, distributed_config=DistributedConfig(tp_size=shards), **settings
    )
    model.__class__ = base
    _require_split(model, shards)
    return model


def _require_divisible(config: PretrainedConfig, shards: int) -> None:
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None)
        if heads is not None and heads % shards:
            raise ModelError(f"model.shards: {name} is {heads}, which {shards} does not divide")


def _require_split(model: PreTrainedModel, shards: int) -> None:
    """A plan that matches nothing leaves a model whole without a word."""
    held = sum(_local_size(p) for p in model.parameters())
    whole = sum(p.numel() for p in model.parameters())
    if held > 0.9 * whole:
        raise ModelError(
            f"model.sharding: {type(model).__name__} has no tensor-parallel plan that splits it: "
            f"each of {shards} ranks would hold {held:,} of {whole:,} weights; use zero3"
        )


def _local_size(parameter: torch.Tensor) -> int:
    to_local = getattr(parameter, "to_local", None)
    return int((to_local() if to_local else parameter).numel())


def load_spread(
    path: str, settings: dict[str, Any], world: World, max_memory: Mapping[str, str]
) -> tuple[PreTrainedModel, torch.device]:
    """Lay blocks one after another over this process's GPUs, then host memory, then disk.

    By accelerate's device map, which moves states from block to block; only one device works at a time.

    Args:
        path: Directory or hub id.
        settings: For ``from_pretrained``.
        world: Must start one process on each host, or they would fight over its GPUs.
        max_memory: Device (a GPU's number or ``cpu``) to what may be put there; empty asks the devices.

    Returns:
        The model, and where its inputs go.

    Raises:
        ModelError: If this host has several processes.
    """
    if world.launch.local_size > 1:
        raise ModelError(
            f"model.device: spread gives all GPUs of a host to one process, and this launch has "
            f"{world.launch.local_size} there; start one, or use model.sharding=tensor"
        )
    limits = {int(k) if k.isdecimal() else k: v for k, v in max_memory.items()}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path, device_map="auto", max_memory=limits or None, **settings
    )
    # What lies on disk has no device of its own: its hook knows where it is fetched to.
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    device = model.device if hook is None else torch.device(hook.execution_device)
    return model, device


def load_zero3(
    path: str, settings: dict[str, Any], world: World, dtype: torch.dtype
) -> tuple[PreTrainedModel, CollectiveForward]:
    """Shard all weights over all ranks, frozen, ready to decode in step. Collective."""
    config = zero3_inference_config(dtype)
    model = load_partitioned(path, settings, world, config)
    shard_weights(model.requires_grad_(requires_grad=False), config)

    @torch.no_grad()
    def idle_pass() -> None:
        model(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)

    return model, CollectiveForward(world, model, idle_pass)


def load_partitioned(
    path: str, settings: dict[str, Any], world: World, config: dict[str, Any]
) -> PreTrainedModel:
    """Load under ZeRO-3: no rank ever holds the whole. For an engine still to be opened on it."""
    import_deepspeed()
    world.require_group()
    # transformers looks for this object while it lives.
    held = HfDeepSpeedConfig(config)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, **settings)
    del held
    return model
