"""The contrasts of a finished harvest, read by block and by kind.

A file ``candidates-00000.safetensors`` holds what one chunk of rollouts offered: small columns, and two
tensors ``Float[C D]`` a captured block, the mean states of the better and of the worse rollouts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tensors import TensorFile, save_tensors
from stir_train.errors import ArtifactError
from stir_train.types.steering import Candidates

_FILE = re.compile(r"candidates-(?P<number>\d{5})\.safetensors")


def candidates_file(number: int) -> str:
    """Name of the contrasts of one chunk of rollouts."""
    return f"candidates-{number:05d}.safetensors"


def _right(block: int) -> str:
    return f"mean_right.block_{block}"


def _wrong(block: int) -> str:
    return f"mean_wrong.block_{block}"


class StoredContrasts:
    """One file's contrasts: small columns in memory, states on disk.

    The file's checksum is verified when states are first read: of most files a rank needs the columns
    alone, and they are read without the states.

    Attributes:
        prompt_ids, points, quality, saves_tokens, blocks: As in `Candidates`.
        width: Of a state.
    """

    def __init__(self, stage: StageDir, name: str) -> None:
        self._stage, self._name = stage, name
        file = self._file = TensorFile(stage.path / name)
        self.prompt_ids: tuple[str, ...] = tuple(json.loads(file.metadata["prompt_ids"]))
        self.points: Int[Tensor, "C"] = file.tensor("points")
        self.quality: Float[Tensor, "C"] = file.tensor("quality")
        self.saves_tokens: Bool[Tensor, "C"] = file.tensor("saves_tokens")
        self.blocks: tuple[int, ...] = tuple(json.loads(file.metadata["blocks"]))
        self.width = int(file.metadata["width"])

    def __len__(self) -> int:
        """Number of contrasts."""
        return len(self.prompt_ids)

    def means(
        self, block: int, where: Shaped[Tensor, "N"] | None = None
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"]]:
        """Mean states of the better and of the worse rollouts, read now; see `Candidates.means`."""
        self._stage.verified(self._name)
        rows = torch.arange(len(self)) if where is None else where
        if rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        return self._file.rows(_right(block), rows), self._file.rows(_wrong(block), rows)


class JoinedContrasts:
    """The contrasts of several files as one.

    Attributes:
        prompt_ids, points, quality, saves_tokens, blocks, width: As in `StoredContrasts`.
    """

    def __init__(self, parts: Sequence[StoredContrasts]) -> None:
        self._parts = tuple(parts)
        self.prompt_ids: tuple[str, ...] = tuple(i for part in parts for i in part.prompt_ids)
        self.points: Int[Tensor, "C"] = torch.cat([part.points for part in parts])
        self.quality: Float[Tensor, "C"] = torch.cat([part.quality for part in parts])
        self.saves_tokens: Bool[Tensor, "C"] = torch.cat([part.saves_tokens for part in parts])
        self.blocks, self.width = parts[0].blocks, parts[0].width

    def __len__(self) -> int:
        """Number of contrasts."""
        return len(self.prompt_ids)

    def means(
        self, block: int, where: Shaped[Tensor, "N"] | None = None
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"]]:
        """Mean states of the better and of the worse rollouts, read now; see `Candidates.means`."""
        # Two tensors of their own: who needs one of them can let the other go.
        right, wrong = (torch.empty(len(self), self.width) for _ in range(2))
        start = 0
        for part in self._parts:
            right[start : start + len(part)], wrong[start : start + len(part)] = part.means(block)
            start += len(part)
        return (right, wrong) if where is None else (right[where], wrong[where])


class ContrastStore:
    """The contrasts of one harvest directory, finished or still being made."""

    def __init__(self, stage: StageDir) -> None:
        self.stage = stage

    def files(self) -> list[str]:
        """The files, by the number of their chunk.

        Raises:
            ArtifactError: If there is none, or a number is left out.
        """
        numbers = sorted(
            int(found["number"]) for n in self.stage.names() if (found := _FILE.fullmatch(n))
        )
        if not numbers or numbers != list(range(len(numbers))):
            missing = next(i for i in range(len(numbers) + 1) if i not in numbers)
            raise ArtifactError(
                f"{self.stage.path / candidates_file(missing)} is missing; run the "
                f"{self.stage.name} stage again, which makes what it lacks"
            )
        return [candidates_file(number) for number in numbers]

    def read(self) -> list[StoredContrasts]:
        """Every file's contrasts, their states left on disk."""
        return [StoredContrasts(self.stage, name) for name in self.files()]

    def head(self, at_least: int) -> JoinedContrasts:
        """The contrasts of the first files, until there are so many or all."""
        parts: list[StoredContrasts] = []
        for part in self.read():
            parts.append(part)
            if sum(map(len, parts)) >= at_least:
                break
        return JoinedContrasts(parts)


def save_contrasts(stage: StageDir, number: int, found: Candidates) -> None:
    """Write the contrasts of one chunk of rollouts."""
    tensors = {
        "points": found.points,
        "quality": found.quality,
        "saves_tokens": found.saves_tokens,
    }
    for layer, block in enumerate(found.blocks):
        tensors[_right(block)] = found.mean_right[:, layer]
        tensors[_wrong(block)] = found.mean_wrong[:, layer]
    save_tensors(
        stage,
        candidates_file(number),
        tensors,
        {
            "prompt_ids": json.dumps(found.prompt_ids),
            "blocks": json.dumps(found.blocks),
            "width": str(found.mean_right.shape[2]),
        },
    )
