"""Ours, transformers' generate and vLLM side by side: the same weights, prompts, threads and dtype, in one run.

Usage, in an environment with vLLM (`make install-vllm`)::

    python benchmarks/engines.py --model DIRECTORY --dtype bfloat16 --rows 256 --prompts 512 --tokens 256

Every engine decodes greedily and sampled, plainly, with states captured at control points and, but for
transformers' generate, which has neither, under a controller in mode ``value`` (of a random basis and head, so
that it costs what a real one does). Engines take turns; the first turn warms up. Without ``--model`` the model is a
random Llama. Needs control points in the text to steer at, so there is one every 16 tokens.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from decode import hf_generate, interleaved, random_basis, random_head, random_model, random_prompts

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
        """Complete everything; return the tokens made."""
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


def variants(
    work: Work, engines: dict[str, GenerationBackend], sampling: SamplingParams
) -> dict[str, Callable[[], int]]:
    """What is timed, by name."""
    runs: dict[str, Callable[[], int]] = {
        "transformers' generate, plain": partial(
            hf_generate, work.loaded, work.prompts, work.rows, sampling
        )
    }
    cases = {
        "plain": {"capture": False, "steer": False},
        "states": {"capture": True, "steer": False},
        "value": {"capture": True, "steer": True},
    }
    for name, engine in engines.items():
        for case, what in cases.items():
            runs[f"{name}, {case}"] = partial(work.complete, engine, sampling, **what)
    return runs


def main() -> None:
    """Print tokens a second of every engine and case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="directory or hub id; without it, a random Llama")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--engines", nargs="+", default=["transformers", "vllm"])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.model is None:
        loaded = random_model(512, 8, given.prompt_tokens + given.tokens, "cpu")
    else:
        loaded = load_model(ModelConfig(name=given.model, dtype=given.dtype, device=given.device))
    work = Work(loaded, random_prompts(given.prompts, given.prompt_tokens), given.rows, block=2)
    engines = {name: open_backend(name, loaded, Limits(given.rows)) for name in given.engines}
    device: Any = loaded.device
    print(
        f"{loaded.identity.name}, {loaded.model.dtype} on {device}, {torch.get_num_threads()} threads; "
        f"{given.rows} rows, {given.prompts} prompts of {given.prompt_tokens} tokens, {given.tokens} new"
    )
    for kind, sampling in (
        ("greedy", SamplingParams(given.tokens)),
        ("sampled", SamplingParams(given.tokens, temperature=0.7)),
    ):
        timed = interleaved(variants(work, engines, sampling), given.repeats)
        for name, one in timed.items():
            rates = [one.result / seconds for seconds in one.seconds]
            print(
                f"  {kind:8} {name:32} {statistics.median(rates):9.1f} tokens/s "
                f"({min(rates):.1f} to {max(rates):.1f})"
            )


if __name__ == "__main__":
    main()
