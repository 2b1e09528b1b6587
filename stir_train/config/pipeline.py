"""The stages of a run in order: the verb that runs each, and the directory it makes."""

from __future__ import annotations

STAGE_DIRECTORIES: dict[str, str] = {
    "rollout": "rollouts",
    "harvest": "harvest",
    "basis": "basis",
    "validate": "validation",
    "value": "value",
    "tune": "tune",
    "steer": "steered",
    "distill": "adapter",
    "baselines": "baselines",
    "evaluate": "eval",
    "report": "report",
}
