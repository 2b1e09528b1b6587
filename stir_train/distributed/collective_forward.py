"""Ranks whose forward passes are collective: every pass of one is a pass of all."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from stir_train.distributed.world import POLL_SECONDS, World


class CollectiveForward:
    """Keeps ranks in step whose model is sharded by ZeRO-3, while each decodes work of its own.

    Gathering a layer's weights takes all ranks, so all must run the same number of passes. Before
    a pass, ranks tell each other that they have work; a rank without runs an idle pass along.
    """

    def __init__(self, world: World, model: nn.Module, idle_pass: Callable[[], object]) -> None:
        """Watch a model's passes.

        Args:
            world: The ranks that hold the model together.
            model: Already sharded.
            idle_pass: Runs the model on next to nothing.
        """
        self._world = world
        self._idle_pass = idle_pass
        self._is_idle = False
        # Before the hooks that shard the model, which have collectives of their own.
        model.register_forward_pre_hook(self._before_pass, prepend=True)

    def _before_pass(self, _module: nn.Module, _inputs: object) -> None:
        if not self._is_idle:
            self._tell(working=True, waits=True)

    def idle_until(self, is_over: Callable[[], bool]) -> None:
        """Run passes for the others' sake until it is over for every rank. Collective.

        Args:
            is_over: Whether this rank has nothing more to wait for; once true, it stays so.
        """
        while True:
            num_working, num_waiting = self._tell(working=False, waits=not is_over())
            if num_working:
                self._is_idle = True
                try:
                    self._idle_pass()
                finally:
                    self._is_idle = False
            elif not num_waiting:
                return
            else:
                time.sleep(POLL_SECONDS / 64)  # nobody has work now, somebody looks for some

    def _tell(self, *, working: bool, waits: bool) -> tuple[int, int]:
        counts = self._world.sum(torch.tensor([float(working), float(waits)]))
        return int(counts[0]), int(counts[1])
