"""Verify a finished run's adapter again, in a fresh process."""

from __future__ import annotations

from stir_train.export.adapter import PROBES_FILE, adapter_of
from stir_train.export.verify import VerificationResult, verify_adapter
from stir_train.models.load import locate_model
from stir_train.runtime.context import RunContext


def run_verify(context: RunContext) -> VerificationResult:
    """Verify a finished run's adapter again."""
    stage = context.stage("distill")
    base_path, gguf_file = locate_model(context.config.model)
    return verify_adapter(
        base_path,
        adapter_of(stage),
        stage.file(PROBES_FILE),
        tolerance=context.config.distill.logit_tolerance,
        gguf_file=gguf_file,
    )
