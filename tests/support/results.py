"""Rows and results with figures that a test does not care about."""

from __future__ import annotations

import dataclasses
from typing import Any

from stir_train.stores.results import RESULTS_SCHEMA
from stir_train.types.results import MethodMetrics, MethodRow, Results

BASE = MethodMetrics(
    name="",
    accuracy=0.5,
    accuracy_ci95=(0.4, 0.6),
    tokens_mean=70.0,
    committed_tokens_mean=70.0,
    extra_tokens_mean=0.0,
    forward_passes_mean=70.0,
    truncated_rate=0.0,
    no_marker_rate=0.0,
    no_answer_rate=0.0,
    checker_failure_rate=0.0,
    intervention_rate=0.0,
    utility=0.2,
    delta_accuracy=0.1,
    delta_accuracy_ci95=(0.05, 0.15),
    delta_tokens_fraction=-0.2,
    delta_tokens_ci95=(-0.3, -0.1),
    delta_utility=0.1,
    delta_utility_ci95=(0.0, 0.2),
    mcnemar_p=0.5,
    wins=3,
    losses=1,
)


def metrics(name: str, **changes: Any) -> MethodMetrics:
    """A row's figures, some of them changed."""
    return dataclasses.replace(BASE, name=name, **changes)


def results(*names: str, rows: tuple[MethodRow, ...] = (), **changes: Any) -> Results:
    """Results of methods of these names, then of ``rows``."""
    plain = Results(
        schema=RESULTS_SCHEMA,
        model="<tiny>",
        model_sha256="ff",
        task="sums",
        split="test",
        num_items=20,
        items_sha256="aa",
        seeds=(0,),
        test_openings=1,
        methods=(*(MethodRow(metrics(name), f"{name}-label", "tune") for name in names), *rows),
    )
    return dataclasses.replace(plain, **changes)
