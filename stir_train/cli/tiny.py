"""Train or check the embedded tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stir_train.cli.arguments import console

tiny = typer.Typer(help="Train or check the embedded tiny reasoning model.", no_args_is_help=True)


@tiny.command("train")
def tiny_train(
    output: Annotated[Path, typer.Argument(help="Directory to write the model to.")],
    family: Annotated[
        list[str] | None, typer.Option(help="Task family (addition); repeat it for several.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and corpus.")] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Training steps; default: the recipe's.")
    ] = None,
) -> None:
    """Train a tiny model from scratch (minutes on one thread) and check its competence."""
    from dataclasses import replace

    from stir_train.tasks.tiny_model import TinyRecipe
    from stir_train.tools.tiny import train_tiny

    recipe = replace(TinyRecipe(), seed=seed)
    recipe = recipe if steps is None else replace(recipe, num_steps=steps)
    families = family or ["addition"]
    train_tiny(families, recipe, output, console())
    for name in families:
        tiny_check(str(output), name)


@tiny.command("check")
def tiny_check(
    model: Annotated[str, typer.Argument(help="Model directory or embedded/NAME.")],
    family: Annotated[str, typer.Option(help="Task family.")] = "addition",
    problems: Annotated[int, typer.Option(help="Held-out problems.")] = 300,
) -> None:
    """Measure a tiny model: pass@8 above 90 %, with headroom in accuracy or in tokens."""
    from stir_train.tools.tiny import measure_competence

    found = measure_competence(family, model, problems)
    print(
        f"greedy {found.greedy:.1%} in {found.greedy_tokens:.1f} tokens, mean@1 "
        f"{found.mean_at_1:.1%}, pass@8 {found.pass_at_8:.1%} (shortest right sample "
        f"{found.shortest_tokens:.1f} tokens) on {found.num_problems} problems: "
        + ("good but imperfect" if found.passes else "does not pass the competence check")
    )


@tiny.command("problems")
def tiny_problems(
    output: Annotated[Path, typer.Argument(help="JSONL file to write.")],
    family: Annotated[str, typer.Option(help="Task family.")] = "addition",
    problems: Annotated[int, typer.Option(help="How many.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 1,
) -> None:
    """Write fresh reserved problems of a family as JSONL, to try the path of your own data."""
    from stir_train.tools.tiny import write_problems

    write_problems(family, problems, seed, output)
    console().print(f"wrote {problems} problems of {family} to {output}", soft_wrap=True)
