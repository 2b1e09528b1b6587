"""Save a trained LoRA adapter as PEFT reads it: two files, sorted config, nothing else."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tensors import save_tensors
from stir_train.distributed.deepspeed_api import import_deepspeed
from stir_train.errors import VerificationError
from stir_train.models.load import LoadedModel
from stir_train.models.lora import known_deprecations
from stir_train.stores.adapters import ADAPTER_DIRECTORY, ADAPTER_FILES

PROBES_FILE = "probes.safetensors"
NUM_GREEDY = 16
"""Greedy tokens recorded after each probe."""


def save_adapter(model: PeftModel, stage: StageDir, *, prefix: str = "") -> None:
    """Write the adapter under ``PREFIXlora/``.

    Raises:
        VerificationError: If there is nothing learned to save (every ``lora_B`` is zero or empty).
    """
    learned = [p for n, p in model.named_parameters() if "lora_B" in n]
    if not learned or not any(p.numel() and bool(p.detach().abs().max() > 0) for p in learned):
        raise VerificationError("the adapter learned nothing: every lora_B is zero or empty")
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        config_file = Path(scratch) / ADAPTER_FILES[0]
        config = json.loads(config_file.read_text(encoding="utf-8"))
        # PEFT writes a set; its order changes from process to process.
        if isinstance(config["target_modules"], list):
            config["target_modules"].sort()
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for name in ADAPTER_FILES:
            with stage.writing(f"{prefix}{ADAPTER_DIRECTORY}/{name}") as path:
                shutil.copyfile(Path(scratch) / name, path)


@torch.no_grad()
def save_probes(
    model: PeftModel, sequences: Sequence[Sequence[int]], stage: StageDir, *, prefix: str = ""
) -> dict[str, Tensor]:
    """Record the trainer's logits, the base's, and its greedy continuation of a few sequences.

    Args:
        model: The trained student.
        sequences: Of equal length.
        stage: Where to.
        prefix: Directory inside the stage.
    """
    token_ids = torch.tensor([list(s) for s in sequences], device=model.device)
    model.eval()
    first = model(input_ids=token_ids, use_cache=True)
    adapted = first.logits.float().cpu()
    continued, cache = [first.logits[:, -1].argmax(-1)], first.past_key_values
    while len(continued) < NUM_GREEDY:
        following = model(input_ids=continued[-1][:, None], past_key_values=cache, use_cache=True)
        continued.append(following.logits[:, -1].argmax(-1))
    with model.disable_adapter():
        base = model(input_ids=token_ids, use_cache=False).logits.float().cpu()
    probes = {
        "token_ids": token_ids.cpu(),
        "adapted_logits": adapted,
        "base_logits": base,
        "greedy_token_ids": torch.stack(continued, dim=1).cpu(),
    }
    save_tensors(
        stage, f"{prefix}{PROBES_FILE}", probes, {"what": "logits recorded by the trainer"}
    )
    return probes


def save_merged(base: LoadedModel, adapter: Path, target: Path) -> None:
    """Fold an adapter into its base and write the full model and tokenizer, in the base's own dtype."""
    with known_deprecations():
        merged = PeftModel.from_pretrained(base.model, str(adapter)).merge_and_unload()
    model = _ordinary(merged)
    import_deepspeed()  # transformers does, to save: this way it is quiet
    if base.stored_dtype is not None:
        model.to(base.stored_dtype)  # type: ignore[arg-type]  # transformers wraps the signature
    model.save_pretrained(target)
    base.tokenizer.save_pretrained(target)


def _ordinary(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that can be saved: transformers refuses one that it dequantised."""
    if not hasattr(model.config, "quantization_config"):
        return model
    config = copy.deepcopy(model.config)
    del config.quantization_config
    fresh = type(model)(config)
    fresh.to(model.dtype)  # type: ignore[arg-type]
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config = model.generation_config
    return fresh
