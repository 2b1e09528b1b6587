"""What a finished run gives: its adapter, its exports, its answers, its place beside other runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from stir_train.cli.arguments import (
    ConfigPath,
    Overrides,
    RunPath,
    answers,
    console,
    fail,
    reading,
    run_directory,
)

app = typer.Typer()
TEXT_WIDTH = 79
Licence = Annotated[
    str | None,
    typer.Option(
        "--license",
        help="Of a run, as hubs abbreviate it (apache-2.0); by default the base's, if its card is at hand.",
    ),
]


@app.command()
def verify(
    config: ConfigPath,
    overrides: Overrides = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Compare greedy tokens through a generation backend, as vllm, instead."),
    ] = None,
) -> None:
    """Reload a finished run's adapter in a fresh process and compare its logits."""
    with reading(config, overrides or []) as context:
        from stir_train.monitoring.console import good
        from stir_train.tools.verify import run_verify, run_verify_served

        if engine is not None:
            served = run_verify_served(context, engine)
            ties = f"; {served.num_ties} probes part at a tie" if served.num_ties else ""
            context.console.print(
                good(
                    f"{served.num_equal} of {served.num_tokens} greedy tokens through {engine} are the "
                    f"trainer's{ties}"
                )
            )
            return
        result = run_verify(context)
        context.console.print(
            good(
                f"{result.num_tensors} tensors load strictly; the adapter changes logits by up to "
                f"{result.effect:.2f} and is within {result.difference:.1e} of the trainer's"
            )
        )


@app.command()
def export(
    config: ConfigPath,
    overrides: Overrides = None,
    to: Annotated[Path, typer.Option(help="Directory to write.")] = Path("export"),
    form: Annotated[
        Literal["run", "lora", "merged", "gguf", "lm-eval", "lm-eval-task"],
        typer.Option(
            "--format",
            help="What `load_run` opens: what steers, and the adapter; the adapter alone; full merged weights; a chosen vector that was measured at every token, for "
            "llama.cpp or lm-eval; or the test split as a task of lm-eval.",
        ),
    ] = "lora",
    licence: Licence = None,
) -> None:
    """Write what steers, a finished run's adapter, merged weights or chosen vector where others load it."""
    with reading(config, overrides or []) as context:
        from stir_train.tools.export import run_export

        run_export(context, to, form=form, licence=licence)


@app.command()
def push(
    config: ConfigPath,
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="On the Hugging Face hub.")
    ],
    overrides: Overrides = None,
    form: Annotated[
        Literal["run", "lora", "merged", "gguf", "lm-eval"],
        typer.Option("--format", help="As of `export`."),
    ] = "run",
    licence: Licence = None,
    private: Annotated[
        bool, typer.Option("--private", help="Of a repository that is made.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be uploaded; upload nothing.")
    ] = False,
) -> None:
    """Upload what steers and the student, or another of `export`'s formats, with its card, to the hub."""
    with reading(config, overrides or []) as context:
        from stir_train.tools.push import run_push

        run_push(context, repository, form=form, private=private, dry_run=dry_run, licence=licence)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def lm_eval(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="ARGUMENTS...",
            help="As lm-eval takes them: run --model stir --model_args run=RUN,method=stir --tasks ...",
        ),
    ],
) -> None:
    """Run lm-evaluation-harness with the model `stir`: a finished run's method answers its tasks."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError:
        fail("lm-eval is not installed here: in the clone, pip install '.[lm-eval]'")
    import stir_train.tools.lm_eval_model  # noqa: F401  # registers the model

    sys.argv = ["lm-eval", *arguments]  # where its own command line looks
    cli_evaluate()


@app.command()
def generate(
    config: ConfigPath,
    prompt: Annotated[str, typer.Option(help="The problem to answer.")],
    overrides: Overrides = None,
    method: Annotated[
        str, typer.Option(help="greedy, stir, stir-published or lora-student.")
    ] = "stir",
) -> None:
    """Answer one prompt with a finished run's method, as it is written."""
    with reading(config, overrides or []) as context:
        from stir_train.tools.trace import stream_answer

        stream_answer(context, prompt, method, lambda text: print(text, end="", flush=True))
        print()


@app.command()
def serve(
    config: ConfigPath,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[key=value ...] [-- ARGUMENT ...]",
            help="Settings to change; after --, arguments of `vllm serve`, as --max-num-seqs 32.",
        ),
    ] = None,
    engine: Annotated[Literal["vllm"], typer.Option(help="Whose server.")] = "vllm",
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at.")] = 8000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be served and how; start nothing.")
    ] = False,
) -> None:
    """Serve a tuned run over HTTP, as OpenAI does: steered as it chose, its student beside it."""
    first = next((i for i, word in enumerate(words or []) if word.startswith("-")), None)
    overrides, further = (words or [])[:first], (words or [])[first:] if first is not None else []
    with reading(config, overrides) as context:
        from stir_train.tools.serve import Address, plan_server, run_server, show_server

        plan = plan_server(context, engine, Address(host, port), further=further)
    if dry_run:
        show_server(plan, answers())
        return
    run_server(plan, console())


