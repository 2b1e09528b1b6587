"""Basis selection against the obvious published loop, and its growth with the candidate count.

Usage: ``python benchmarks/dpp.py [--quick]``. Writes nothing but a table; both sides run in this
process on the same inputs. The second table streams keys from a file.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stir_train.basis.dpp import KeysInMemory, greedy_select
from tests.support.published_selection import published_greedy

DIVERSITY, JITTER = 0.5, 1e-4
BLOCK_ROWS = 8192


@dataclass(frozen=True)
class KeysOnDisk:
    """Keys in a raw float32 file, read block by block; no more than one block is in memory."""

    path: Path
    num_rows: int
    width: int

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Consecutive rows, one block at a time."""
        for start in range(0, self.num_rows, BLOCK_ROWS):
            yield start, self._read(start, min(BLOCK_ROWS, self.num_rows - start))

    def row(self, index: int) -> torch.Tensor:
        """One key."""
        return self._read(index, 1)[0]

    def _read(self, start: int, count: int) -> torch.Tensor:
        values = np.fromfile(
            self.path, np.float32, count * self.width, offset=4 * start * self.width
        )
        return torch.from_numpy(values).view(count, self.width)


def unit_rows(count: int, width: int, seed: int) -> torch.Tensor:
    """Clustered unit keys: raw residual states of one model have a large common part."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(1, width, generator=generator)
    keys = common + torch.randn(count, width, generator=generator)
    return torch.nn.functional.normalize(keys, dim=-1)


def against_published(count: int, width: int, size: int) -> None:
    """Time both on the same candidates and compare the picks."""
    keys = unit_rows(count, width, 0)
    quality = torch.rand(count, generator=torch.Generator().manual_seed(1))
    options = {"diversity": DIVERSITY, "jitter": JITTER}
    greedy_select(KeysInMemory(keys), quality, 8, **options)  # warm up
    start = time.perf_counter()
    mine = greedy_select(KeysInMemory(keys), quality, size, **options)
    mine_seconds = time.perf_counter() - start
    start = time.perf_counter()
    theirs = published_greedy(keys, quality, size, DIVERSITY, JITTER)
    their_seconds = time.perf_counter() - start
    print(f"C={count} D={width} K={size}")
    print(f"  published loop  {their_seconds:9.2f} s")
    print(f"  stir_train      {mine_seconds:9.2f} s   {their_seconds / mine_seconds:.0f}x")
    print(f"  same picks      {list(mine.picks) == theirs}")


def growth(counts: list[int], width: int, size: int) -> None:
    """Stream ever more candidates from disk; seconds per candidate should not rise."""
    print(f"streamed from disk, D={width} K={size}")
    print(f"  {'C':>9}  {'seconds':>8}  {'us per candidate':>16}  {'peak RSS, MiB':>13}")
    for count in counts:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "keys.f32"
            with path.open("wb") as file:
                for start in range(0, count, BLOCK_ROWS):
                    rows = unit_rows(min(BLOCK_ROWS, count - start), width, start)
                    file.write(rows.numpy().tobytes())
            quality = torch.rand(count, generator=torch.Generator().manual_seed(1))
            start_time = time.perf_counter()
            keys = KeysOnDisk(path, count, width)
            greedy_select(keys, quality, size, diversity=DIVERSITY, jitter=JITTER)
            seconds = time.perf_counter() - start_time
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"  {count:>9}  {seconds:>8.2f}  {1e6 * seconds / count:>16.1f}  {peak:>13.0f}")


def main() -> None:
    """Run both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds")
    quick = parser.parse_args().quick
    if quick:
        against_published(512, 128, 32)
        growth([10_000, 20_000], 64, 16)
    else:
        against_published(4096, 1024, 256)
        growth([62_500, 125_000, 250_000, 500_000, 1_000_000], 128, 64)


if __name__ == "__main__":
    main()
