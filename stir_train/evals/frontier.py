"""Accuracy against tokens, with what no other method dominates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter
from matplotlib.transforms import Bbox, BboxBase

from stir_train.evals.plots import GRID, INK, SOFT, in_style, new_figure, svg, svg_file
from stir_train.types.results import MethodMetrics

Row = MethodMetrics


class Kind(NamedTuple):
    """A kind of method: what its names start with, and how it is drawn."""

    prefix: str
    label: str
    color: str
    marker: str


VARIANTS = Kind("variant", "one thing changed", SOFT, "s")
KINDS: tuple[Kind, ...] = (
    Kind("greedy", "greedy", INK, "D"),
    Kind("stir", "STIR", "#2563eb", "o"),
    Kind("lora", "students", "#059669", "o"),
    Kind("control", "controls", "#dc2626", "v"),
    VARIANTS,
    Kind("", "other methods", "#d97706", "^"),
)
"""The first that fits; the last takes the rest."""
TOKENS_LABEL = "generated tokens per problem, previews and votes included (log scale)"
ACCURACY_LABEL = "accuracy (%)"
# Where a label may stand: offset in points, horizontal and vertical alignment.
PLACES = (
    ((7, 0), "left", "center"),
    ((-7, 0), "right", "center"),
    ((0, 9), "center", "bottom"),
    ((0, -9), "center", "top"),
    ((-6, 6), "right", "bottom"),
    ((6, -6), "left", "top"),
    ((6, 6), "left", "bottom"),
    ((-6, -6), "right", "top"),
)


def frontier(methods: Sequence[Row]) -> Markup:
    """Accuracy against tokens per problem with 95 % intervals, as an inline SVG.

    The line joins the methods that no other equals at less, changed choices left out; they and
    greedy decoding are named first, and others where there is room.
    """
    figure, axes = new_figure(7.2, 4.6)
    _draw_all(axes, methods)
    axes.set_xlabel(TOKENS_LABEL)
    axes.set_ylabel(ACCURACY_LABEL)
    _add_legend(figure, [axes])
    _name_all(figure, {axes: methods})
    return svg(figure)


def frontiers(methods: Mapping[str, Sequence[Row]]) -> str:
    """The same of several runs, a panel each, as the text of an SVG file.

    Args:
        methods: By the run's name.
    """
    num_columns = min(2, len(methods))
    num_rows = -(-len(methods) // num_columns)
    figure = Figure(figsize=(6.4 * num_columns, 4.6 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten().tolist()
    for empty in panels[len(methods) :]:
        empty.remove()
    drawn = dict(zip(panels, methods.values(), strict=False))
    for (axes, rows), name in zip(drawn.items(), methods, strict=True):
        in_style(axes)
        _draw_all(axes, rows)
        axes.set_title(name, fontsize=10)
    figure.supxlabel(TOKENS_LABEL, fontsize=9)
    figure.supylabel(ACCURACY_LABEL, fontsize=9)
    _add_legend(figure, list(drawn))
    _name_all(figure, drawn)
    return svg_file(figure)


def _draw_all(axes: Axes, methods: Sequence[Row]) -> None:
    """Draw the points and the line of one run."""
    kinds = {row.name: _kind(row.name) for row in methods}
    for order, kind in enumerate(reversed(KINDS), start=2):  # ours on top
        members = [row for row in methods if kinds[row.name] == kind]
        if members:
            _draw(axes, members, kind, order)
    best = _on_the_line(methods)
    axes.step(
        [row.tokens_mean for row in best],
        [100 * row.accuracy for row in best],
        where="post",
        color="#2563eb",
        linewidth=1,
        alpha=0.5,
        zorder=1,
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.08)
    axes.grid(color=GRID)


def _add_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend above everything, of the kinds that occur in some panel."""
    found = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    labels = [kind.label for kind in KINDS if kind.label in found]
    figure.legend(
        [found[label] for label in labels],
        labels,
        fontsize=8,
        loc="outside upper center",
        ncols=6,
        frameon=False,
    )


