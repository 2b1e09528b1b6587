"""The DeepSpeed configuration: ours, with a user's JSON merged over it and conflicts refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stir_train.config.learning import TrainConfig
from stir_train.errors import ConfigError

GRADIENT_CLIP = 1.0
"""Gradient norm above which gradients are scaled down."""
NEVER = 1 << 30
OWNED = {
    "train_batch_size": "distill.batch_size",
    "train_micro_batch_size_per_gpu": "distill.batch_size and the number of ranks",
    "gradient_accumulation_steps": "train.gradient_accumulation",
    "gradient_clipping": f"the fit loop ({GRADIENT_CLIP})",
    "optimizer": "the stage's learning_rate and weight_decay",
    "scheduler": "the stage's warmup_steps",
    "zero_optimization.stage": "train.zero_stage",
    "bf16.enabled": "train.dtype",
    "fp16.enabled": "train.dtype",
}
"""Keys that follow from the run's own settings, and from which."""


def deepspeed_config(train: TrainConfig, *, clip: bool = True) -> dict[str, Any]:
    """What to pass to ``deepspeed.initialize``.

    A user's value for a key that the run's settings determine must agree with them, or be
    ``"auto"``.

    Raises:
        ConfigError: If ``train.deepspeed_config`` cannot be read, or contradicts the settings.
    """
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": train.gradient_accumulation,
        # Always said: DeepSpeed's own default clips at 1.
        "gradient_clipping": GRADIENT_CLIP if clip else 0.0,
        "zero_optimization": {"stage": train.zero_stage},
        "bf16": {"enabled": train.dtype == "bfloat16"},
        "steps_per_print": NEVER,
    }
    if train.deepspeed_config is None:
        return ours
    users = _read(train.deepspeed_config)
    problems = []
    for key, source in OWNED.items():
        given, own = _at(users, key), _at(ours, key)
        if given in (None, "auto", own) or (key == "fp16.enabled" and given is False):
            continue
        instead = "leave it out" if own is None else f"it is {own!r} here"
        problems.append(f"{key}: {given!r} contradicts {source}; {instead}")
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"{train.deepspeed_config} (train.deepspeed_config):\n{listed}")
    return _merged(ours, users)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"train.deepspeed_config: {path} cannot be read as JSON: {error}"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"train.deepspeed_config: {path} holds no JSON object")
    return values


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _merged(ours: dict[str, Any], users: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The user's values over ours, but for the owned keys, which agree or are ``auto``."""
    merged = dict(ours)
    for key, value in users.items():
        if f"{prefix}{key}" in OWNED:
            continue
        held = ours.get(key)
        both = isinstance(held, dict) and isinstance(value, dict)
        merged[key] = (
            _merged(held, value, f"{prefix}{key}.") if both and held is not None else value
        )
    return merged
