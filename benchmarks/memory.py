"""What each consumer of rollouts holds in memory and reads, at the width of a 7B model.

Usage: ``python benchmarks/memory.py DIRECTORY [--scale 0.1] [--steps 40] [--only harvest,value]``.
Synthetic shards are written to DIRECTORY (once; 14 GB at scale 1): 16,000 sampled rollouts of 2,000
problems with 8 control points each, 3 captured blocks of width 3584 (5.5 GB of states), and a validation
of 2,000 greedy rollouts and 2,000 trials. Then each consumer runs as its stage runs it, on one process of its own
with one thread: ``harvest``, ``basis`` (selection and diagnostics), ``heads`` (validate's provisional value
heads) and ``value``. Printed are its peak resident memory, that of a process which only imports the same, and
how often it went through the states that it reads: bytes of tensors read over bytes there. Optimizer steps and
basis size change neither and are small; where time is short, ``--scale 0.05`` has the heads' peak too, as
their states then lie in a scratch file as at scale 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from stir_train.artifacts import tensors
from stir_train.artifacts.run_dir import RunDir, StageDir, StageInputs
from stir_train.basis.diagnostics import diagnose
from stir_train.basis.select import select_basis
from stir_train.config.stages import BasisConfig, ValueConfig
from stir_train.distributed.world import alone
from stir_train.harvest.contrast import contrast_rollouts
from stir_train.recipes.basis import DIAGNOSED_CONTRASTS
from stir_train.stores.contrasts import ContrastStore, save_contrasts
from stir_train.stores.interventions import (
    GREEDY_SET,
    InterventionData,
    InterventionStore,
    round_set,
    save_plan,
    save_trials,
)
from stir_train.stores.rollouts import RolloutStore, save_rollouts
from stir_train.stores.states import StateStore, save_states
from stir_train.types.rollout import Grade, GradedRollout, Impulse, Rollout
from stir_train.types.steering import ControlBasis, Intervention, PlannedTrial
from stir_train.types.trajectory import CapturedStates, StateLabel
from stir_train.value.examples import HeadData
from stir_train.value.fit import fit_value_head, predict

BLOCKS, WIDTH, NUM_POINTS, NUM_SAMPLES = (16, 21, 27), 3584, 8, 8
NUM_PROBLEMS, PROBLEMS_PER_CHUNK, NUM_TOKENS = 2000, 32, 256
NUM_ENTRIES, STRENGTH = 64, 2.0
MIB = 1 << 20


class Synthetic:
    """Rollouts and states that are made up, fast: one matrix of noise, shifted and scaled."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._noise = torch.randn(4096, len(BLOCKS), WIDTH, generator=generator)
        self._generator = generator

    def rollout(self, problem: int, sample: int, impulses: tuple[Impulse, ...]) -> GradedRollout:
        """A completion of 128 to 256 tokens, right as often as wrong."""
        length = NUM_TOKENS // 2 + int(self._draw() * NUM_TOKENS // 2)
        stride = length // (NUM_POINTS + 1)
        rollout = Rollout(
            prompt_id=f"{problem:08x}",
            sample=sample,
            prompt_token_ids=tuple(range(64)),
            token_ids=tuple(range(1000, 1000 + length)),
            logprobs=(-0.25,) * length,
            control_points=tuple(stride * (point + 1) for point in range(NUM_POINTS)),
            finish_reason="stop",
            impulses=impulses,
        )
        correct = self._draw() < 0.5
        return GradedRollout(rollout, "", Grade(correct, "", ""), float(correct))

    def chunk(self, stage: StageDir, place: tuple[str, int], graded: list[GradedRollout]) -> None:
        """Write a chunk of rollouts with a state at every control point."""
        labels = tuple(
            StateLabel(g.rollout.prompt_id, g.rollout.sample, point, index, 1000 + index)
            for g in graded
            for point, index in enumerate(g.rollout.control_points, start=1)
        )
        states = self._noise.roll(int(self._draw() * 4096), 0)[: len(labels)]
        captured = CapturedStates(labels, BLOCKS, states * (1 + self._draw()))
        rollouts = [g.rollout for g in graded]
        save_states(stage, place, rollouts, captured, block_convention="output")
        save_rollouts(stage, *place, graded)

    def _draw(self) -> float:
        return float(torch.rand((), generator=self._generator))


