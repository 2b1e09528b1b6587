"""The report's figures, each returned as an inline PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stir_train.evals.strength import StrengthCurve
from stir_train.types.reports import BlockDiagnostics, PointYield, ReliabilityBin

COLORS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#4b5563", "#be185d")
GRID = "#e5e7eb"


def points_yield(points: Sequence[PointYield]) -> str:
    """Contrasts found and corrections kept at each control point."""
    figure, axes = new_figure()
    positions = [found.point for found in points]
    axes.bar(
        [p - 0.2 for p in positions],
        [found.num_contrasts for found in points],
        0.4,
        label="contrasts found",
    )
    axes.bar(
        [p + 0.2 for p in positions],
        [found.kept_per_block for found in points],
        0.4,
        label="corrections kept",
    )
    axes.set_xlabel("control point")
    axes.set_ylabel("count")
    axes.legend(fontsize=8, frameon=False)
    return png(figure)


def histogram(
    series: Mapping[str, Sequence[float]], xlabel: str, *, ylabel: str = "contrasts"
) -> str:
    """One outline per named series."""
    figure, axes = new_figure()
    for i, (name, values) in enumerate(series.items()):
        axes.hist(values, bins=30, histtype="step", color=COLORS[i % len(COLORS)], label=name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if len(series) > 1:
        axes.legend(fontsize=8, frameon=False)
    return png(figure)


def curves(series: Mapping[str, Sequence[float]], xlabel: str, ylabel: str) -> str:
    """One line per named series, x counted from 1."""
    figure, axes = new_figure()
    for i, (name, values) in enumerate(series.items()):
        xs = range(1, len(values) + 1)
        axes.plot(xs, values, color=COLORS[i % len(COLORS)], label=name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(fontsize=8, frameon=False)
    return png(figure)


def cosines(blocks: Sequence[BlockDiagnostics]) -> str:
    """Key cosines raw and centred, direction coherence and split-half agreement, per block."""
    figure, axes = new_figure(6.4, 3.2)
    names = {
        "raw_cosine": "keys, raw",
        "centred_cosine": "keys, centred",
        "coherence": "directions",
        "split_half": "split-half",
    }
    for i, (key, label) in enumerate(names.items()):
        xs = [j + 0.2 * (i - 1.5) for j in range(len(blocks))]
        axes.bar(xs, [getattr(b, key) for b in blocks], 0.18, color=COLORS[i], label=label)
    axes.set_xticks(range(len(blocks)), [f"block {b.block}" for b in blocks])
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylabel("mean cosine")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return png(figure)


def reliability(bins: Mapping[int, Sequence[ReliabilityBin]]) -> str:
    """Observed against predicted P(correct) on held-out prompts, per block."""
    figure, axes = new_figure(4.2, 3.6)
    axes.plot([0, 1], [0, 1], color="#9ca3af", linewidth=1, linestyle="--")
    for i, (block, rows) in enumerate(bins.items()):
        xs = [row.mean_predicted for row in rows]
        ys = [row.mean_observed for row in rows]
        axes.plot(xs, ys, "o-", markersize=4, color=COLORS[i % len(COLORS)], label=f"block {block}")
    axes.set_xlabel("predicted P(correct)")
    axes.set_ylabel("observed")
    axes.legend(fontsize=8, frameon=False)
    return png(figure)


def strengths(found: Sequence[StrengthCurve]) -> str:
    """Points gained by norm, a panel a curve; dashed is what the gradient predicts near zero."""
    figure = Figure(figsize=(4.6 * len(found), 3.2), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    ends = [100 * end for curve in found for interval in curve.intervals for end in interval]
    for axes, curve in zip(panels, found, strict=True):
        for norm, gain, interval in zip(curve.norms, curve.gains, curve.intervals, strict=True):
            axes.vlines(norm, 100 * interval[0], 100 * interval[1], color=COLORS[0], alpha=0.5)
            axes.plot(norm, 100 * gain, "o", color=COLORS[0], markersize=4)
        axes.plot(curve.norms, [100 * gain for gain in curve.gains], color=COLORS[0])
        axes.axline((0, 0), slope=100 * curve.slope, linestyle="--", color="#9ca3af")
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_xlim(0, 1.05 * curve.norms[-1])
        # The prediction leaves the picture, which is of what was measured.
        axes.set_ylim(min(0, *ends) - 3, max(0, *ends) + 3)
        axes.set_title(curve.title, fontsize=9)
        axes.set_xlabel("norm of the vector")
        axes.grid(color=GRID, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("points gained (tune)")
    return png(figure)


def interventions(by_point: Mapping[int, tuple[int, int]]) -> str:
    """Share of control points that received an impulse, by control point."""
    figure, axes = new_figure()
    points = sorted(by_point)
    axes.bar(points, [100 * by_point[p][1] / by_point[p][0] for p in points], color=COLORS[0])
    axes.set_xlabel("control point")
    axes.set_ylabel("steered (%)")
    return png(figure)


def new_figure(width: float = 4.6, height: float = 3.0) -> tuple[Figure, Axes]:
    """A figure in the report's style, its sizes in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: Figure) -> str:
    """The figure as a data URL."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