@app.command()
def trace(
    config: ConfigPath,
    overrides: Overrides = None,
    index: Annotated[int, typer.Option(help="Which problem of the tune split.")] = 0,
    method: Annotated[
        str, typer.Option(help="greedy, stir, stir-published or lora-student.")
    ] = "stir",
) -> None:
    """Show a completion with its control points: what was retrieved, and what was injected."""
    with reading(config, overrides or []) as context:
        from stir_train.tools.trace import show_decisions

        show_decisions(context, index, method, answers())


@app.command()
def diagnose(
    config: ConfigPath,
    overrides: Overrides = None,
    index: Annotated[int, typer.Option(help="Which problem of the tune split.")] = 0,
    sample: Annotated[
        int | None, typer.Option(min=0, help="Which of its samples; default: greedy decoding.")
    ] = None,
    continuations: Annotated[
        int, typer.Option(min=2, help="Sampled from every cut between steps.")
    ] = 16,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write the tables to this file, too.")
    ] = None,
) -> None:
    """Read the model on one problem: which step mattered, where the answer forms, what states tell."""
    with reading(config, overrides or []) as context:
        from stir_train.tools.diagnose import diagnose as diagnose_problem
        from stir_train.tools.diagnosis_tables import as_markdown, print_diagnosis

        found = diagnose_problem(context, index, sample=sample, num_continuations=continuations)
        print_diagnosis(found, answers())
        if markdown is not None:
            markdown.write_text(as_markdown(found), encoding="utf-8")
            context.console.print(f"written to {markdown}", soft_wrap=True)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|CONFIG...", help="Finished runs, or their configurations."),
    ],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown table to standard output.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write one page with tables and frontiers to this file.")
    ] = None,
    by_method: Annotated[
        bool,
        typer.Option("--by-method", help="Print a Markdown table of one row a method instead."),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write the frontiers of all runs to this SVG file.")
    ] = None,
    paired: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD[,METHOD]",
            help="Say by how much one method of two runs, or two methods, differ on the same problems.",
        ),
    ] = None,
) -> None:
    """Put the held-out results of several runs side by side."""
    from stir_train.monitoring.console import caution
    from stir_train.tools.compare import (
        as_markdown,
        as_table,
        by_method_markdown,
        result_rows,
        write_page,
        write_plot,
    )
    from stir_train.tools.shared_problems import describe_shared

    given = [run_directory(run) for run in runs]
    if paired is not None:
        _print_pair(given, paired)
        return
    directories = _with_results(given)
    if said := describe_shared(directories):
        console().print(caution(said), soft_wrap=True)
    for target, write in ((html, write_page), (plot, write_plot)):
        if target is not None:
            write(directories, target)
            console().print(f"written to {target}", soft_wrap=True)
    if by_method:
        print(by_method_markdown(directories))
        return
    if html is not None or plot is not None:
        return
    rows = result_rows(directories)
    if markdown:
        print(as_markdown(rows))
    else:
        answers().print(as_table(rows))


def _with_results(given: list[Path]) -> list[Path]:
    """Those whose evaluation is finished; the others are named, or kept where there are no others."""
    from stir_train.monitoring.console import caution
    from stir_train.tools.compare import without_results

    lacking = without_results(given)
    if len(lacking) == len(given):  # they are told what to do with the first
        return given
    for run in lacking:
        said = caution(f"{run}: left out, it has no finished evaluation")
        console().print(said, soft_wrap=True)
    return [run for run in given if run not in lacking]


def _print_pair(runs: list[Path], methods: str) -> None:
    from stir_train.tools.paired import describe, pair_of

    answers().print(describe(*pair_of(runs, methods)), width=TEXT_WIDTH)


@app.command()
def explain(
    run: RunPath,
    method: Annotated[str, typer.Option(help="Whose answers.")] = "stir",
    than: Annotated[str, typer.Option(help="Compared with whose.")] = "greedy",
    phrases: Annotated[int, typer.Option(min=1, help="Phrases in the table at most.")] = 10,
    examples: Annotated[int, typer.Option(min=0, help="Phrases with an example.")] = 3,
) -> None:
    """Say what steering changed: phrases that became rarer or commoner, with answers side by side."""
    from stir_train.tools.explain import explain_run, print_explanation

    found = explain_run(run_directory(run), method=method, than=than, max_phrases=phrases)
    print_explanation(found, answers(), method=method, than=than, num_examples=examples)
