"""Write a configuration with a comment above every setting that says why it is as it is."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

COMMENT_WIDTH = 96


@dataclass(frozen=True)
class Decision:
    """A setting that was decided for the user.

    Attributes:
        key: Dotted, a section and a setting, or a setting at the root.
        value: JSON-ready.
        reason: Why, in a sentence or two.
    """

    key: str
    value: object
    reason: str

    @property
    def written(self) -> str:
        """The value as YAML, on one line."""
        text = yaml.safe_dump([self.value], default_flow_style=True, width=10**6).strip()[1:-1]
        # YAML's plain quotes hold a line break by an empty line; JSON's, which YAML reads too, by \n.
        return json.dumps(self.value, ensure_ascii=False) if "\n" in text else text


def commented_yaml(title: str, decisions: Sequence[Decision]) -> str:
    """A configuration file of the decisions, sections in the order in which they first come up."""
    lines = textwrap.wrap(title, COMMENT_WIDTH, initial_indent="# ", subsequent_indent="# ")
    sections: dict[str, list[Decision]] = {}
    for decision in decisions:
        section, _, setting = decision.key.rpartition(".")
        sections.setdefault(section or setting, []).append(decision)
    for section, held in sections.items():
        is_section = "." in held[0].key
        if is_section:
            lines += ["", f"{section}:"]
        indent = "  " if is_section else ""
        for decision in held:
            comment = f"{indent}# "
            lines += textwrap.wrap(
                decision.reason, COMMENT_WIDTH, initial_indent=comment, subsequent_indent=comment
            )
            lines.append(f"{indent}{decision.key.rpartition('.')[2]}: {decision.written}")
    return "\n".join(lines) + "\n"
