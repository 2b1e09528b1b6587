"""Ours, transformers' generate and vLLM side by side: the same weights, prompts, threads and dtype, in one run.

Usage, in an environment with vLLM (`make install-vllm`)::

    python benchmarks/engines.py                                       # a random Llama, a minute
    python benchmarks/engines.py --model DIRECTORY --dtype bfloat16    # a real model
    python benchmarks/engines.py --model DIRECTORY --device cuda --dtype bfloat16 \\
        --rows 256 --prompts 512 --tokens 256                          # on a GPU

Every engine decodes greedily and sampled: plainly, with states captured at control points, under a controller in
mode ``value`` (of a random basis and head, so that it costs what a real one does), and with both. transformers'
generate keeps the hidden states of all blocks at all tokens where it is asked for states, and steers by nothing.
Control points are every 16 tokens and nothing ends a completion, so that all make the same number of tokens.

It prints a table in Markdown: tokens a CPU-second of this process and its children, which what else a machine
does changes little; or on a GPU a second. Engines take turns, the first of which warms up; a figure is the median
of the others, with the least and the most.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from made_up import random_basis, random_head, random_model, random_prompts

from stir_train.config.inputs import ModelConfig
from stir_train.config.stages import ControlPointConfig
from stir_train.config.steering import ValueSteering
from stir_train.data.control_points import build_automaton
from stir_train.generation.backend import (
    ControlSpec,
    GenerationBackend,
    GenerationRequest,
    SamplingParams,
)
from stir_train.generation.open import Limits, open_backend
from stir_train.models.load import LoadedModel, load_model
from stir_train.steering.controller import BasisController
from stir_train.types.rollout import Prompt

NUM_POINTS, EVERY_TOKENS = 8, 16
OURS, VLLM = "transformers", "vllm"
ENGINES = {OURS: "ours", VLLM: "vLLM"}
"""Heading of each backend."""
GENERATE = "transformers' generate"
CASES = {
    "plain": (False, False),
    "states": (True, False),
    "value": (False, True),
    "states, value": (True, True),
}
"""Whether states are captured, and whether a value head steers."""


@dataclass(frozen=True)
class Work:
    """What every engine completes.

    Attributes:
        loaded: With these weights.
        prompts: These prompts.
        rows: So many side by side.
        block: Steered here, and captured.
    """

    loaded: LoadedModel
    prompts: list[Prompt]
    rows: int
    block: int

    def complete(
        self, engine: GenerationBackend, sampling: SamplingParams, *, capture: bool, steer: bool
    ) -> int:
        """Complete everything by a backend of ours; return the tokens made."""
        loaded, block = self.loaded, self.block
        controller = None
        if steer:
            controller = BasisController(
                random_basis(loaded.identity.width, block, NUM_POINTS),
                ValueSteering(margin=-1.0, doubt=0.0, only_familiar=False),
                block=block,
                head=random_head(loaded.identity.width, block),
                device=loaded.device,
            )
        automaton = build_automaton(
            loaded.tokenizer,
            ControlPointConfig(every_tokens=EVERY_TOKENS),
            vocab_size=loaded.vocab_size,
        )
        made = engine.generate(
            [GenerationRequest(prompt) for prompt in self.prompts],
            sampling,
            seed=0,
            control=ControlSpec(automaton, NUM_POINTS, (block,) if capture else ()),
            controller=controller,
        )
        return sum(len(rollout.token_ids) for rollout in made.rollouts)

    @torch.no_grad()
    def generate(self, sampling: SamplingParams, *, capture: bool) -> int:
        """Complete everything by transformers' generate, batch after batch; return the tokens made."""
        options = {"do_sample": False}
        if sampling.temperature:
            options = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0}
        total = 0
        for start in range(0, len(self.prompts), self.rows):
            part = self.prompts[start : start + self.rows]
            ids = torch.tensor([p.token_ids for p in part], device=self.loaded.device)
            output = self.loaded.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=sampling.max_new_tokens,
                min_new_tokens=sampling.max_new_tokens,
                pad_token_id=0,
                output_hidden_states=capture,
                return_dict_in_generate=True,
                **options,
            )
            total += len(part) * (output.sequences.shape[1] - ids.shape[1])
        return total


@dataclass(frozen=True)
class Turn:
    """What one turn made and took."""

    num_tokens: int
    cpu_seconds: float
    wall_seconds: float


def turns(
    variants: dict[tuple[str, str], Callable[[], int]], repeats: int
) -> dict[tuple[str, str], list[Turn]]:
    """Measure the variants in turns, after one that warms up."""
    measured: dict[tuple[str, str], list[Turn]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, run in variants.items():
            start, cpu = time.perf_counter(), _cpu_seconds()
            made = run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds = time.perf_counter() - start
                measured[name].append(Turn(made, _cpu_seconds() - cpu, seconds))
    return measured


def variants_of(
    work: Work, engines: dict[str, GenerationBackend], sampling: SamplingParams
) -> dict[tuple[str, str], Callable[[], int]]:
    """What is measured, by engine and case."""
    runs: dict[tuple[str, str], Callable[[], int]] = {}
    for name, engine in engines.items():
        for case, (capture, steer) in CASES.items():
            runs[ENGINES[name], case] = partial(
                work.complete, engine, sampling, capture=capture, steer=steer
            )
    for case, (capture, steer) in CASES.items():
        if not steer:
            runs[GENERATE, case] = partial(work.generate, sampling, capture=capture)
    return runs


def table(measured: dict[str, dict[tuple[str, str], list[Turn]]], *, by_wall: bool) -> str:
    """A line for each engine and case, a column for each way to sample."""
    unit = "tokens a second" if by_wall else "tokens a CPU-second"
    lines = ["| | | " + " | ".join(f"{kind}, {unit}" for kind in measured) + " |"]
    lines.append("|---|---|" + "---|" * len(measured))
    for name, case in next(iter(measured.values())):
        cells = [_cell(one[name, case], by_wall=by_wall) for one in measured.values()]
        lines.append(f"| {name} | {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(measured: Sequence[Turn], *, by_wall: bool) -> str:
    rates = [t.num_tokens / (t.wall_seconds if by_wall else t.cpu_seconds) for t in measured]
    return f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"


def _cpu_seconds() -> float:
    """Of this process, all its threads, and its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="directory or hub id; without it, a random Llama")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.model is None:
        loaded = random_model(128, 4, given.prompt_tokens + given.tokens, given.device)
    else:
        loaded = load_model(ModelConfig(name=given.model, dtype=given.dtype, device=given.device))
    prompts = random_prompts(given.prompts, given.prompt_tokens)
    work = Work(loaded, prompts, given.rows, block=2)
    engines = {name: open_backend(name, loaded, Limits(given.rows)) for name in given.engines}
    print(
        f"{loaded.identity.name}, {loaded.model.dtype} on {loaded.device}, {torch.get_num_threads()} "
        f"threads; {given.rows} rows, {given.prompts} prompts of {given.prompt_tokens} tokens, "
        f"{given.tokens} new"
    )
    kinds = {
        "greedy": SamplingParams(given.tokens),
        "sampled": SamplingParams(given.tokens, temperature=0.7),
    }
    measured = {
        kind: turns(variants_of(work, engines, sampling), given.repeats)
        for kind, sampling in kinds.items()
    }
    print(table(measured, by_wall=loaded.device.type == "cuda"))


if __name__ == "__main__":
    main()
