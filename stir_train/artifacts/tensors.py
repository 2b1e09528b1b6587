"""Tensors in safetensors files, with their metadata; non-finite values are refused.

`load_tensors` reads a file; `TensorFile` reads rows of it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stir_train.artifacts.run_dir import StageDir
from stir_train.errors import ArtifactError

METADATA_KEY = "stir_train"
_DTYPES = {"F32": torch.float32, "I64": torch.int64, "BOOL": torch.bool}
_LENGTH_BYTES, _MOST_HEADER_BYTES = 8, 100_000_000
"""A safetensors file begins with the length of its JSON header, little-endian; the format bounds it."""


def save_tensors(
    stage: StageDir, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors and string metadata as one of a stage's files.

    Raises:
        ArtifactError: If a tensor holds NaN or infinity; the message names it.
    """
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ArtifactError(
                f"{stage.path / name}: {bad} of {tensor.numel()} values of {key!r} are not finite; "
                "the model or its dtype overflows (try model.dtype=float32)"
            )
    # One metadata key: safetensors writes several in an order that changes from run to run.
    packed = {METADATA_KEY: json.dumps(dict(metadata), sort_keys=True)}
    with stage.writing(name) as path:
        write_safetensors({k: v.contiguous() for k, v in tensors.items()}, path, packed)


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file.

    Raises:
        OSError: If the system will not, as on a full disk; safetensors has an error of its own for that.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        number = re.search(r"os error ([0-9]+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata.

    Raises:
        ArtifactError: If the file is truncated or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            packed = (file.metadata() or {}).get(METADATA_KEY, "{}")
            return tensors, dict(json.loads(packed))
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read as safetensors: {error}") from error


class TensorFile:
    """Rows of the tensors of one safetensors file, read when asked for.

    Reads are positional, not through a mapping of the file: pages of a mapping count as memory of
    the process, and go on counting after they were read.

    Attributes:
        path: The file.
        metadata: As `save_tensors` was given it.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            ArtifactError: If the file is truncated, not safetensors, or of another dtype.
        """
        self.path = path
        try:
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
                header = json.loads(stream.read(min(length, _MOST_HEADER_BYTES)))
                metadata = header.pop("__metadata__", {})
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise ArtifactError(f"{path} cannot be read as safetensors: {error}") from error
        self.metadata: dict[str, str] = dict(json.loads(metadata.get(METADATA_KEY, "{}")))
        self._entries: dict[str, Any] = header
        self._data = _LENGTH_BYTES + length

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return sorted(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape.

        Raises:
            ArtifactError: If the file holds no such tensor.
        """
        return tuple(self._entry(name)["shape"])

    def tensor(self, name: str) -> Tensor:
        """All rows of a tensor, copied into memory.

        Raises:
            ArtifactError: If the file holds no such tensor, or ends before its rows do.
        """
        return self.rows(name, torch.arange(self.shape(name)[0]))

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Some rows of a tensor, in the order asked for.

        Args:
            name: Of a float32, int64 or bool tensor with at least one dimension.
            index: ``Int[R]``, rows from 0; neighbours are read together.

        Raises:
            ArtifactError: If the file ends before the rows do.
        """
        entry = self._entry(name)
        dtype, (num_rows, *inner) = _DTYPES[entry["dtype"]], entry["shape"]
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < num_rows:
            raise IndexError(f"{self.path}: {name!r} has {num_rows} rows")
        start = self._data + entry["data_offsets"][0]
        found = read_rows(self.path, start, math.prod(inner), dtype, index)
        return found.reshape(len(index), *inner)

    def _entry(self, name: str) -> Any:
        if name not in self._entries:
            raise ArtifactError(
                f"{self.path}: no tensor {name!r}; it holds {', '.join(self.names)}"
            )
        entry = self._entries[name]
        if entry["dtype"] not in _DTYPES:
            raise ArtifactError(
                f"{self.path}: {name!r} is {entry['dtype']}; expected one of {', '.join(_DTYPES)}"
            )
        return entry


def read_rows(
    path: Path,
    start: int,
    num_columns: int,
    dtype: torch.dtype,
    index: Tensor,
    *,
    columns: slice | None = None,
) -> Tensor:
    """Rows of a matrix that lies row after row in a file, as ``[R, C]``.

    Args:
        path: The file.
        start: Where in it the matrix begins, in bytes.
        num_columns: Of the matrix.
        dtype: Of its numbers.
        index: ``Int[R]``, rows in any order; whole ones that lie side by side are read at once.
        columns: The ``C`` neighbouring columns that are read; None reads all.

    Raises:
        ArtifactError: If the file ends before the rows do.
    """
    first_column, last_column, _ = (columns or slice(None)).indices(num_columns)
    width = last_column - first_column
    order = index.argsort(stable=True)
    rows = index[order]
    found = torch.empty(len(rows), width, dtype=dtype)
    if not found.numel():
        return found
    row_bytes, read_bytes = (found.element_size() * count for count in (num_columns, width))
    ends = torch.ones(len(rows), dtype=torch.bool)
    if width == num_columns:
        ends[:-1] = rows[1:] != rows[:-1] + 1
    lasts = (ends.nonzero()[:, 0] + 1).tolist()
    buffer = found.view(torch.uint8).numpy().data.cast("B")  # the tensor's own memory
    with path.open("rb", buffering=0) as stream:
        for first, last in zip([0, *lasts], lasts, strict=False):
            position = start + int(rows[first]) * row_bytes + first_column * found.element_size()
            _read_into(stream, buffer[first * read_bytes : last * read_bytes], position)
    if bool((order[1:] > order[:-1]).all()):
        return found
    return torch.empty_like(found).index_copy_(0, order, found)


def _read_into(stream: FileIO, target: memoryview, position: int) -> None:
    while len(target):
        count = os.preadv(stream.fileno(), [target], position)
        if count == 0:
            raise ArtifactError(f"{stream.name} is truncated; remake its stage with --redo")
        target, position = target[count:], position + count
