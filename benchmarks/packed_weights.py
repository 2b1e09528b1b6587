"""Decode steps of a real model with and without packed weights, side by side in one run on a CPU.

Usage: ``python benchmarks/packed_weights.py MODEL [--dtype bfloat16] [--rows 8,16,32,64,100,128] [--steps 12]``.
One thread.
The two take turns; a step's time is the median over all turns. Greedy tokens are compared too, and packing is timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise

import torch

from stir_train.config.inputs import ModelConfig
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.transformers.engine import MIN_REQUESTS, DecodeEngine
from stir_train.models.load import LoadedModel, load_model
from stir_train.models.packed_weights import packed_weights
from stir_train.types.rollout import Prompt

PROMPT_TOKENS, TURNS = 64, 2


def main() -> None:
    """Print a row for every number of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rows", default="8,16,32,64,100,128")
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(ModelConfig(name=arguments.model, dtype=arguments.dtype))
    begun = time.perf_counter()
    with packed_weights(loaded.model) as num_layers:
        print(f"{num_layers} layers packed in {time.perf_counter() - begun:.1f} s\n")
    print("| rows | plain, s a step | packed | plain, tokens/s | packed | ratio | equal tokens |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for rows in map(int, arguments.rows.split(",")):
        if rows < MIN_REQUESTS:
            parser.error(f"--rows: {MIN_REQUESTS} and more are packed")
        _print_row(loaded, rows, arguments.steps)


def _print_row(loaded: LoadedModel, rows: int, steps: int) -> None:
    seconds: dict[bool, list[float]] = {False: [], True: []}
    tokens: dict[bool, list[tuple[int, ...]]] = {}
    for _ in range(TURNS):
        for packs in (False, True):
            taken, tokens[packs] = _decode(loaded, rows, steps, packs=packs)
            seconds[packs] += taken
    plain, packed = (statistics.median(seconds[packs]) for packs in (False, True))
    pairs = list(zip(tokens[False], tokens[True], strict=True))
    equal = sum(one == other for one, other in pairs)
    print(
        f"| {rows} | {plain:.3f} | {packed:.3f} | {rows / plain:.1f} | {rows / packed:.1f} | {plain / packed:.2f} | "
        f"{equal} of {len(pairs)} |",
        flush=True,
    )


def _decode(
    loaded: LoadedModel, rows: int, steps: int, *, packs: bool
) -> tuple[list[float], list[tuple[int, ...]]]:
    """Seconds of each step after the prompts, and the tokens."""
    engine = DecodeEngine(loaded, max_rows=rows, options={"packed_weights": packs})
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 5000, (rows, PROMPT_TOKENS), generator=generator).tolist()
    requests = [
        GenerationRequest(Prompt(str(i), "", "", tuple(one), ""), 0) for i, one in enumerate(ids)
    ]
    times: list[float] = []

    def listen(index: int, _token: int) -> None:
        if index == 0:  # the rows of a step are told one after another
            times.append(time.perf_counter())

    made = engine.generate(requests, SamplingParams(steps, ()), seed=0, listener=listen)
    taken = [later - sooner for sooner, later in pairwise(times)]
    return taken, [rollout.token_ids for rollout in made.rollouts]


if __name__ == "__main__":
    main()
