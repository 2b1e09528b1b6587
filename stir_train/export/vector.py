"""A vector as other tools load it: a GGUF control vector, an lm-eval steering file.

Both tools add it at every token, the prompt's too: the place `every_token`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter
from jaxtyping import Float
from torch import Tensor

from stir_train.errors import ModelError
from stir_train.models.load import LoadedModel


def save_gguf_vector(
    loaded: LoadedModel,
    vector: Float[Tensor, "D"],
    block: int,
    path: Path,
    *,
    description: str = "",
) -> None:
    """Write a llama.cpp control vector (``--control-vector FILE``).

    Args:
        loaded: The model that it is for.
        vector: ``Float[D]``, added as it is.
        block: After which it is added.
        path: The file.
        description: Kept in the file's ``general.description``.

    Raises:
        ModelError: If the vector belongs to block 0, which llama.cpp refuses.
    """
    if block == 0:
        raise ModelError("llama.cpp takes no control vector for block 0 (`direction.0`)")
    writer = GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", str(loaded.model.config.model_type))
    writer.add_uint32("controlvector.layer_count", loaded.identity.num_blocks)
    if description:
        writer.add_description(description)
    values = np.ascontiguousarray(vector.float().cpu().numpy(), dtype=np.float32)
    writer.add_tensor(f"direction.{block}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_lm_eval_vector(
    loaded: LoadedModel, vector: Float[Tensor, "D"], block: int, path: Path
) -> None:
    """Write a file for lm-eval's ``steered`` model (``--model_args steer_path=FILE``).

    It is what that tool reads, a dictionary saved by torch; it holds a tensor and plain values only.
    """
    steered = loaded.blocks[block]
    (name,) = [n for n, m in loaded.model.base_model.named_modules() if m is steered]
    entry = {
        "action": "add",
        "steering_coefficient": 1.0,
        "steering_vector": vector.float().cpu()[None],
        "head_index": None,
    }
    torch.save({name: entry}, path)  # noqa: TID251  # the one format that tool reads
