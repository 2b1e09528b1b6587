"""Write what a finished run made in the form that another tool loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from stir_train.answering.methods import GREEDY, STEERED, STUDENT
from stir_train.artifacts.atomic import write_text
from stir_train.config.learning import ObjectiveConfig
from stir_train.config.pipeline import stage
from stir_train.config.steering import StaticSteering, VectorSteering
from stir_train.errors import ArtifactError
from stir_train.export.adapter import ADAPTER_FILES, adapter_of, save_merged
from stir_train.export.card import Card, render_card
from stir_train.export.vector import save_gguf_vector, save_lm_eval_vector
from stir_train.models.load import load_model, unsharded
from stir_train.models.public_name import public_name
from stir_train.monitoring.console import good
from stir_train.runtime.context import RunContext
from stir_train.steering.static import mean_direction
from stir_train.stores.reports import load_report
from stir_train.stores.results import load_results
from stir_train.tools.verify import run_verify
from stir_train.types.directions import estimated_at
from stir_train.types.results import TuneReport

Format = Literal["lora", "merged", "gguf", "lm-eval"]
CARD_FILE, GGUF_FILE, LM_EVAL_FILE = "README.md", "control-vector.gguf", "steer.pt"
MADE_BY = (
    "rollout",
    "directions",
    "harvest",
    "basis",
    "validate",
    "value",
    "tune",
    "steer",
    "distill",
)


def run_export(context: RunContext, target: Path, *, form: Format) -> None:
    """Write the adapter (verified again), its merged weights, or the static mean vector.

    Raises:
        ArtifactError: If the target holds files already.
    """
    if target.exists() and any(target.iterdir()):
        raise ArtifactError(f"{target} is not empty; choose another directory with --to")
    if form in ("lora", "merged"):
        how = _export_student(context, target, merged=form == "merged")
    else:
        how = _export_vector(context, target, form)
    context.console.print(good(f"wrote {target}; load it with {how}"), soft_wrap=True)


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
    config = context.config
    made = [name for name in MADE_BY if stage(name).is_on(config)]
    lineage = {name: context.stage(name).fingerprint() for name in made}
    evaluation = context.stage("evaluate")
    results = load_results(evaluation) if evaluation.is_complete else None
    rows = [] if results is None else [row.metrics for row in results.methods]
    shown = [row for row in rows if row.name in (GREEDY, STEERED, STUDENT)]
    return Card(
        name=config.name,
        base_model=public_name(config.model.name),
        task=config.task.name,
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
    }
    parts |= objective.terms
    named = [f"{name} (weight {weight:g})" for name, weight in parts.items() if weight]
    return f"{' and '.join(named)} of {objective.samples} completions"


def _export_vector(context: RunContext, target: Path, form: Format) -> str:
    vector, block, what = _vector(context)
    target.mkdir(parents=True, exist_ok=True)
    context.console.print(f"  after block {block}, added at every token: {what}")
    if form == "gguf":
        save_gguf_vector(context.resources.loaded, vector, block, target / GGUF_FILE)
        return f"llama-cli --control-vector-scaled {target / GGUF_FILE} 1"
    save_lm_eval_vector(context.resources.loaded, vector, block, target / LM_EVAL_FILE)
    model = context.config.model.name
    return f"lm_eval --model steered --model_args pretrained={model},steer_path={target / LM_EVAL_FILE}"


def _vector(context: RunContext) -> tuple[Float[Tensor, "D"], int, str]:
    """A vector, its block, and what it is: the chosen one, or the static control.

    Raises:
        ArtifactError: If there is none that acts at every token.
    """
    choice = context.steering.choice()
    if isinstance(choice, VectorSteering):
        return *_chosen_vector(context, choice), "the chosen controller itself"
    if not context.config.needs_basis:
        raise ArtifactError(f"tuning chose {choice.mode!r}: there is no vector to export")
    settings = _static_settings(context)
    block = context.resources.block_at(settings.depth or context.config.harvest.depths[0])
    vector = settings.strength * mean_direction(context.steering.basis(), block)
    if not bool(vector.any()):
        raise ArtifactError(
            f"the basis has no correction in block {block}: there is no mean vector"
        )
    what = f"a static vector of strength {settings.strength:g}"
    return vector, block, f"{what}, the control `stir-static`, not the controller"


def _chosen_vector(context: RunContext, choice: VectorSteering) -> tuple[Float[Tensor, "D"], int]:
    """The vector of a choice that the other tool can apply, times its strength."""
    if len(choice.actions) != 1 or choice.actions[0].place != "every_token":
        places = ", ".join(action.place for action in choice.actions)
        raise ArtifactError(
            f"the chosen vectors act at {places}; gguf and lm-eval add one vector at every token. Tune "
            "with tune.vectors={every_token: [...]} alone to export what was measured"
        )
    (action,) = choice.actions
    block = context.resources.block_at(action.depth)
    direction = context.steering.directions().vector(block, estimated_at(action.place))
    return action.strength * direction, block


def _static_settings(context: RunContext) -> StaticSteering:
    """The static setting that did best on the tune split; the chosen one's place if none was tried."""
    best = load_report(context.stage("tune"), TuneReport).best_of_each_mode()
    tried = [tried for tried in best if isinstance(tried, StaticSteering)]
    return tried[0] if tried else StaticSteering.like(context.steering.choice())
