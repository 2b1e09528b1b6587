"""A model and its optimizer, trained by this process alone or by all ranks under DeepSpeed."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from stir_train.config.deepspeed import GRADIENT_CLIP, deepspeed_config
from stir_train.config.learning import TrainConfig
from stir_train.distributed.deepspeed_api import import_deepspeed
from stir_train.distributed.world import World
from stir_train.errors import ConfigError

ADAM_STATE = ("exp_avg", "exp_avg_sq")


@runtime_checkable
class TrainEngine(Protocol):
    """What a fit needs. Every method is collective.

    Attributes:
        module: Called for a forward pass.
        world: The ranks that share each batch.
        num_parts: Parts that a rank's share of a batch is cut into.
    """

    module: nn.Module
    world: World
    num_parts: int

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times the one that the optimizer was made with."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one part of a batch.

        Args:
            loss: A scalar. What is minimised is the sum of these over the parts and ranks of a step, so a
                mean over the batch must be divided by the size of the whole batch.
        """
        ...

    def step(self) -> float:
        """After ``num_parts`` calls of `backward`: clip, update; return the norm before clipping."""
        ...

    def parameters(self) -> dict[str, Tensor]:
        """The trainable parameters, whole, float32, on the CPU, on every rank."""
        ...

    def load_parameters(self, values: Mapping[str, Tensor]) -> None:
        """Set the trainable parameters to what `parameters` returned, here or on other ranks."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Parameters and optimizer state, whole, on the CPU: all that the next step depends on."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state`, of any number of ranks. The engine must have stepped once."""
        ...


def open_engine(
    model: nn.Module, optimizer: torch.optim.AdamW, config: TrainConfig, world: World
) -> TrainEngine:
    """Make the engine that the configuration and the launch call for.

    Raises:
        ConfigError: If several ranks are to train with the plain engine.
    """
    kind = config.engine
    if kind == "auto":
        kind = "plain" if world.size == 1 else "deepspeed"
    if kind == "deepspeed":
        return DeepSpeedEngine(model, optimizer, config, world)
    if world.size > 1:
        raise ConfigError(
            f"train.engine: plain trains in one process, this launch has {world.size}; "
            "use auto or deepspeed"
        )
    return PlainEngine(model, [optimizer], world, num_parts=config.gradient_accumulation)


class _Rates:
    """An optimizer's base learning rates."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._base = [group["lr"] for group in optimizer.param_groups]

    def set(self, factor: float) -> None:
        """Set each group's rate to ``factor`` times its base."""
        for group, rate in zip(self._optimizer.param_groups, self._base, strict=True):
            group["lr"] = rate * factor