def _name_all(figure: Figure, panels: Mapping[Axes, Sequence[Row]]) -> None:
    """Name points once everything else stands where it will stand."""
    figure.draw_without_rendering()
    for axes, methods in panels.items():
        first = [row for row in methods if row.name in ("greedy", "stir")]
        best = _on_the_line(methods)
        lines = [*_along_steps(axes, best), *_along_intervals(axes, methods)]
        _name(axes, [*first, *best, *methods], lines=lines)


def _on_the_line(methods: Sequence[Row]) -> list[Row]:
    return undominated([row for row in methods if _kind(row.name) != VARIANTS])


def undominated(methods: Sequence[Row]) -> list[Row]:
    """The methods than which none is as accurate at fewer tokens or more accurate at as many.

    In order of tokens; of equals the first.
    """
    kept: list[Row] = []
    for row in sorted(methods, key=lambda row: (row.tokens_mean, -row.accuracy)):
        if not kept or row.accuracy > kept[-1].accuracy:
            kept.append(row)
    return kept


def _along_steps(axes: Axes, rows: Sequence[Row]) -> list[Bbox]:
    """Thin boxes around the line that steps from point to point, first right, then up."""
    if not rows:
        return []
    points = axes.transData.transform([(row.tokens_mean, 100 * row.accuracy) for row in rows])
    boxes = []
    for (x, y), (next_x, next_y) in pairwise(points):
        boxes.append(Bbox.from_extents(x, y - 1, next_x, y + 1))
        boxes.append(Bbox.from_extents(next_x - 1, y, next_x + 1, next_y))
    return boxes


def _along_intervals(axes: Axes, rows: Sequence[Row]) -> list[Bbox]:
    """Thin boxes around the intervals of accuracy."""
    boxes = []
    for row in rows:
        ends = [(row.tokens_mean, 100 * end) for end in row.accuracy_ci95]
        (x, low), (_, high) = axes.transData.transform(ends)
        boxes.append(Bbox.from_extents(x - 2, low - 1, x + 2, high + 1))
    return boxes


def _kind(name: str) -> Kind:
    return next(kind for kind in KINDS if name.startswith(kind.prefix))


def _draw(axes: Axes, rows: Sequence[Row], kind: Kind, order: int) -> None:
    low, high = zip(*(row.accuracy_ci95 for row in rows), strict=True)
    accuracies = [row.accuracy for row in rows]
    axes.errorbar(
        [row.tokens_mean for row in rows],
        [100 * a for a in accuracies],
        yerr=[
            [100 * (a - bound) for a, bound in zip(accuracies, low, strict=True)],
            [100 * (bound - a) for a, bound in zip(accuracies, high, strict=True)],
        ],
        fmt=kind.marker,
        markersize=5,
        color=kind.color,
        elinewidth=0.8,
        capsize=2,
        label=kind.label,
        zorder=order,
    )


def _is_inside(box: Bbox, outer: BboxBase) -> bool:
    return all(outer.contains(x, y) for x, y in box.corners())


def _name(axes: Axes, rows: Sequence[Row], *, lines: Sequence[Bbox]) -> None:
    """Name points in this order, each once, where its label covers no other, no point and no line."""
    places = {row.name: (row.tokens_mean, 100 * row.accuracy) for row in rows}
    points = axes.transData.transform(list(places.values()))
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in points]
    taken += lines
    named: set[tuple[float, float]] = set()
    for name, place in places.items():
        if place in named:
            continue  # the label of an equal stands there
        for offset, horizontal, vertical in PLACES:
            label = axes.annotate(
                name,
                place,
                offset,
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=8,
            )
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken) and _is_inside(box, axes.bbox):
                taken.append(box)
                named.add(place)
                break
            label.remove()
