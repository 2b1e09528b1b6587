"""Load an adapter with plain transformers and PEFT and compare logits. Imports nothing of ours.

Run as a script in a fresh interpreter: ``fresh_check.py BASE ADAPTER PROBES``. Prints one JSON
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


def check(base_path: str, adapter_path: str, probes_path: str) -> dict[str, object]:
    """Reload, and report keys, zero tensors and logit differences."""
    probes = load_file(probes_path)
    tensors = load_file(f"{adapter_path}/adapter_model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.float32).eval()
    model = PeftModel.from_pretrained(base, adapter_path).eval()
    loading: Any = set_peft_model_state_dict(model, tensors)
    missing = [key for key in loading.missing_keys if "lora_" in key]
    with torch.no_grad():
        adapted = model(input_ids=probes["token_ids"]).logits.float()
        with model.disable_adapter():
            plain = model(input_ids=probes["token_ids"]).logits.float()
    return {
        "missing": missing,
        "unexpected": list(loading.unexpected_keys),
        "empty": [key for key, value in tensors.items() if value.numel() == 0],
        "zero_b": [k for k, v in tensors.items() if "lora_B" in k and not v.abs().max() > 0],
        "num_tensors": len(tensors),
        "base_difference": float((plain - probes["base_logits"]).abs().max()),
        "adapted_difference": float((adapted - probes["adapted_logits"]).abs().max()),
        "effect": float((adapted - plain).abs().max()),
    }


if __name__ == "__main__":
    json.dump(check(*sys.argv[1:4]), sys.stdout)
