"""The card of an exported adapter or vector: what it was made from, what it was measured to do, its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import DictLoader, Environment, StrictUndefined

from stir_train.config.inputs import ModelConfig
from stir_train.config.pretrained import EMBEDDED_PREFIX
from stir_train.models.public_name import public_name
from stir_train.types.results import Interval, MethodMetrics

PARTS = {
    "results": """\
| method | accuracy | points gained | tokens | tokens, % |
|---|---:|---:|---:|---:|
{% for row in card.methods -%}
| {{ row.name }} | {{ percent(row.accuracy) }} | {{ change(row, row.delta_accuracy, row.delta_accuracy_ci95) }} | {{ "%.1f" | format(row.tokens_mean) }} | {{ change(row, row.delta_tokens_fraction, row.delta_tokens_ci95) }} |
{% endfor %}""",
    "limits": """\
Measured on `{{ card.task }}` only. Other tasks, other prompt formats and sampling were not; check them before you rely on this.""",
    "lineage": """\
{% for stage, sha256 in card.lineage.items() -%}
- {{ stage }}: `{{ sha256[:16] }}`
{% endfor %}""",
}
"""What every card says alike, to be included by name."""

TEMPLATE = """\
---
{% if card.hub_id %}base_model: {{ card.hub_id }}
{% endif %}library_name: {{ "transformers" if card.merged else "peft" }}
tags: [stir, lora]
---
# {{ card.name }}

{% if card.abstains -%}
The run abstained from steering: on its tune split no controller was clearly better than greedy decoding. {% endif -%}
{{ "Merged weights" if card.merged else "A LoRA adapter" }} for `{{ card.base_model }}`
{%- if card.samples == "steered" %} that distils its steered answers: the base, while steered at control points, answered problems of
`{{ card.task }}`; its right and short answers taught this student, which needs no controller and costs a forward pass a token, as
the base does.
{%- elif card.samples == "compared" %}, taught by a policy gradient over the base's own answers to problems of `{{ card.task }}`, right
and wrong ones; nothing was steered.
{%- else %}, taught by the base's own right and short answers to problems of `{{ card.task }}` (rejection sampling); nothing was
steered.
{%- endif %}

## Held-out results
{% if card.methods %}
{{ card.num_items }} problems that no setting was chosen on, greedy decoding; 95 % paired bootstrap intervals against the base.

{% include "results" %}
`greedy` is the base, {% if not card.abstains %}`stir` the steered base, {% endif %}`lora-student` this.
{% if card.test_openings > 1 %}
The test split was opened for {{ card.test_openings }} choices; the intervals are honest for the first alone.
{% endif -%}
{% else %}
None: the run was not evaluated when this was exported.
{% endif %}
## Limits

{% include "limits" %}

## What it was made from

Objective: {{ card.objective }}. Trained on {{ card.num_samples }} completions, {{ card.num_tokens }} tokens. Fingerprints of the stages:

{% include "lineage" %}
"""


VECTOR_TEMPLATE = """\
---
{% if card.hub_id %}base_model: {{ card.hub_id }}
{% endif %}tags: [stir, control-vector]
---
# {{ card.name }}

One constant vector for `{{ card.base_model }}`, to be added after block {{ card.block }} at every token, the prompt's too, with
coefficient 1. {{ card.measured }}

Made from the stages:

{% include "lineage" %}
"""


@dataclass(frozen=True)
class VectorCard:
    """What the card of an exported vector says.

    Attributes:
        name: Of the run.
        base_model: Hub id or name of the base, never a path.
        hub_id: The same as a hub knows it; empty for one that is on no hub.
        task: Its name.
        block: After which it is added.
        num_items: Of the evaluation.
        row, greedy: What was measured of exactly this vector, and of greedy decoding.
        lineage: Stage name to fingerprint.
    """

    name: str
    base_model: str
    hub_id: str
    task: str
    block: int
    num_items: int
    row: MethodMetrics
    greedy: MethodMetrics
    lineage: Mapping[str, str]

    @property
    def measured(self) -> str:
        """The measured row in a sentence."""
        points = _change(self.row, self.row.delta_accuracy, self.row.delta_accuracy_ci95)
        tokens = _change(self.row, self.row.delta_tokens_fraction, self.row.delta_tokens_ci95)
        return (
            f"Measured so on {self.num_items} held-out problems of {self.task}, greedy decoding: accuracy "
            f"{_percent(self.row.accuracy)} % against {_percent(self.greedy.accuracy)} % without it "
            f"({points} points), {self.row.tokens_mean:.1f} tokens ({tokens} %)."
        )


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        name: Of the run.
        base_model: Hub id or name of the base, never a path.
        hub_id: The same as a hub knows it; empty for one that is on no hub.
        task: Its name.
        samples: Whose completions taught it: ``steered`` or ``plain`` ones.
        abstains: Whether the run chose not to steer.
        merged: Whether this is a whole model.
        objective: What the student learned from, in words.
        num_samples, num_tokens: What it was trained on.
        lineage: Stage name to fingerprint.
        methods: Rows of the results; empty if there are none.
        num_items, test_openings: Of the evaluation.
    """

    name: str
    base_model: str
    hub_id: str
    task: str
    samples: str
    abstains: bool
    merged: bool
    objective: str
    num_samples: int
    num_tokens: int
    lineage: Mapping[str, str]
    methods: Sequence[MethodMetrics] = ()
    num_items: int = 0
    test_openings: int = 1


def hub_id(config: ModelConfig) -> str:
    """The model's name on a hub, where it is known; empty for an embedded model and for a nameless directory."""
    name = public_name(config.name)
    is_owned = "/" in name and not name.startswith(EMBEDDED_PREFIX)
    return name if is_owned else ""


def render_card(card: Card) -> str:
    """The card as Markdown."""
    return card_environment().from_string(TEMPLATE).render(card=card)


def render_vector_card(card: VectorCard) -> str:
    """The card of a vector as Markdown."""
    return card_environment().from_string(VECTOR_TEMPLATE).render(card=card)


def card_environment() -> Environment:
    """For Markdown of our own figures, with the parts and the formats that cards share."""
    environment = Environment(
        loader=DictLoader(PARTS), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.globals |= {"percent": _percent, "change": _change}
    return environment


def _percent(value: float) -> str:
    """A fraction in per cent, one decimal."""
    return f"{100 * value:.1f}"


def _change(row: MethodMetrics, value: float, interval: Interval) -> str:
    """A difference from greedy decoding in per cent with its interval; empty for greedy decoding itself."""
    if row.name == "greedy":
        return ""
    low, high = interval
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
