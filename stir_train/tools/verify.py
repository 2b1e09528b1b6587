"""Verify a finished run's adapter again, in a fresh process or through an engine that serves it."""

from __future__ import annotations

from stir_train.errors import ArtifactError
from stir_train.export.adapter import PROBES_FILE
from stir_train.export.served import ServedTokens, verify_served
from stir_train.export.verify import VerificationResult, verify_adapter
from stir_train.generation.open import Limits, check_installation, open_backend
from stir_train.models.load import load_model, unsharded
from stir_train.models.locate import locate_model
from stir_train.models.lora import load_adapter
from stir_train.runtime.context import RunContext
from stir_train.runtime.lineage import require_lineage
from stir_train.runtime.upstream import PLAIN_INSTEAD, WHY, students_taught
from stir_train.stores.adapters import adapter_of


def run_verify(context: RunContext) -> VerificationResult:
    """Verify a finished run's adapter again.

    Raises:
        ArtifactError: If the run trained no student to export, its stage is not finished, or what it
            was made from is damaged or not this configuration's.
    """
    if "" not in students_taught(context.run_dir, context.config):
        why = (
            f"{WHY}; {PLAIN_INSTEAD}"
            if context.config.distill.enabled
            else "distill.enabled is off"
        )
        raise ArtifactError(f"{context.run_dir.path}: no student was trained: {why}")
    require_lineage(context, "distill")
    stage = context.stage("distill")
    base_path, gguf_file = locate_model(context.config.model)
    return verify_adapter(
        base_path,
        adapter_of(stage),
        stage.file(PROBES_FILE),
        tolerance=context.config.distill.logit_tolerance,
        gguf_file=gguf_file,
    )


def run_verify_served(context: RunContext, engine: str) -> ServedTokens:
    """Complete the recorded probes through a generation backend with the adapter.

    Args:
        context: The run.
        engine: A value of ``generation.backend``.

    Raises:
        StageError: If the backend is not installed.
        VerificationError: If it makes other tokens.
    """
    require_lineage(context, "distill")
    stage = context.stage("distill")
    check_installation(engine, {})
    # In float32, as the probes were recorded.
    base = unsharded(context.config.model).model_copy(update={"dtype": "float32"})
    loaded = load_adapter(load_model(base), adapter_of(stage))
    return verify_served(
        loaded,
        open_backend(engine, loaded, Limits(context.config.generation.max_rows)),
        stage.file(PROBES_FILE),
        tolerance=context.config.distill.logit_tolerance,
    )
