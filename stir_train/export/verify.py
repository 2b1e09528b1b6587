"""Prove in a fresh process that an exported adapter loads strictly and does what was trained."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from stir_train.errors import VerificationError
from stir_train.models.lora_targets import SERVED_KEY, UNSERVED
from stir_train.stores.adapters import ADAPTER_FILES

SCRIPT = Path(__file__).with_name("fresh_check.py")
TIMEOUT_SECONDS = 600
MERGED_FACTOR = 10
"""Folding B A into the weights rounds every weight, and its sums run in another order."""
EFFECT_FLOOR = 1e-3
"""Smallest change of any probe logit that counts as doing something."""


@dataclass(frozen=True)
class VerificationResult:
    """What the fresh process measured.

    Attributes:
        num_tensors: Tensors in the adapter.
        effect: Largest change of a probe logit that the adapter makes.
        difference: Largest difference from the trainer's logits.
    """

    num_tensors: int
    effect: float
    difference: float


def verify_adapter(
    base_path: str,
    adapter: Path,
    probes: Path,
    *,
    tolerance: float,
    gguf_file: str | None = None,
) -> VerificationResult:
    """Check the files and config here, then load and compare in a fresh interpreter.

    Args:
        base_path: The base's directory or hub id.
        adapter: The adapter's directory.
        probes: What the trainer recorded.
        tolerance: Largest difference of a logit.
        gguf_file: The file of the base's directory that is its weights, if it is a GGUF.

    Raises:
        VerificationError: Saying what is wrong with the adapter.
    """
    _check_files(adapter)
    _check_config(adapter / ADAPTER_FILES[0])
    _check_keys(adapter / ADAPTER_FILES[1])
    command = [sys.executable, "-I", str(SCRIPT), base_path, str(adapter), str(probes)]
    completed = subprocess.run(
        [*command, *([gguf_file] if gguf_file else [])],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if completed.returncode != 0:
        last = completed.stderr.strip().splitlines()[-1:] or ["no message"]
        raise VerificationError(f"{adapter}: a fresh process cannot load it: {last[0]}")
    found = json.loads(completed.stdout)
    problems = _problems_of(found, tolerance)
    if problems:
        raise VerificationError(f"{adapter} does not verify:\n  - " + "\n  - ".join(problems))
    return VerificationResult(found["num_tensors"], found["effect"], found["adapted_difference"])


def _problems_of(found: dict[str, Any], tolerance: float) -> list[str]:
    """What is wrong, judged by what the fresh process reports."""
    problems = [
        f"{key}: {found[key]}" for key in ("missing", "unexpected", "empty", "shapes") if found[key]
    ]
    if len(found["zero_b"]) == found["num_tensors"] // 2:
        problems.append("every lora_B is zero: the adapter does nothing")
    if found["base_difference"] > tolerance:
        problems.append(
            f"the base model's logits differ by {found['base_difference']:.2e} from those recorded "
            f"(tolerance {tolerance:.0e}): another base?"
        )
    if found["adapted_difference"] > tolerance:
        problems.append(
            f"the adapter's logits differ by {found['adapted_difference']:.2e} from the trainer's "
            f"(tolerance {tolerance:.0e})"
        )
    # Two logits may each be off by the tolerance.
    if found["greedy_gap"] > 2 * tolerance:
        problems.append(
            f"greedy decoding differs: a token of the trainer's continuation is {found['greedy_gap']:.2e} "
            "below the likeliest"
        )
    if found["merged_difference"] > MERGED_FACTOR * tolerance:
        problems.append(
            f"merged into the base, logits differ by {found['merged_difference']:.2e} from the adapter's "
            f"(tolerance {MERGED_FACTOR * tolerance:.0e})"
        )
    if found["effect"] < EFFECT_FLOOR:
        problems.append(f"no logit changes by more than {found['effect']:.2e}: it does nothing")
    return problems


def _check_files(adapter: Path) -> None:
    present = {file.name for file in adapter.iterdir()} if adapter.is_dir() else set()
    missing = [name for name in ADAPTER_FILES if name not in present]
    if missing:
        raise VerificationError(f"{adapter}: missing {', '.join(missing)}")
    extra = sorted(name for name in present - set(ADAPTER_FILES) if name.startswith("adapter_"))
    if extra:
        raise VerificationError(f"{adapter}: stale extra file {', '.join(extra)}; remove it")


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VerificationError(f"{path} is not JSON: {error}") from error
    for key in ("r", "lora_alpha"):
        if not config.get(key, 0) > 0:
            raise VerificationError(f"{path}: {key} is {config.get(key)!r}; it must be above 0")
    if config.get("bias") != "none" or config.get("modules_to_save"):
        raise VerificationError(f"{path}: servers load only bias='none' and no modules_to_save")
    for key in UNSERVED:
        if config.get(key):
            raise VerificationError(f"{path}: {key} is set, which servers such as vLLM do not load")


def _check_keys(path: Path) -> None:
    """Names that servers find a module by: linear layers inside the blocks, A and B of each."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    odd = [name for name in names if not SERVED_KEY.fullmatch(name)]
    if odd:
        raise VerificationError(
            f"{path}: unexpected tensor {odd[0]!r} ({len(odd)} in all): servers load A and B of linear "
            "layers, as base_model.model.NAME.lora_A.weight, and neither embeddings nor the output head"
        )
    stems = [name.rpartition(".lora_")[0] for name in names]
    alone = sorted(stem for stem in set(stems) if stems.count(stem) != 2)
    if alone:
        raise VerificationError(f"{path}: missing tensor: {alone[0]} has only one of A and B")