def write_run(run: RunDir, scale: float) -> None:
    """The rollout and validate stages of a run, unless they are there."""
    if run.stage("validate").is_complete:
        return
    synthetic, num_problems = Synthetic(), max(PROBLEMS_PER_CHUNK, int(scale * NUM_PROBLEMS))
    rollout, validate = run.stage("rollout"), run.stage("validate")
    for stage in (rollout, validate):
        stage.begin(StageInputs({}, {}))
    problems = range(num_problems)
    for number, first in enumerate(problems[::PROBLEMS_PER_CHUNK]):
        some = problems[first : first + PROBLEMS_PER_CHUNK]
        sampled = [synthetic.rollout(p, k, ()) for p in some for k in range(NUM_SAMPLES)]
        synthetic.chunk(rollout, ("", number), sampled)
        synthetic.chunk(validate, (GREEDY_SET, number), [synthetic.rollout(p, 0, ()) for p in some])
    greedy = RolloutStore(validate).read(GREEDY_SET)
    trials: list[GradedRollout] = []
    for problem, item in enumerate(greedy):
        entry = problem % NUM_ENTRIES
        block = BLOCKS[entry % len(BLOCKS)]
        impulse = Impulse(item.rollout.control_points[0], block, entry, STRENGTH)
        trials.append(synthetic.rollout(problem, 1, (impulse,)))
    impulses = [trial.rollout.impulses[0] for trial in trials]
    save_plan(
        validate,
        0,
        [
            PlannedTrial(NUM_POINTS * i, m.block, m.entry, STRENGTH, 0.5)
            for i, m in enumerate(impulses)
        ],
    )
    for number, first in enumerate(problems[:: NUM_SAMPLES * PROBLEMS_PER_CHUNK]):
        last = first + NUM_SAMPLES * PROBLEMS_PER_CHUNK
        synthetic.chunk(validate, (round_set(0), number), trials[first:last])
        made = [
            _intervention(NUM_POINTS * (first + i), trial, item)
            for i, (trial, item) in enumerate(
                zip(trials[first:last], greedy[first:last], strict=True)
            )
        ]
        save_trials(validate, 0, number, made)
    for stage in (rollout, validate):
        stage.finish({})


def _intervention(state: int, trial: GradedRollout, without: GradedRollout) -> Intervention:
    impulse = trial.rollout.impulses[0]
    return Intervention(
        prompt_id=trial.rollout.prompt_id,
        state=state,
        point=1,
        token_index=impulse.token_index,
        block=impulse.block,
        entry=impulse.entry,
        strength=impulse.strength,
        propensity=0.5,
        improvable=True,
        correct=trial.grade.correct,
        tokens=len(trial.rollout.token_ids),
        null_correct=without.grade.correct,
        null_tokens=len(without.rollout.token_ids),
    )


def harvest(run: RunDir, _steps: int) -> None:
    """Contrast chunk by chunk."""
    stage, rollouts = run.stage("harvest"), RolloutStore(run.stage("rollout"))
    run.discard(["harvest"])
    stage.begin(StageInputs({}, {}))
    for number, (graded, captured) in enumerate(StateStore(rollouts.stage).chunks()):
        found = contrast_rollouts(
            graded,
            captured,
            max_points=NUM_POINTS,
            num_positive=2,
            num_negative=3,
            keep_truncated=False,
            min_saving=0.25,
        )
        save_contrasts(stage, number, found)
    stage.finish({})


def basis(run: RunDir, _steps: int) -> None:
    """Select, then diagnose."""
    store = ContrastStore(run.stage("harvest"))
    select_basis(store.read(), BasisConfig(size=8, min_per_point=0), seed=0, world=alone())
    found = store.head(DIAGNOSED_CONTRASTS)
    for block in found.blocks:
        diagnose(found, block)


