"""The model card of an exported adapter: what it was made from, what it was measured to do, its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined

from stir_train.types.results import Interval, MethodMetrics

TEMPLATE = """\
---
base_model: {{ card.base_model }}
library_name: {{ "transformers" if card.merged else "peft" }}
tags: [stir, lora]
---
# {{ card.name }}

{{ "Merged weights" if card.merged else "A LoRA adapter" }} that distils a steered `{{ card.base_model }}`: the base, while steered at
control points, answered problems of `{{ card.task }}`; its right and short answers taught this student, which needs no
controller and costs a forward pass a token, as the base does.

## Held-out results
{% if card.methods %}
{{ card.num_items }} problems that no setting was chosen on, greedy decoding; 95 % paired bootstrap intervals against the base.

| method | accuracy | points gained | tokens | tokens, % |
|---|---:|---:|---:|---:|
{% for row in card.methods -%}
| {{ row.name }} | {{ percent(row.accuracy) }} | {{ change(row, row.delta_accuracy, row.delta_accuracy_ci95) }} | {{ "%.1f" | format(row.tokens_mean) }} | {{ change(row, row.delta_tokens_fraction, row.delta_tokens_ci95) }} |
{% endfor %}
`greedy` is the base, `stir` the steered base, `lora-student` this.
{% if card.test_openings > 1 %}
The test split was opened for {{ card.test_openings }} choices; the intervals are honest for the first alone.
{% endif -%}
{% else %}
None: the run was not evaluated when this was exported.
{% endif %}
## Limits

Measured on `{{ card.task }}` only. Other tasks, other prompt formats and sampling were not; check them before you rely on this.

## What it was made from

Objective: {{ card.objective }}. Trained on {{ card.num_samples }} completions, {{ card.num_tokens }} tokens. Fingerprints of the stages:

{% for stage, sha256 in card.lineage.items() -%}
- {{ stage }}: `{{ sha256[:16] }}`
{% endfor %}
"""


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        name: Of the run.
        base_model: Hub id or name of the base.
        task: Its name.
        merged: Whether this is a whole model.
        objective: What the student learnt from, in words.
        num_samples, num_tokens: What it was trained on.
        lineage: Stage name to fingerprint.
        methods: Rows of the results; empty if there are none.
        num_items, test_openings: Of the evaluation.
    """

    name: str
    base_model: str
    task: str
    merged: bool
    objective: str
    num_samples: int
    num_tokens: int
    lineage: Mapping[str, str]
    methods: Sequence[MethodMetrics] = ()
    num_items: int = 0
    test_openings: int = 1


def render_card(card: Card) -> str:
    """The card as Markdown."""
    environment = Environment(  # Markdown, of our own figures
        undefined=StrictUndefined, trim_blocks=False, keep_trailing_newline=True
    )
    return environment.from_string(TEMPLATE).render(card=card, percent=_percent, change=_change)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _change(row: MethodMetrics, value: float, interval: Interval) -> str:
    if row.name == "greedy":
        return ""
    low, high = interval
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
