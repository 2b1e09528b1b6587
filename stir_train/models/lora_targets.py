"""Whether an adapter for a model could be served, known from its config before anything is trained."""

from __future__ import annotations

import re
import warnings

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from stir_train.config.inputs import ModelConfig
from stir_train.config.learning import DistillConfig
from stir_train.errors import ModelError
from stir_train.models.locate import pretrained_arguments
from stir_train.models.lora import lora_config
from stir_train.models.pretrained import read_config

SERVED_KEY = re.compile(r"base_model\.model\.(?!lm_head|.*embed_tokens)[\w.]+\.lora_[AB]\.weight")
"""Names of an adapter's tensors that servers find a module by."""
UNSERVED = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
)
"""Settings of PEFT that servers of many adapters do not load."""


def require_servable_targets(model: ModelConfig, config: DistillConfig) -> None:
    """Check ``distill.targets`` against the model's structure; no weight is read.

    Raises:
        ModelError: If a target is not in the model, or its adapter would be one that servers do not load.
    """
    path, settings = pretrained_arguments(model)
    described = read_config(path, settings)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT; what matters is refused below
        skeleton = AutoModelForCausalLM.from_config(
            described, trust_remote_code=model.trust_remote_code
        )
        names = {name for name, _ in skeleton.named_modules()}
        lora = lora_config(config)
        try:
            adapted = get_peft_model(skeleton, lora)
        except ValueError as error:
            raise ModelError(f"distill.targets: {error}") from error
    unknown = [] if isinstance(config.targets, str) else _unmatched(config.targets, names)
    if unknown:
        raise ModelError(
            f"distill.targets: {model.name} has no module {', '.join(unknown)}; its linear layers are "
            f"{', '.join(linear_names(adapted))}"
        )
    _require_served(model.name, config, adapted)


def linear_names(model: torch.nn.Module) -> list[str]:
    """Last parts of the names of a model's linear layers, its output head left out."""
    found = {
        name.removesuffix(".base_layer").rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name
    }
    return sorted(found - {"lm_head"})


def _unmatched(targets: tuple[str, ...], names: set[str]) -> list[str]:
    return [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in names)]


def _require_served(name: str, config: DistillConfig, adapted: PeftModel) -> None:
    layers = ", ".join(linear_names(adapted)) or "none"
    held = adapted.peft_config["default"]
    set_by_peft = [key for key in UNSERVED if getattr(held, key, None)]
    if set_by_peft:
        raise ModelError(
            f"distill.targets: {config.targets!r} takes in layers of {name} that are no linear layers of "
            f"their own, as a mixture's experts, by way of {', '.join(set_by_peft)}, which servers such as "
            f"vLLM do not load; name linear layers alone, of {layers}"
        )
    keys = [n.replace(".default", "") for n, _ in adapted.named_parameters() if "lora_" in n]
    odd = sorted({_module_of(key) for key in keys if not SERVED_KEY.fullmatch(key)})
    if odd:
        raise ModelError(
            f"distill.targets: servers load adapters of linear layers inside the blocks, and {odd[0]} of "
            f"{name} is none; name some of {layers}"
        )


def _module_of(key: str) -> str:
    return key.rpartition(".lora_")[0].removeprefix("base_model.model.")
