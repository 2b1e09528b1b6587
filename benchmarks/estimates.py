"""The estimate of time, disk and memory for four sizes of model; the formula that --dry-run uses."""

from __future__ import annotations

from pathlib import Path

from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.launch.estimate import Estimate, estimate, shape_of

CONFIG = Path(__file__).parents[1] / "configs" / "gsm8k" / "qwen2.5-7b-instruct.yaml"
COLUMNS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
# hidden size, layers, heads, key-value heads, feed-forward width, vocabulary; from their model cards.
MODELS = {
    "Qwen2.5-1.5B": (1536, 28, 12, 2, 8960, 151936, True),
    "Qwen2.5-7B": (3584, 28, 28, 4, 18944, 152064, False),
    "Qwen2.5-32B": (5120, 64, 40, 8, 27648, 152064, False),
    "Llama-3.1-70B": (8192, 80, 64, 8, 28672, 128256, False),
}
NUM_RANKS = 8
LARGE = 20e9
"""Weights from which a second row shows the model sharded."""
SPLIT = [
    "model.sharding=tensor",
    "model.shards=4",
    "train.zero_stage=3",
    "train.dtype=bfloat16",
    "train.gradient_accumulation=2",
]


def main() -> None:
    """Print the table."""
    whole = load_config(RunConfig, CONFIG)
    split = load_config(RunConfig, CONFIG, SPLIT)
    print("| model | weights, GiB | to generate, GiB | to train, GiB | disk, GiB | hours, 8 GPUs |")
    print("|---|---|---|---|---|---|")
    for name, (*sizes, inner, vocab, tied) in MODELS.items():
        described = dict(zip(COLUMNS, sizes, strict=True)) | {
            "intermediate_size": inner,
            "vocab_size": vocab,
            "tie_word_embeddings": tied,
            "model_type": "qwen2" if name.startswith("Qwen") else "llama",
        }
        shape = shape_of(described, bytes_per_weight=2)
        _print_row(name, estimate(whole, shape, num_ranks=NUM_RANKS, on_gpu=True))
        if shape.num_params > LARGE:
            split_name = f"{name}, tensor over 4, ZeRO-3"
            _print_row(split_name, estimate(split, shape, num_ranks=NUM_RANKS, on_gpu=True))


def _print_row(name: str, found: Estimate) -> None:
    print(
        f"| {name} | {found.weights_gib:.1f} | {found.generate_gib:.0f} | {found.train_gib:.0f} "
        f"| {found.disk_gib:.1f} | {found.hours:.1f} |"
    )


if __name__ == "__main__":
    main()
