"""The report's figures, each returned as an inline SVG in the colours of the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stir_train.evals.strength import StrengthCurve
from stir_train.types.reports import BlockDiagnostics, PointYield, ReliabilityBin

COLORS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#4b5563", "#be185d")
INK, SOFT, GRID = "#000000", "#9ca3af", "#e5e7eb"
PAGE_COLORS = {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--line)"}
"""What a page sets by its variables, so that figures follow it into the dark."""


def points_yield(points: Sequence[PointYield]) -> Markup:
    """Contrasts found and corrections kept at each control point."""
    figure, axes = new_figure()
    positions = [found.point for found in points]
    axes.bar(
        [p - 0.2 for p in positions],
        [found.num_contrasts for found in points],
        0.4,
        color=COLORS[0],
        label="contrasts found",
    )
    axes.bar(
        [p + 0.2 for p in positions],
        [found.kept_per_block for found in points],
        0.4,
        color=COLORS[1],
        label="corrections kept",
    )
    axes.set_xlabel("control point")
    axes.set_ylabel("count")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(fontsize=8, frameon=False)
    return svg(figure)


def histogram(
    series: Mapping[str, Sequence[float]], xlabel: str, *, ylabel: str = "contrasts"
) -> Markup:
    """One outline per named series."""
    figure, axes = new_figure()
    for i, (name, values) in enumerate(series.items()):
        axes.hist(values, bins=30, histtype="step", color=COLORS[i % len(COLORS)], label=name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if len(series) > 1:
        axes.legend(fontsize=8, frameon=False)
    return svg(figure)


def curves(series: Mapping[str, Mapping[int, float]], xlabel: str, ylabel: str) -> Markup:
    """One line per named series, of values by a number that is counted."""
    figure, axes = new_figure()
    for i, (name, values) in enumerate(series.items()):
        marker = "o" if len(values) == 1 else ""
        color = COLORS[i % len(COLORS)]
        axes.plot(list(values), list(values.values()), marker=marker, color=color, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(fontsize=8, frameon=False)
    return svg(figure)


def cosines(blocks: Sequence[BlockDiagnostics]) -> Markup:
    """Key cosines raw and centred, direction coherence and split-half agreement, per block."""
    figure, axes = new_figure(4.6, 3.2)
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
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_ylabel("mean cosine")
    axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return svg(figure)


def reliability(bins: Mapping[int, Sequence[ReliabilityBin]]) -> Markup:
    """Observed against predicted P(correct) on held-out prompts, per block."""
    figure, axes = new_figure(4.2, 3.6)
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle="--")
    for i, (block, rows) in enumerate(bins.items()):
        xs = [row.mean_predicted for row in rows]
        ys = [row.mean_observed for row in rows]
        axes.plot(xs, ys, "o-", markersize=4, color=COLORS[i % len(COLORS)], label=f"block {block}")
    axes.set_xlabel("predicted P(correct)")
    axes.set_ylabel("observed")
    axes.legend(fontsize=8, frameon=False)
    return svg(figure)


def strengths(found: Sequence[StrengthCurve]) -> Markup:
    """Points gained by norm, a panel a curve; dashed is what the gradient predicts near zero."""
    figure = Figure(figsize=(4.6 * len(found), 3.2), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    ends = [100 * end for curve in found for interval in curve.intervals for end in interval]
    for axes, curve in zip(panels, found, strict=True):
        for norm, gain, interval in zip(curve.norms, curve.gains, curve.intervals, strict=True):
            axes.vlines(norm, 100 * interval[0], 100 * interval[1], color=COLORS[0], alpha=0.5)
            axes.plot(norm, 100 * gain, "o", color=COLORS[0], markersize=4)
        axes.plot(curve.norms, [100 * gain for gain in curve.gains], color=COLORS[0])
        if curve.slope is not None:
            axes.axline((0, 0), slope=100 * curve.slope, linestyle="--", color=SOFT)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_xlim(0, 1.05 * curve.norms[-1])
        # The prediction leaves the picture, which is of what was measured.
        axes.set_ylim(min(0, *ends) - 3, max(0, *ends) + 3)
        axes.set_title(curve.title, fontsize=9)
        axes.set_xlabel("norm of the vector")
        axes.grid(color=GRID, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("points gained (tune)")
    return svg(figure)


def interventions(by_point: Mapping[int, tuple[int, int]]) -> Markup:
    """Share of control points that received an impulse, by control point."""
    figure, axes = new_figure()
    points = sorted(by_point)
    axes.bar(points, [100 * by_point[p][1] / by_point[p][0] for p in points], color=COLORS[0])
    axes.set_xlabel("control point")
    axes.set_ylabel("steered (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return svg(figure)


def new_figure(width: float = 4.6, height: float = 3.0) -> tuple[Figure, Axes]:
    """A figure in the report's style, its sizes in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    in_style(axes)
    return figure, axes


def in_style(axes: Axes) -> None:
    """Give axes the report's style."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def svg(figure: Figure) -> Markup:
    """The figure as an element of a page, which must set `PAGE_COLORS`; it refers to nothing outside itself."""
    drawn = _saved(figure, transparent=True)
    drawn = drawn[drawn.index("<svg") :]
    # HTML knows the name spaces, and names of groups would be the same in every figure.
    drawn = re.sub(r' xmlns(:\w+)?="[^"]*"|(?<=<g) id="[^"]*"| height="[\d.]+pt"', "", drawn)
    # The page sets the size, and must know at which one text has the size that was asked for.
    drawn = re.sub(r' width="([\d.]+pt)"', r' style="--natural-width: \1"', drawn, count=1)
    for color, variable in PAGE_COLORS.items():
        drawn = drawn.replace(color, variable)
    return Markup(drawn.replace("<svg", '<svg role="img"', 1))


def svg_file(figure: Figure) -> str:
    """The figure as a file of its own, on white, since no page gives it colours."""
    return _saved(figure, transparent=False)


def _saved(figure: Figure, *, transparent: bool) -> str:
    """As matplotlib writes it: text stays text, and the same figure the same bytes."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stir-train"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=transparent, metadata=nothing)
    return stream.getvalue()
