"""The shipped baselines: what a configuration calls each, and where it is. Torch-free.

To add one, write its file in ``stir_train/baselines`` and a line here. One of your own needs no line: name
it in ``baselines.methods`` by its import path, ``package.module:Name``.
"""

from __future__ import annotations

import difflib

from stir_train.config.import_path import is_import_path

BASELINES: dict[str, str] = {
    "prompt-step-by-step": "stir_train.baselines.prompting:STEP_BY_STEP",
    "prompt-concise": "stir_train.baselines.prompting:CONCISE",
    "prompt-token-budget": "stir_train.baselines.prompting:TokenBudget",
    "prompt-left-to-right": "stir_train.baselines.prompting:LEFT_TO_RIGHT",
    "prompt-few-shot": "stir_train.baselines.few_shot:FewShot",
    "self-consistency": "stir_train.baselines.self_consistency:SELF_CONSISTENCY",
    "self-certainty": "stir_train.baselines.self_certainty:SELF_CERTAINTY",
    "rpc": "stir_train.baselines.rpc:RPC",
    "dsc": "stir_train.baselines.dsc:Dsc",
    "trajectory-selection": "stir_train.baselines.trajectory_selection:TrajectorySelection",
    "mur": "stir_train.baselines.mur:MUR",
    "seal": "stir_train.baselines.seal:Seal",
    "rise": "stir_train.baselines.rise:Rise",
    "atlas": "stir_train.baselines.atlas:Atlas",
    "rebalance": "stir_train.baselines.rebalance:ReBalance",
    "entropy-points": "stir_train.baselines.entropy_points:EntropyPoints",
    "steered-compression": "stir_train.baselines.compression:SteeredCompression",
    "fractional-reasoning": "stir_train.baselines.fractional:FractionalReasoning",
    "representation-control": "stir_train.baselines.representation:RepresentationControl",
    "efficiency-steering": "stir_train.baselines.efficiency:EfficiencySteering",
    "nowait": "stir_train.baselines.nowait:NO_WAIT",
    "cgrs": "stir_train.baselines.cgrs:CGRS",
    "cyclic-reflex": "stir_train.baselines.cyclic_reflex:CYCLIC_REFLEX",
    "deer": "stir_train.baselines.deer:DEER",
    "answer-convergence": "stir_train.baselines.convergence:ANSWER_CONVERGENCE",
    "value-exit": "stir_train.baselines.value_exit:ValueExit",
    "progress-vector": "stir_train.baselines.progress_vector:ProgressVector",
    "thinkedit": "stir_train.baselines.thinkedit:ThinkEdit",
    "steer2edit": "stir_train.baselines.steer2edit:Steer2Edit",
}
"""Import path by name, in the order of the table of results."""


def require_baseline(name: str) -> str:
    """The name itself, if it is shipped or an import path.

    Raises:
        ValueError: If it is neither; names the nearest shipped one.
    """
    if name in BASELINES or is_import_path(name):
        return name
    near = difflib.get_close_matches(name, BASELINES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped are {', '.join(BASELINES)};"
    raise ValueError(
        f"no baseline {name!r}; {hint} one of your own is named by package.module:Name"
    )
