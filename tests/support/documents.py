"""Fenced blocks of the README and the documentation, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "log"),
]
"""The log is left out: its commands belong to the commits of their day."""

SHELL = ("sh", "console")
PLACEHOLDERS = {
    "CONFIG.yaml": "configs/demo.yaml",
    "SITE.yaml": "slurm/sites/gpu8.yaml",
    "RUN": "runs/demo",
    "SECTION": "steering",
    "VERB": "run",
}
_FENCE = re.compile(r"^ *```(?P<language>[\w-]*)")
_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: File, relative to the repository.
        line: Number of its first line, from 1.
        language: What stands after the fence; may be empty.
        text: Its lines.
        not_run: Why no test executes it; empty if one does.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str


@dataclass(frozen=True)
class Command:
    """One command of a shell block, with placeholders filled in.

    Attributes:
        block: Where it stands.
        words: Program and arguments, without redirections.
    """

    block: Block
    words: tuple[str, ...]

    @property
    def stir_train(self) -> tuple[str, ...] | None:
        """Arguments of ``stir-train``, also behind a launcher; None for other programs."""
        if "stir-train" not in self.words:
            return None
        return self.words[self.words.index("stir-train") + 1 :]

    def __str__(self) -> str:
        return f"{self.block.page}:{self.block.line} {' '.join(self.words)}"


def read_blocks() -> Iterator[Block]:
    """Every fenced block of every page."""
    for page in PAGES:
        if page.exists():
            yield from _blocks_of(page)


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a shell block; of a console block, what follows the prompt."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ")
        for part in re.split(r" && | \| ", line):
            words = shlex.split(part, comments=True)
            end = next((i for i, word in enumerate(words) if word in (">", "2>")), len(words))
            words = [PLACEHOLDERS.get(word, word) for word in words[:end]]
            if words:
                yield Command(block, tuple(words))


def _blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    opened, language, not_run, above = -1, "", "", ""
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence is None:
            above = line.strip() or above
            continue
        if opened < 0:
            marker = _NOT_RUN.search(above)
            opened, language = number, fence["language"]
            not_run = marker["reason"] if marker else ""
            continue
        text = "\n".join(lines[opened + 1 : number])
        yield Block(str(page.relative_to(ROOT)), opened + 2, language, text, not_run)
        opened, above = -1, ""