def heads(run: RunDir, steps: int) -> None:
    """The heads before the second round of validation, a third as many steps."""
    _train(run, InterventionStore(run.stage("validate")).read(1), -(-steps // 3))


def value(run: RunDir, steps: int) -> None:
    """The final heads, and what they say of held-out states."""
    _train(run, InterventionStore(run.stage("validate")).read(), steps)


def nothing(_run: RunDir, _steps: int) -> None:
    """What importing takes."""


CONSUMERS: dict[str, Callable[[RunDir, int], None]] = {
    "nothing": nothing,
    "harvest": harvest,
    "basis": basis,
    "heads": heads,
    "value": value,
}
READS = {
    "harvest": ("rollout/states-*",),
    "basis": ("harvest/candidates-*",),
    "heads": ("rollout/states-*", "validate/*/states-*"),
    "value": ("rollout/states-*", "validate/*/states-*"),
}
"""Files whose tensors a consumer reads."""


def _train(run: RunDir, data: InterventionData, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(NUM_ENTRIES, WIDTH, generator=generator)
    entries = torch.arange(NUM_ENTRIES)
    made_up = ControlBasis(
        keys=torch.nn.functional.normalize(directions, dim=-1),
        directions=directions,
        blocks=torch.tensor(BLOCKS)[entries % len(BLOCKS)],
        points=torch.ones_like(entries),
        quality=torch.ones(NUM_ENTRIES),
        is_anchor=torch.zeros(NUM_ENTRIES, dtype=torch.bool),
        saves_tokens=torch.zeros(NUM_ENTRIES, dtype=torch.bool),
        contrast=entries,
    )
    head_data = HeadData(RolloutStore(run.stage("rollout")), run.scratch("value"), reads_below=True)
    for states in head_data.missing(data):
        head_data.states.write(states)
        head_data.states.add(states)
    for block in BLOCKS:
        train, held_out = head_data.split(data, made_up, block, fraction=0.2, seed=0)
        head, _ = fit_value_head(
            train,
            held_out,
            ValueConfig(num_steps=steps),
            reads=head_data.reads(block),
            max_points=NUM_POINTS,
            max_new_tokens=NUM_TOKENS,
            seed=0,
        )
        predict(head, held_out)
    run.forget_progress("value")


def _counted(read: Callable[..., Tensor], counts: dict[str, int], *given: object) -> Tensor:
    """Rows of a stored tensor, their bytes added up."""
    found = read(*given)
    counts["bytes"] += found.nbytes
    return found


def run_one(run: RunDir, consumer: str, steps: int) -> None:
    """Run one consumer in this process; print its peak in MiB, its bytes read, and its seconds."""
    torch.set_num_threads(1)
    counts, read = {"bytes": 0}, tensors.TensorFile.rows
    tensors.TensorFile.rows = lambda *given: _counted(read, counts, *given)  # type: ignore[method-assign]
    start = time.monotonic()
    CONSUMERS[consumer](run, steps)
    seconds = time.monotonic() - start
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.split("VmHWM:")[1].split()[0]) // 1024
    print(peak, counts["bytes"], round(seconds, 1))


def _rows(run: RunDir, arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    for name in ["nothing", *arguments.only.split(",")]:
        command = [sys.executable, __file__, str(run.path), "--steps", str(arguments.steps)]
        done = subprocess.run(
            [*command, "--consumer", name], check=True, capture_output=True, text=True
        )
        peak, read, seconds = done.stdout.split()
        there = sum(
            path.stat().st_size
            for pattern in READS.get(name, ())
            for path in run.path.glob(pattern)
        )
        passes = f"{int(read) / there:.2f}" if there else ""
        yield name, f"{int(peak):,}", f"{there / MIB:,.0f}", passes, seconds


def main() -> None:
    """Write what is read, then print a row a consumer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", default=",".join(READS))
    parser.add_argument("--consumer", choices=tuple(CONSUMERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.consumer:
        run_one(RunDir(arguments.directory), arguments.consumer, arguments.steps)
        return
    run = RunDir(arguments.directory / f"scale-{arguments.scale:g}")
    write_run(run, arguments.scale)
    columns = ("consumer", "peak MiB", "tensors there, MiB", "passes", "seconds")
    table = Table(*columns, title=f"{arguments.scale * NUM_PROBLEMS * NUM_SAMPLES:,.0f} rollouts")
    for row in _rows(run, arguments):
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
