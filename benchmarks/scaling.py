"""How rollouts scale: measured with 1 and 2 ranks here, and the work queue simulated on up to 512.

Measured: the rollout stage of the embedded model, one thread a rank (its
configuration says so), in turns, from the stage's opening
to its completion (a process's start is not in it). Simulated: chunks whose times are drawn from those
just measured, stretched into a heavy tail, handed out by the queue (whoever is free takes the next)
and, beside it, dealt out beforehand in equal numbers; on ranks of equal speed, and with one node in
sixteen at half speed. Efficiency is the work over what the ranks could have done until the last ended.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "tiny" / "smoke.yaml"
SETTINGS = ("splits.num_harvest=96", "rollout.num_samples=8", "generation.chunk_completions=32")
RANKS = (8, 64, 512)
RANKS_PER_NODE = 8
CHUNKS_PER_RANK = (4, 16, 64, 128)
TAIL_SHARE, TAIL_FACTOR = 0.02, 4.0
"""Simulated chunks that take longer, and how much: rare problems on which a model never stops."""
SLOW_NODES, SLOW_SPEED = 16, 0.5
DRAWS = 20


def measure(size: int, directory: Path) -> tuple[float, list[float]]:
    """Seconds of the rollout stage on ``size`` ranks, and of each of its chunks."""
    argv = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}"]
    argv += ["--standalone", "-m", "stir_train", "rollout", str(CONFIG)]
    argv += [f"output_dir={directory}", *SETTINGS]
    subprocess.run(argv, check=True, capture_output=True)
    run = directory / "smoke"
    begin = (run / "rollout" / "stage.json").stat().st_mtime
    end = (run / "rollout" / "complete").stat().st_mtime
    chunks = [
        float(json.loads(line)["seconds"])
        for path in (run / "logs").rglob("*.work.jsonl")
        for line in path.read_text().splitlines()
    ]
    return end - begin, chunks


def draw_chunks(measured: Sequence[float], count: int, generator: random.Random) -> list[float]:
    """Resample the measured times; some of them are stretched."""
    return [
        generator.choice(measured) * (TAIL_FACTOR if generator.random() < TAIL_SHARE else 1.0)
        for _ in range(count)
    ]


def queue_efficiency(chunks: Sequence[float], speeds: Sequence[float]) -> float:
    """Whoever is free takes the next chunk."""
    free = [(0.0, rank) for rank in range(len(speeds))]
    heapq.heapify(free)
    last = 0.0
    for chunk in chunks:
        start, rank = heapq.heappop(free)
        end = start + chunk / speeds[rank]
        last = max(last, end)
        heapq.heappush(free, (end, rank))
    return sum(chunks) / (last * sum(speeds))


def static_efficiency(chunks: Sequence[float], speeds: Sequence[float]) -> float:
    """Every rank has its equal share from the start."""
    size = len(speeds)
    last = max(sum(chunks[rank::size]) / speeds[rank] for rank in range(size))
    return sum(chunks) / (last * sum(speeds))


def simulate(measured: Sequence[float]) -> None:
    """Print the table."""
    generator = random.Random(0)
    print("\n| ranks | chunks a rank | queue | static | queue, slow nodes | static, slow nodes |")
    print("|---|---|---|---|---|---|")
    for size in RANKS:
        slow = max(1, size // RANKS_PER_NODE // SLOW_NODES) * RANKS_PER_NODE
        for per_rank in CHUNKS_PER_RANK:
            cells = []
            for speeds in ([1.0] * size, [SLOW_SPEED] * slow + [1.0] * (size - slow)):
                draws = [draw_chunks(measured, size * per_rank, generator) for _ in range(DRAWS)]
                for efficiency in (queue_efficiency, static_efficiency):
                    mean = statistics.fmean(efficiency(chunks, speeds) for chunks in draws)
                    cells.append(f"{mean:.1%}")
            if size == RANKS_PER_NODE:
                cells[2:] = ["", ""]  # its only node cannot be the slow one
            print(f"| {size} | {per_rank} | {' | '.join(cells)} |")


def main() -> None:
    """Measure, then simulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    seconds: dict[int, list[float]] = {1: [], 2: []}
    chunks: list[float] = []
    for _ in range(repeats):
        for size, found in seconds.items():
            with tempfile.TemporaryDirectory() as directory:
                wall, times = measure(size, Path(directory))
            found.append(wall)
            if size == 1:
                chunks += times
    for size, found in seconds.items():
        listed = ", ".join(f"{value:.1f}" for value in found)
        print(f"{size} rank(s): {statistics.median(found):.1f} s (median of {listed})")
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    print(
        f"2 ranks are {statistics.median(ratios):.2f}x as fast as 1 "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {repeats} pairs)"
    )
    spread = statistics.stdev(chunks) / statistics.fmean(chunks)
    print(
        f"{len(chunks)} chunks of {statistics.fmean(chunks):.2f} s, coefficient of variation {spread:.2f}"
    )
    simulate(chunks)


if __name__ == "__main__":
    main()
