"""Select the control basis and diagnose the contrasts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stir_train.artifacts.run_dir import StageDir
from stir_train.basis.diagnostics import diagnose, points_yield, warnings_of
from stir_train.basis.select import BlockSelection, select_basis
from stir_train.monitoring.console import caution
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.directions import along_gradients
from stir_train.stores.contrasts import ContrastStore
from stir_train.stores.reports import save_report
from stir_train.stores.steering import save_basis
from stir_train.types.reports import BasisReport, BlockDiagnostics, CellSummary, PointYield
from stir_train.types.steering import ControlBasis

DIAGNOSED_CONTRASTS = 20_000
"""Contrasts that the diagnostics look at: enough for every figure, and few enough for one process."""


def run(context: RunContext, stage: StageDir) -> Finish:
    """Select the control basis and diagnose the contrasts."""
    config = context.config
    harvest = context.stage("harvest")
    harvest.require_complete()
    shards = ContrastStore(harvest).read()
    selections = select_basis(shards, config.basis, seed=config.seed, world=context.world)
    return lambda: _finish(context, stage, selections)


def _finish(context: RunContext, stage: StageDir, selections: list[BlockSelection]) -> Outcome:
    candidates = ContrastStore(context.stage("harvest")).head(DIAGNOSED_CONTRASTS)
    basis = ControlBasis.concatenate([selection.basis for selection in selections])
    cells: tuple[CellSummary, ...] = ()
    if context.config.steers_along_gradients:
        basis, cells = along_gradients(context, basis)
    save_basis(stage, basis, context.resources.described.identity)
    diagnostics: list[BlockDiagnostics] = []
    norms: dict[int, tuple[float, ...]] = {}
    for block in candidates.blocks:
        found, norms_of_block = diagnose(candidates, block)
        diagnostics.append(found)
        norms[block] = tuple(norms_of_block.tolist())
    warnings = warnings_of(candidates, diagnostics)
    coverage = points_yield(candidates, basis)
    report = BasisReport(
        blocks=tuple(diagnostics),
        warnings=tuple(warnings),
        points=tuple(coverage),
        quality=tuple(candidates.quality.tolist()),
        norms=norms,
        logdet={_selection_name(s): s.selection.logdet for s in selections},
        objective={_selection_name(s): s.selection.objective for s in selections},
        cells=cells,
    )
    save_report(stage, report)
    _log_basis(context, selections, coverage)
    for warning in warnings:
        context.console.print(caution(f"basis: {warning}"))
    return Outcome(
        {"num_entries": len(basis), "num_corrections": int((~basis.is_anchor).sum())},
        f"{len(basis)} entries over blocks {', '.join(map(str, candidates.blocks))}{_in_words(cells)}",
    )


def _in_words(cells: Sequence[CellSummary]) -> str:
    """How far entries that steer along reward gradients have directions of their own."""
    if not cells:
        return ""
    num_own = sum(block.num_own for block in cells)
    num_entries = sum(block.num_entries for block in cells)
    return (
        f"; along reward gradients, {num_own} of {num_entries} in a direction of their own, the others in "
        "that of the whole block"
    )


def _log_basis(
    context: RunContext,
    selections: list[BlockSelection],
    coverage: list[PointYield],
) -> None:
    """The curve of the log-determinant, the spectrum of the keys, and what each point got."""
    for selection in selections:
        name = _selection_name(selection)
        for pick, logdet in enumerate(selection.selection.logdet, start=1):
            context.metrics.log("basis", {"logdet": logdet}, step=pick, series=name)
        for place, value in enumerate(torch.linalg.svdvals(selection.basis.keys).tolist(), start=1):
            context.metrics.log("basis", {"spectrum": value}, step=place, series=name)
    for found in coverage:
        figures = {
            "contrasts": found.num_contrasts,
            "kept": found.kept_per_block,
        }
        context.metrics.log("basis", figures, step=found.point, series="coverage")


def _selection_name(selection: BlockSelection) -> str:
    return f"{selection.block}{', short against long' if selection.saves_tokens else ''}"
