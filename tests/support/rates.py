"""Rates of a real model on a CPU, and a run that they are of."""

from __future__ import annotations

from stir_train.config.load import parse_config
from stir_train.config.run import RunConfig
from stir_train.launch.costs import Rates

QWEN = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "model_type": "qwen2",
}
CORES = 2
QWEN_RATES = Rates(
    prefill_tokens=CORES * 220,
    step_seconds=0.0,
    row_seconds=1 / (CORES * 90),
    gradient_tokens=CORES * 107,
    training_tokens=CORES * 80,
    head_step_seconds=0.01,
    load_seconds=20,
    prompt_tokens=80,
    shared_tokens=0,
    answer_tokens=(110, 140, 170) * 11,
    long_answer_tokens=230,
    num_ended=33,
)
"""Measured of Qwen2.5-Coder-0.5B on chain_sum, 128 rows."""


def config_of(*overrides: str, **values: object) -> RunConfig:
    """A configuration of these settings, named `x`."""
    return parse_config(RunConfig, {"name": "x", **values}, overrides, origin="test")
