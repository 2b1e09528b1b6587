"""The decoding engine side by side with what it replaces; every ratio is from one run.

Usage: ``python benchmarks/decode.py [--quick] [--device cuda]``, or with ``--model DIR`` a real model
beside transformers and vLLM (`decode_model.py`). Weights are random except in the
tables that name the embedded model; speed does not depend on them. Variants take turns, ``--repeats``
times; a wall ratio is the median of the ratios within a turn, with their quartiles, because the
speed of a shared machine drifts between turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import decode_model
import torch
from decode_published import against_published
from made_up import (
    STEERING,
    addition_prompts,
    random_basis,
    random_head,
    random_model,
    random_prompts,
)

from stir_train.config.inputs import ModelConfig
from stir_train.config.stages import ControlPointConfig
from stir_train.data.control_points import build_automaton
from stir_train.generation.backend import (
    ControlSpec,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
)
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel, load_model
from stir_train.steering.controller import BasisController
from stir_train.types.rollout import Prompt


@dataclass(frozen=True)
class Timed:
    """Wall seconds of each turn, and what the last one returned."""

    seconds: list[float]
    result: Any

    def ratio_to(self, base: Timed) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of own over base seconds, turn by turn."""
        ratios = sorted(own / other for own, other in zip(self.seconds, base.seconds, strict=True))
        if len(ratios) == 1:
            return ratios[0], ratios[0], ratios[0]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, middle, high


def interleaved(variants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Timed]:
    """Time the variants in turns, after one warm-up turn."""
    timed: dict[str, Timed] = {}
    for repeat in range(repeats + 1):
        for name, run in variants.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            result = run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = [time.perf_counter() - start]
            before = timed[name].seconds if repeat > 1 else []
            timed[name] = Timed(before + seconds, result)
    return timed


@torch.no_grad()
def hf_generate(
    loaded: LoadedModel, prompts: list[Prompt], rows: int, sampling: SamplingParams
) -> int:
    """transformers' generate in fixed batches, left-padded; returns completion tokens made."""
    total = 0
    for start in range(0, len(prompts), rows):
        part = prompts[start : start + rows]
        width = max(len(p.token_ids) for p in part)
        ids = torch.tensor([[0] * (width - len(p.token_ids)) + [*p.token_ids] for p in part])
        mask = torch.tensor(
            [[0] * (width - len(p.token_ids)) + [1] * len(p.token_ids) for p in part]
        )
        options = {"do_sample": False}
        if sampling.temperature:
            options = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0}
        output = loaded.model.generate(
            input_ids=ids.to(loaded.device),
            attention_mask=mask.to(loaded.device),
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(sampling.stop_token_ids) or None,
            pad_token_id=0,
            **options,
        )
        total += int((output[:, width:] != 0).sum())
    return total


def against_transformers(device: str, repeats: int, quick: bool) -> None:
    """Plain decoding: equal lengths, and lengths skewed as real rollouts are."""
    print("plain decoding, tokens per second; 64 rows")
    count, rows = (128, 64) if quick else (512, 64)
    embedded = load_model(ModelConfig(name="embedded/addition", device=device))
    wide = random_model(512, 4, 512, device)
    cases = {
        "equal lengths, embedded model": (embedded, addition_prompts(embedded, 64), 96, 0.0, ()),
        "equal lengths, width 512": (wide, random_prompts(64, 32), 64, 0.0, ()),
        "skewed lengths, embedded model": (
            embedded,
            sorted(addition_prompts(embedded, count), key=lambda p: p.prompt_id),
            256,
            1.0,
            embedded.stop_token_ids,
        ),
    }
    for name, (loaded, prompts, budget, temperature, stop) in cases.items():
        sampling = SamplingParams(budget, stop, temperature=temperature)
        requests = [GenerationRequest(p) for p in prompts]
        engine = DecodeEngine(loaded, max_rows=rows)
        timed = interleaved(
            {
                "transformers": partial(hf_generate, loaded, prompts, rows, sampling),
                "stir_train": partial(engine.generate, requests, sampling, seed=0),
            },
            repeats,
        )
        rollouts = timed["stir_train"].result.rollouts
        made = {
            "transformers": timed["transformers"].result,
            "stir_train": sum(len(r.token_ids) for r in rollouts),
        }
        rates = {key: made[key] / statistics.median(timed[key].seconds) for key in made}
        share = made["stir_train"] / made["transformers"]
        low, middle, high = (
            share * ratio for ratio in timed["transformers"].ratio_to(timed["stir_train"])
        )
        print(
            f"  {name:32} transformers {rates['transformers']:8.0f}   "
            f"stir_train {rates['stir_train']:8.0f}   {middle:.2f}x ({low:.2f} to {high:.2f})"
        )


