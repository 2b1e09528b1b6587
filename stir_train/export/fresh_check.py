"""Load an adapter with plain transformers and PEFT and compare logits. Imports nothing of ours.

Run as a script in a fresh interpreter: ``fresh_check.py BASE ADAPTER PROBES [GGUF_FILE]``. Prints one JSON
object; the caller judges it.
"""

import json
import sys
from typing import Any

import torch
from peft import PeftModel
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def check(
    base_path: str, adapter_path: str, probes_path: str, gguf_file: str | None = None
) -> dict[str, object]:
    """Reload, and report keys, shapes, zero tensors, and differences of logits."""
    probes = load_file(probes_path)
    tensors = load_file(f"{adapter_path}/adapter_model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(
        base_path, dtype=torch.float32, gguf_file=gguf_file
    ).eval()
    model = PeftModel.from_pretrained(base, adapter_path).eval()
    loading: Any = set_peft_model_state_dict(model, tensors)
    missing = [key for key in loading.missing_keys if "lora_" in key]
    with torch.no_grad():
        adapted = model(input_ids=probes["token_ids"]).logits.float()
        with model.disable_adapter():
            plain = model(input_ids=probes["token_ids"]).logits.float()
        # The trainer's greedy continuation: how far each of its tokens is from being the likeliest.
        width = probes["token_ids"].shape[1]
        continued = torch.cat([probes["token_ids"], probes["greedy_token_ids"]], dim=1)
        logits = model(input_ids=continued).logits.float()[:, width - 1 : -1]
        chosen = logits.gather(-1, probes["greedy_token_ids"][..., None])[..., 0]
        greedy_gap = logits.max(-1).values - chosen
        shapes = wrong_shapes(model, tensors)
        merged = model.merge_and_unload()
        folded = merged(input_ids=probes["token_ids"]).logits.float()
    return {
        "shapes": shapes,
        "greedy_gap": float(greedy_gap.max()),
        "merged_difference": float((folded - adapted).abs().max()),
        "missing": missing,
        "unexpected": list(loading.unexpected_keys),
        "empty": [key for key, value in tensors.items() if value.numel() == 0],
        "zero_b": [k for k, v in tensors.items() if "lora_B" in k and not v.abs().max() > 0],
        "num_tensors": len(tensors),
        "base_difference": float((plain - probes["base_logits"]).abs().max()),
        "adapted_difference": float((adapted - probes["adapted_logits"]).abs().max()),
        "effect": float((adapted - plain).abs().max()),
    }


def wrong_shapes(model: PeftModel, tensors: dict[str, torch.Tensor]) -> list[str]:
    """Tensors whose shape does not follow from the module they belong to and the rank."""
    config: Any = model.peft_config["default"]
    wrong = []
    for key, value in tensors.items():
        name, _, kind = key.removeprefix("base_model.model.").rpartition(".lora_")
        try:
            module: Any = model.get_base_model().get_submodule(name)
        except AttributeError:
            continue  # an unexpected key, which is reported as that
        sides = (
            (config.r, module.in_features) if kind[0] == "A" else (module.out_features, config.r)
        )
        if tuple(value.shape) != sides:
            wrong.append(f"{key} is {tuple(value.shape)}, not {sides}")
    return wrong


if __name__ == "__main__":
    json.dump(check(*sys.argv[1:5]), sys.stdout)
