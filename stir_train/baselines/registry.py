"""Every method of comparison by name."""

from __future__ import annotations

from stir_train.baselines.cgrs import Cgrs
from stir_train.baselines.compression import SteeredCompression
from stir_train.baselines.deer import Deer
from stir_train.baselines.efficiency import EfficiencySteering
from stir_train.baselines.fractional import FractionalReasoning
from stir_train.baselines.interface import Baseline
from stir_train.baselines.nowait import NoWait
from stir_train.baselines.progress_vector import ProgressVector
from stir_train.baselines.representation import RepresentationControl
from stir_train.baselines.seal import Seal
from stir_train.baselines.self_consistency import SelfConsistency
from stir_train.baselines.steer2edit import Steer2Edit
from stir_train.baselines.thinkedit import ThinkEdit

BASELINES: dict[str, Baseline] = {
    method.name: method
    for method in (
        SelfConsistency(),
        Seal(),
        SteeredCompression(),
        FractionalReasoning(),
        RepresentationControl(),
        EfficiencySteering(),
        NoWait(),
        Cgrs(),
        Deer(),
        ProgressVector(),
        ThinkEdit(),
        Steer2Edit(),
    )
}
