"""What the size of the control basis does to a controller, and why it need not grow better with it.

Usage: ``python benchmarks/basis_size.py RUN_DIRECTORY [--sizes 16 32 64 128 256 512] [--strength 2]``.
From the contrasts of a finished run, bases are selected anew: by the method (``greedy``: quality and
diversity), by quality alone (``top``) and at random; each steers the tune split, once by previews and
once by the run's value head. Beside accuracy stands what explains it: from which kinds of problems the
corrections of the first control point come.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Literal, get_args

from rich.table import Table

from stir_train.basis.select import select_basis
from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.config.stages import BasisConfig
from stir_train.config.steering import PreviewSteering, RetrievingSteering, ValueSteering
from stir_train.generation.backend import ControlSpec, GenerationRequest
from stir_train.monitoring.console import make_console
from stir_train.runtime.attempt import open_run
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import grade_rollouts, sampling_params
from stir_train.steering.controller import BasisController
from stir_train.stores.contrasts import ContrastStore
from stir_train.types.steering import ControlBasis

Rule = Literal["greedy", "top", "random"]


def basis_of(context: RunContext, size: int, rule: Rule, block: int) -> ControlBasis:
    """One block's basis of right-against-wrong contrasts."""
    config = BasisConfig(size=size, selection=rule, min_per_point=0)
    shards = ContrastStore(context.stage("harvest")).read()
    found = select_basis(shards, config, seed=context.config.seed, world=context.world)
    return next(part.basis for part in found if part.block == block and not part.saves_tokens)


def accuracy(
    context: RunContext, basis: ControlBasis, settings: RetrievingSteering, block: int
) -> str:
    """Of a controller over a basis, on the tune split."""
    prompts = context.splits["tune"]
    head = context.steering.head(block) if isinstance(settings, ValueSteering) else None
    device = context.resources.loaded.device
    result = context.resources.engine.generate(
        [GenerationRequest(prompt) for prompt in prompts],
        sampling_params(context, greedy=True),
        seed=0,
        control=ControlSpec(context.resources.automaton, context.config.control_points.max_points),
        controller=BasisController(basis, settings, block=block, head=head, device=device),
    )
    graded = grade_rollouts(context, result.rollouts, prompts)
    return f"{sum(item.grade.correct for item in graded) / len(graded):.1%}"


def kinds_at_first_point(context: RunContext, basis: ControlBasis) -> str:
    """How many corrections of the first control point come from each kind of problem."""
    kinds = {prompt.prompt_id: prompt.kind for prompt in context.splits["harvest"]}
    files = ContrastStore(context.stage("harvest")).read()
    problems = [prompt_id for found in files for prompt_id in found.prompt_ids]
    here = (basis.points == 1) & ~basis.is_anchor
    counts = Counter(kinds[problems[row]] for row in basis.contrast[here].tolist())
    return ", ".join(f"{counts[kind]} {kind}" for kind in sorted(set(kinds.values())))


def main() -> None:
    """Print a row per size and rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512])
    parser.add_argument("--depth", type=float, default=1.0)
    parser.add_argument("--strength", type=float, default=2.0)
    parser.add_argument("--rules", nargs="+", default=list(get_args(Rule)))
    arguments = parser.parse_args()
    config = load_config(RunConfig, arguments.run / "config.yaml", [])
    settings = {
        "preview": PreviewSteering(strength=arguments.strength),
        "value": ValueSteering(strength=arguments.strength),
    }
    columns = ("size", "rule", *settings, "corrections at the first point")
    table = Table(*columns, title=f"{arguments.run}: accuracy on the tune split")
    with open_run(config, make_console(), ["basis_size"]) as context:
        block = context.resources.block_at(arguments.depth)
        for size in arguments.sizes:
            for rule in arguments.rules:
                basis = basis_of(context, size, rule, block)
                found = [accuracy(context, basis, tried, block) for tried in settings.values()]
                table.add_row(str(size), rule, *found, kinds_at_first_point(context, basis))
    make_console(sys.stdout).print(table)


if __name__ == "__main__":
    main()
