"""Decode with a model that all ranks hold together; a program for `start_ranks`.

decode_ranks.py MODEL OUTPUT
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from stir_train.config.inputs import ModelConfig
from stir_train.config.stages import ControlPointConfig
from stir_train.config.steering import ValueSteering
from stir_train.data.control_points import build_automaton
from stir_train.distributed.world import open_world
from stir_train.generation.backend import (
    ControlSpec,
    GenerationBackend,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
)
from stir_train.generation.controller import Controller
from stir_train.generation.open import Limits, open_backend, prepare_ranks
from stir_train.models.load import LoadedModel, load_model
from stir_train.models.value_head import ValueHead
from stir_train.steering.controller import BasisController
from stir_train.types.rollout import Prompt
from stir_train.types.steering import ControlBasis

BLOCK, NUM_POINTS, BUDGET, MAX_ROWS = 3, 6, 24, 3
PROMPTS = tuple(Prompt(str(n), "", "", tuple(range(4 + n, 16 + 2 * n)), "") for n in range(4))
"""Of several lengths, and more than there are rows."""
CASES = {"plain": (0.0, False), "steered": (0.0, True), "sampled": (0.8, True)}
"""Temperature, and whether a value head steers."""


def made_by(engine: GenerationBackend, loaded: LoadedModel) -> dict[str, GenerationResult]:
    """What an engine makes in each case."""
    points = ControlPointConfig(every_tokens=4)
    automaton = build_automaton(loaded.tokenizer, points, vocab_size=loaded.vocab_size)
    return {
        case: engine.generate(
            [GenerationRequest(prompt) for prompt in PROMPTS],
            SamplingParams(BUDGET, temperature=temperature),
            seed=3,
            control=ControlSpec(automaton, NUM_POINTS, (1, BLOCK)),
            controller=_controller(loaded.identity.width) if steers else None,
        )
        for case, (temperature, steers) in CASES.items()
    }


def _controller(width: int) -> Controller:
    """An untrained head over a random basis: it chooses by the states, whatever it chooses."""
    generator = torch.Generator().manual_seed(0)
    count = 8 * NUM_POINTS
    directions = torch.randn(count, width, generator=generator)
    basis = ControlBasis(
        keys=torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=-1),
        directions=directions,
        blocks=torch.full((count,), BLOCK),
        points=torch.arange(count) % NUM_POINTS + 1,
        quality=torch.ones(count),
        is_anchor=torch.arange(count) // NUM_POINTS % 2 == 1,
        saves_tokens=torch.zeros(count, dtype=torch.bool),
        contrast=torch.arange(count),
    )
    head = ValueHead(
        reads=(BLOCK - 1, BLOCK),
        width=width,
        hidden_width=16,
        num_members=1,
        max_points=NUM_POINTS,
        max_new_tokens=BUDGET,
        generator=generator,
    )
    judged = ValueSteering(strength=2.0, margin=-1.0, doubt=0.0, only_familiar=False)
    head.requires_grad_(requires_grad=False)
    return BasisController(basis, judged, block=BLOCK, head=head)


def main(model: str, output: str) -> None:
    """Every rank writes all that it has made."""
    torch.set_num_threads(1)
    with open_world() as world:
        config = ModelConfig(name=model, device="cpu", sharding="tensor", shards=world.size)
        loaded = load_model(config, world)
        prepare_ranks("vllm", world, num_shards=world.size)
        engine = open_backend("vllm", loaded, Limits(MAX_ROWS))
        made = made_by(engine, loaded)
        engine.close()
        said = {
            case: {
                "rollouts": [asdict(rollout) for rollout in one.rollouts],
                "decisions": [asdict(decision) for decision in one.decisions],
            }
            for case, one in made.items()
        }
        Path(f"{output}.{world.rank}.json").write_text(json.dumps(said))
        states = {case: one.states.states for case, one in made.items() if one.states is not None}
        save_file(states, f"{output}.{world.rank}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