@dataclass(frozen=True)
class ModeBench:
    """One model and its prompts, decoded in every mode."""

    loaded: LoadedModel
    prompts: list[Prompt]
    budget: int = 64
    block: int = 2

    def run(self, mode: str | None, capture: tuple[int, ...] = ()) -> GenerationResult:
        """Decode once; ``mode`` None without capture is plain decoding."""
        width = self.loaded.identity.width
        controller = None
        if mode is not None:
            settings = STEERING[mode]
            controller = BasisController(
                random_basis(width, self.block, 4),
                settings,
                block=self.block,
                head=random_head(width, self.block),
                device=self.loaded.device,
            )
        automaton = build_automaton(
            self.loaded.tokenizer,
            ControlPointConfig(every_tokens=16),
            vocab_size=self.loaded.model.config.vocab_size,
        )
        return DecodeEngine(self.loaded, max_rows=len(self.prompts)).generate(
            [GenerationRequest(p) for p in self.prompts],
            SamplingParams(self.budget),
            seed=0,
            control=ControlSpec(automaton, 8, capture) if mode or capture else None,
            controller=controller,
        )


MODES = ("plain", "capture", "similarity", "value", "preview")


def modes_against_plain(device: str, repeats: int, quick: bool, modes: list[str]) -> None:
    """Control modes and capture, over the same engine's plain decoding."""
    print("modes against plain decoding of the same engine; a control point every 16 tokens")
    embedded = load_model(ModelConfig(name="embedded/addition", device=device))
    benches = {"embedded": ModeBench(embedded, addition_prompts(embedded, 32))}
    for width in [256] if quick else [256, 1024]:
        wide = random_model(width, 4, 512, device)
        benches[f"width {width}"] = ModeBench(wide, random_prompts(32, 32))
    for name, bench in benches.items():
        variants = {
            "plain": partial(bench.run, None),
            "capture": partial(bench.run, None, (1, 2)),
            "similarity": partial(bench.run, "similarity"),
            "value": partial(bench.run, "value"),
            "preview": partial(bench.run, "preview"),
        }
        timed = interleaved({mode: variants[mode] for mode in ("plain", *modes)}, repeats)
        base = timed["plain"]
        for mode, entry in timed.items():
            passes = entry.result.cost.forward_passes / base.result.cost.forward_passes
            forwards = entry.result.cost.token_forwards / base.result.cost.token_forwards
            fired = sum(len(r.impulses) for r in entry.result.rollouts)
            low, middle, high = entry.ratio_to(base)
            print(
                f"  {name:10} {mode:10} passes {passes:.3f}x   token-forwards {forwards:.3f}x   "
                f"wall {middle:.3f}x ({low:.3f} to {high:.3f})   impulses {fired}"
            )


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES[1:],
        help="only these, against plain, and no other table",
    )
    parser.add_argument("--model", help="directory of a real model: its table alone")
    parser.add_argument("--rows", type=int, default=32, help="of the table of a real model")
    parser.add_argument("--new-tokens", type=int, default=128, help="likewise")
    arguments = parser.parse_args()
    if arguments.model:
        decode_model.table(
            arguments.model,
            device=arguments.device,
            rows=arguments.rows,
            new_tokens=arguments.new_tokens,
            repeats=arguments.repeats,
        )
        return
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads")
    device, repeats, quick = arguments.device, arguments.repeats, arguments.quick
    if arguments.modes:
        modes_against_plain(device, repeats, quick, arguments.modes)
        return
    against_transformers(device, repeats, quick)
    modes_against_plain(device, repeats, quick, list(MODES[1:]))
    against_published(device, quick)


if __name__ == "__main__":
    main()