class PlainEngine:
    """A `TrainEngine` of PyTorch alone, in one process.

    It may drive several optimizers over one model; gradients are clipped by their norm over all of them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        world: World,
        *,
        num_parts: int = 1,
    ) -> None:
        self.module, self.world, self.num_parts = model, world, num_parts
        self._optimizers = optimizers
        self._rates = [_Rates(optimizer) for optimizer in optimizers]
        self._trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times the one that its optimizer was made with."""
        for rates in self._rates:
            rates.set(factor)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one part, in the parameters' own ``grad``."""
        loss.backward()

    def step(self) -> float:
        """Clip by the global norm, update, and drop the gradients; the norm before clipping."""
        norm = float(nn.utils.clip_grad_norm_(self._trainable.values(), GRADIENT_CLIP))
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the trainable parameters by name, float32, on the CPU."""
        return {n: p.detach().float().cpu().clone() for n, p in self._trainable.items()}

    @torch.no_grad()
    def load_parameters(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the trainable parameters, in their own dtype and on their own device."""
        for name, parameter in self._trainable.items():
            parameter.copy_(values[name])

    def state(self) -> dict[str, Tensor]:
        """Parameters by name, and what the optimizers keep of each as ``KEY/NAME`` (``exp_avg/...``)."""
        return self.parameters() | _optimizer_state(self._optimizers, self._trainable)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state`, into parameters and optimizers that have stepped once."""
        self.load_parameters(state)
        _load_optimizer_state(self._optimizers, self._trainable, state)


class DeepSpeedEngine:
    """A `TrainEngine` of DeepSpeed over all ranks, at ZeRO stage 0 to 3.

    Stage 1 shards the optimizer's states over ranks, 2 the gradients too, 3 the weights too.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.AdamW, config: TrainConfig, world: World
    ) -> None:
        deepspeed = import_deepspeed()
        self.world = world
        self.num_parts = config.gradient_accumulation
        self._stage = config.zero_stage
        self._access, self._gathered = deepspeed.utils, deepspeed.zero.GatheredParameters
        if config.dtype == "bfloat16":
            model = model.to(torch.bfloat16)
        self._trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        world.require_group()
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(config),
            model_parameters=list(self._trainable.values()),
        )
        self._rates = _Rates(self._optimizer)
        self.module: nn.Module = self._engine

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times the one that the optimizer was made with."""
        self._rates.set(factor)

    def backward(self, loss: Tensor) -> None:
        """Accumulate a part's gradients; DeepSpeed averages over parts and ranks, so the loss is scaled up."""
        self._engine.backward(loss * (self.num_parts * self.world.size))
        self._engine_boundary()

    def _engine_boundary(self) -> None:
        """DeepSpeed wants a step after every backward, and itself skips all but the last part's."""
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    def step(self) -> float:
        """Clip by the global norm and update, on every rank; the norm before clipping."""
        if self._stage == 0:
            # Without ZeRO it clips by the norm and does not say what that was.
            gradients = [p.grad for p in self._trainable.values() if p.grad is not None]
            norm = float(nn.utils.get_total_norm(gradients))
            self._engine.step()
            return norm
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def parameters(self) -> dict[str, Tensor]:
        """The trainable parameters by name, float32, on the CPU, gathered from the ranks that hold parts."""
        return {name: self._whole(parameter) for name, parameter in self._trainable.items()}

    @torch.no_grad()
    def load_parameters(self, values: Mapping[str, Tensor]) -> None:
        """Set the trainable parameters; every rank passes them whole and keeps its own part."""
        for name, parameter in self._trainable.items():
            value = values[name].to(parameter.device)
            if self._stage == 0:
                parameter.copy_(value)
                continue
            # Both the optimizer's float32 copy and what the forward pass reads.
            self._access.safe_set_full_fp32_param(parameter, value)
            with self._gathered(parameter, modifier_rank=0, enabled=self._stage == 3):
                parameter.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Parameters by name, and Adam's moments and step as ``KEY/NAME``, gathered whole."""
        state = self.parameters()
        if self._stage == 0:
            return state | _optimizer_state([self._optimizer], self._trainable)
        step = self._inner_states()[0]["step"].detach().cpu()
        for name, parameter in self._trainable.items():
            for moment in ADAM_STATE:
                value = self._access.safe_get_full_optimizer_state(parameter, moment)
                state[f"{moment}/{name}"] = value.detach().float().cpu().clone()
            state[f"step/{name}"] = step.clone()
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state`, of any number of ranks; every rank passes it whole and keeps its own part."""
        self.load_parameters(state)
        if self._stage == 0:
            _load_optimizer_state([self._optimizer], self._trainable, state)
            return
        for name, parameter in self._trainable.items():
            for moment in ADAM_STATE:
                value = state[f"{moment}/{name}"].to(parameter.device)
                self._access.safe_set_full_optimizer_state(parameter, value, moment)
        for held in self._inner_states():
            held["step"].copy_(state[f"step/{next(iter(self._trainable))}"])

    def _inner_states(self) -> list[dict[str, Any]]:
        return list(self._optimizer.optimizer.state.values())

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        if self._stage == 0:
            return parameter.detach().float().cpu().clone()
        value = self._access.safe_get_full_fp32_param(parameter)
        return value.detach().float().cpu().clone()


def _optimizer_state(
    optimizers: Sequence[torch.optim.Optimizer], trainable: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    return {
        f"{key}/{name}": value.detach().cpu().clone()
        for optimizer in optimizers
        for name, parameter in trainable.items()
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }


def _load_optimizer_state(
    optimizers: Sequence[torch.optim.Optimizer],
    trainable: Mapping[str, nn.Parameter],
    state: Mapping[str, Tensor],
) -> None:
    for optimizer in optimizers:
        for name, parameter in trainable.items():
            if parameter in optimizer.state:
                for key, held in optimizer.state[parameter].items():
                    held.copy_(state[f"{key}/{name}"])


def peak_memory_gib() -> float:
    """Most memory this process has held, of its GPU if it has one, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
