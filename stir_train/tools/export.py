"""Write what a finished run made in the form that another tool loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from stir_train.answering.methods import GREEDY, STEERED, STUDENT
from stir_train.artifacts.atomic import write_text
from stir_train.config.learning import ObjectiveConfig
from stir_train.config.pipeline import lineage_of, stage
from stir_train.config.places import estimated_at
from stir_train.config.steering import VectorSteering
from stir_train.errors import ArtifactError
from stir_train.export.adapter import save_merged
from stir_train.export.card import Card, VectorCard, hub_id, render_card, render_vector_card
from stir_train.export.vector import save_gguf_vector, save_lm_eval_vector
from stir_train.models.load import load_model, unsharded
from stir_train.models.locate import locate_model
from stir_train.models.public_name import public_name
from stir_train.monitoring.console import good
from stir_train.runtime.context import RunContext
from stir_train.runtime.lineage import require_lineage
from stir_train.runtime.upstream import abstains, stages_left_out
from stir_train.stores.adapters import ADAPTER_FILES, adapter_of
from stir_train.stores.results import load_results
from stir_train.tools.lm_eval_task import write_lm_eval_task
from stir_train.tools.publish import CARD_FILE, write_run
from stir_train.tools.verify import run_verify
from stir_train.types.results import MethodMetrics

Format = Literal["run", "lora", "merged", "gguf", "lm-eval", "lm-eval-task"]
PATH_OF_FOLDER = "PATH/TO/THIS/FOLDER"
GGUF_FILE, LM_EVAL_FILE = "control-vector.gguf", "steer.pt"


def run_export(
    context: RunContext, target: Path, *, form: Format, licence: str | None = None
) -> None:
    """Write what steers and the student, the student alone or merged, the chosen vector, or the test split.

    Raises:
        ArtifactError: If the target holds files already, or the run has nothing that the format can hold.
    """
    if target.exists() and any(target.iterdir()):
        raise ArtifactError(f"{target} is not empty; choose another directory with --to")
    how = write_export(context, target, form=form, source=PATH_OF_FOLDER, licence=licence)
    context.console.print(good(f"wrote {target}; load it with {how}"), soft_wrap=True)


def write_export(
    context: RunContext, target: Path, *, form: Format, source: str, licence: str | None = None
) -> str:
    """Write it to an empty directory; how to load it.

    Args:
        context: The run.
        target: The directory.
        form: What is written.
        source: What the card of a ``run`` says to load it by.
        licence: Of a ``run``, as hubs abbreviate it; None takes the base's own where it is known.

    Raises:
        ArtifactError: If the run has nothing that the format can hold, or it is damaged or not this
            configuration's.
    """
    if form == "run":
        write_run(context, target, source=source, licence=licence)
        return f"stir_train.steering.loaded.load_run({str(target)!r})"
    made = "distill" if form in ("lora", "merged") else "tune"
    require_lineage(context, made, "evaluate")
    if form in ("lora", "merged"):
        return _export_student(context, target, merged=form == "merged")
    if form == "lm-eval-task":
        name = write_lm_eval_task(context, target)
        return (
            f"stir-train lm-eval run --model stir --model_args run={context.run_dir.path} --tasks {name} "
            f"--include_path {target}"
        )
    return _export_vector(context, target, form)


def _export_student(context: RunContext, target: Path, *, merged: bool) -> str:
    run_verify(context)
    source = adapter_of(context.stage("distill"))
    target.mkdir(parents=True, exist_ok=True)
    if merged:
        save_merged(load_model(unsharded(context.config.model)), source, target)
    else:
        for name in ADAPTER_FILES:
            shutil.copyfile(source / name, target / name)
    write_text(target / CARD_FILE, render_card(_card(context, merged=merged)))
    rank = context.config.distill.rank
    if merged:
        return f"AutoModelForCausalLM.from_pretrained({str(target)!r})"
    return (
        f"PeftModel.from_pretrained(base, {str(target)!r}), or vllm serve BASE --enable-lora "
        f"--max-lora-rank {rank} --lora-modules stir={target}"
    )


def _card(context: RunContext, *, merged: bool) -> Card:
    figures = context.stage("distill").summary()
    config, left_out = context.config, stages_left_out(context.run_dir, context.config)
    made = [
        name for name in lineage_of("distill") if stage(name).is_on(config) and name not in left_out
    ]
    lineage = {name: context.stage(name).fingerprint() for name in made}
    evaluation = context.stage("evaluate")
    results = load_results(evaluation) if evaluation.is_complete else None
    rows = [] if results is None else [row.metrics for row in results.methods]
    is_plain = abstains(context.run_dir)
    named = (GREEDY, STUDENT) if is_plain else (GREEDY, STEERED, STUDENT)
    shown = [row for row in rows if row.name in named]
    return Card(
        name=config.name,
        base_model=public_name(config.model.name),
        hub_id=hub_id(config.model),
        task=config.task.name,
        samples=config.distill.objective.samples,
        abstains=is_plain,
        merged=merged,
        objective=_in_words(config.distill.objective),
        num_samples=figures["num_samples"],
        num_tokens=figures["num_tokens"],
        lineage=lineage,
        methods=shown,
        num_items=0 if results is None else results.num_items,
        test_openings=1 if results is None else results.test_openings,
    )


def _in_words(objective: ObjectiveConfig) -> str:
    parts = {
        "tokens": objective.sequence,
        "next-token distributions": objective.logits,
        "states at control points": objective.states,
        "policy gradient": objective.policy_gradient,
    }
    parts |= objective.terms
    named = [f"{name} (weight {weight:g})" for name, weight in parts.items() if weight]
    return f"{' and '.join(named)} of {objective.samples} completions"


def _export_vector(context: RunContext, target: Path, form: Format) -> str:
    choice, row = _measured_at_every_token(context)
    (action,) = choice.actions
    block = context.resources.block_at(action.depth)
    direction = context.steering.directions().vector(block, estimated_at(action.place))
    vector = action.strength * direction
    target.mkdir(parents=True, exist_ok=True)
    context.console.print(
        f"  after block {block}, added at every token: the chosen controller itself"
    )
    card = _vector_card(context, row, block)
    if form == "gguf":
        save_gguf_vector(
            context.resources.loaded, vector, block, target / GGUF_FILE, description=card.measured
        )
        how = f"llama-cli --model MODEL.gguf --control-vector {target / GGUF_FILE}"
    else:
        save_lm_eval_vector(context.resources.loaded, vector, block, target / LM_EVAL_FILE)
        how = (
            f"lm_eval --model steered --model_args pretrained={_found_at(context)},"
            f"steer_path={target / LM_EVAL_FILE}"
        )
    write_text(target / CARD_FILE, render_vector_card(card))
    return how


def _measured_at_every_token(context: RunContext) -> tuple[VectorSteering, MethodMetrics]:
    """The choice and what it was measured to do, as the other tools would apply it.

    Raises:
        ArtifactError: If the choice is another kind of controller, acts elsewhere, or was not evaluated.
    """
    choice = context.steering.choice()
    only = "gguf and lm-eval hold one vector, added at every token, and only what was measured so is exported"
    tune_so = (
        "tune.modes=[vector] with tune.vectors={every_token: [...]} alone tunes and measures one"
    )
    if not isinstance(choice, VectorSteering):
        raise ArtifactError(f"{only}: tuning chose {choice.mode!r}. {tune_so}")
    if len(choice.actions) != 1 or choice.actions[0].place != "every_token":
        places = ", ".join(action.place for action in choice.actions)
        raise ArtifactError(f"{only}: the chosen vectors act at {places}. {tune_so}")
    evaluation = context.stage("evaluate")
    if not evaluation.is_complete:
        raise ArtifactError(f"{only}: the run is not evaluated yet; run its evaluate stage first")
    row = load_results(evaluation).find(STEERED)
    assert row is not None, "every evaluation has the chosen controller"
    assert row.steering == choice, "the evaluation is of the frozen choice"
    return choice, row.metrics


def _vector_card(context: RunContext, row: MethodMetrics, block: int) -> VectorCard:
    results = load_results(context.stage("evaluate"))
    greedy = results.find(GREEDY)
    assert greedy is not None, "every evaluation has greedy decoding"
    return VectorCard(
        name=context.config.name,
        base_model=public_name(context.config.model.name),
        hub_id=hub_id(context.config.model),
        task=context.config.task.name,
        block=block,
        num_items=results.num_items,
        row=row,
        greedy=greedy.metrics,
        lineage={
            name: context.stage(name).fingerprint() for name in ("directions", "tune", "evaluate")
        },
    )


def _found_at(context: RunContext) -> str:
    """Where another tool finds the base: its hub id or directory, also of an embedded model."""
    return locate_model(context.config.model)[0]
