"""The card of a published run: how it is used, what it was measured to do, what it may be used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stir_train.config.pretrained import EMBEDDED_PREFIX
from stir_train.export.card import card_environment
from stir_train.types.results import MethodMetrics

TEMPLATE = """\
---
{% if card.hub_id %}base_model: {{ card.hub_id }}
{% endif %}{% if card.licence %}license: {{ card.licence }}
{% endif %}library_name: stir-train
tags: [stir{% if card.has_student %}, lora{% endif %}]
---
# {{ card.name }}

{% if card.mode == "none" -%}
The run abstained from steering: on its tune split no controller was clearly better than greedy decoding.
{%- else -%}
A controller (mode `{{ card.mode }}`) that steers the latent trajectory of `{{ card.base_model }}` while it decodes.
{%- endif %}
{%- if card.has_student %}
Beside it lies a LoRA adapter, the student, which was taught by {{ "the base's own" if card.plain_student else "its steered" }} answers
and needs no controller.
{%- endif %}

## Use it

It takes the package stir-train, which is installed from a clone of its repository (`pip install .`).

```python
{% if card.is_attachable %}import torch
{% endif %}from transformers import AutoModelForCausalLM, AutoTokenizer
from stir_train.steering.attach import steering
from stir_train.steering.loaded import load_run

run = load_run("{{ card.source }}")
{% if card.commit %}commit = "{{ card.commit }}"  # of the base that was steered; another is refused
{% endif %}base = {{ base }}
tokenizer = AutoTokenizer.from_pretrained(base{{ pinned }})
model = AutoModelForCausalLM.from_pretrained(base{{ pinned }})
{% if card.is_attachable %}prompt = torch.tensor(run.prompt_ids(["QUESTION"], tokenizer))
with steering(model, tokenizer, run):
    output = model.generate(prompt, max_new_tokens={{ card.max_new_tokens }}, do_sample=False)
print(tokenizer.decode(output[0, prompt.shape[1]:], skip_special_tokens=True))
{% endif %}```
{% if not card.is_attachable %}
This controller decides after previews, which plain `generate` cannot make; `steering(..., settings=...)` takes another that reads
the same files.
{% endif %}
{%- if card.has_student %}
The student alone: `PeftModel.from_pretrained(model, "{{ card.source }}")`, on a model that nothing steers.
{% endif %}
Files are checked against the checksums in `steering.json`, and the model against the one that was steered. Prompts must be rendered as
the run's were, which `prompt_ids` does.

## Held-out results
{% if card.methods %}
{{ card.num_items }} problems of `{{ card.task }}` that no setting was chosen on, greedy decoding; 95 % paired bootstrap intervals
against the base.

{% include "results" %}
`greedy` is the base{% if card.mode != "none" %}, `stir` the steered base{% endif %}{% if card.has_student %}, `lora-student` the student{% endif %}.
{% if card.test_openings > 1 %}
The test split was opened for {{ card.test_openings }} choices; the intervals are honest for the first alone.
{% endif -%}
{% else %}
None: the run was not evaluated when this was published.
{% endif %}
## Limits and licence

{% include "limits" %}
{% if card.licence %}
Licence: `{{ card.licence }}`; the base's own licence holds for the base, and for what its licence says of derived models.
{% else %}
No licence was named by who published this; ask them before you use it.
{% endif %}
## What it was made from

{% include "lineage" %}
"""


@dataclass(frozen=True)
class RunCard:
    """What the card says.

    Attributes:
        name: Of the run.
        source: What `load_run` is given: the repository, or ``PATH`` for a folder that may lie anywhere.
        base_model: Hub id or name of the base, never a path.
        hub_id: The same as a hub knows it; empty for one that is on no hub.
        commit: Of the base on the hub; empty where it is not known.
        licence: As hubs abbreviate it; empty if none was named.
        task: Its name.
        mode: Of the controller.
        is_attachable: Whether plain ``generate`` can be steered by it.
        has_student, plain_student: Whether there is an adapter, and whether plain answers taught it.
        max_new_tokens: The budget that was measured with.
        lineage: Stage name to fingerprint.
        methods: Rows of the results; empty if there are none.
        num_items, test_openings: Of the evaluation.
    """

    name: str
    source: str
    base_model: str
    hub_id: str
    commit: str
    licence: str
    task: str
    mode: str
    is_attachable: bool
    has_student: bool
    plain_student: bool
    max_new_tokens: int
    lineage: Mapping[str, str]
    methods: Sequence[MethodMetrics] = ()
    num_items: int = 0
    test_openings: int = 1

    @property
    def is_findable(self) -> bool:
        """Whether ``from_pretrained`` finds the base by its name alone."""
        return bool(self.hub_id) or self.base_model.startswith(EMBEDDED_PREFIX)


def render_run_card(card: RunCard) -> str:
    """The card as Markdown."""
    return (
        card_environment()
        .from_string(TEMPLATE)
        .render(
            card=card,
            base="run.base_model" if card.is_findable else f'"PATH/TO/{card.base_model}"',
            pinned=", revision=commit" if card.commit else "",
        )
    )
