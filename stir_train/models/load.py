"""Load a frozen causal language model by path, hub id or embedded name, and identify it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from stir_train.config.inputs import SPREAD, ModelConfig
from stir_train.distributed.collective_forward import CollectiveForward
from stir_train.distributed.world import World, alone
from stir_train.errors import ModelError
from stir_train.models.blocks import BLOCK_CONVENTION, find_blocks
from stir_train.models.sharding import (
    load_partitioned,
    load_spread,
    load_tensor_parallel,
    load_zero3,
)

EMBEDDED_PREFIX = "embedded/"
EMBEDDED_ROOT = Path(__file__).resolve().parent.parent / "tasks" / "models"
SAMPLED_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelIdentity:
    """What an artifact must match to be used with a model.

    Attributes:
        name: Path or hub id as configured.
        revision: Pinned hub revision, or empty for a local directory.
        architecture: Model class.
        weights_sha256: For a local directory, a hash of its config and of the name, size, first
            and last MiB of every weights file; for a hub id, of its id and commit.
        tokenizer_sha256: Hash of the vocabulary and special tokens.
        width: Residual width ``D``.
        num_blocks: Number of decoder blocks.
        block_convention: What ``h[b]`` means.
    """

    name: str
    revision: str
    architecture: str
    weights_sha256: str
    tokenizer_sha256: str
    width: int
    num_blocks: int
    block_convention: str = BLOCK_CONVENTION

    def as_dict(self) -> dict[str, str | int]:
        """The identity as JSON-ready values."""
        return asdict(self)

    def fingerprint(self) -> str:
        """One hash of what the model is, not of what it was called or where it lay."""
        kept = {k: v for k, v in asdict(self).items() if k not in ("name", "revision")}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ModelDescription:
    """A model as its files describe it, its weights unread but for their hash.

    Attributes:
        identity: The same that it has when it is loaded.
        tokenizer: Its tokenizer.
        vocab_size: Rows of its output layer.
        stop_token_ids: What ends a completion.
    """

    identity: ModelIdentity
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    stop_token_ids: tuple[int, ...]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion, special tokens left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


@dataclass(frozen=True)
class LoadedModel:
    """A frozen model in evaluation mode with its tokenizer, blocks and identity.

    ``is_sharded`` if ranks can run it only together, and ``collective_forward`` if they do so on work of
    their own.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    blocks: nn.ModuleList
    identity: ModelIdentity
    is_sharded: bool = False
    collective_forward: CollectiveForward | None = None
    input_device: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return self.input_device or self.model.device

    @property
    def max_tokens(self) -> int:
        """Context length in tokens."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 20)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion, special tokens left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The end-of-sequence ids of the generation config, or else of the tokenizer."""
        return _stop_token_ids(self.model.generation_config, self.tokenizer)


def resolve_model_path(name: str) -> str:
    """Turn ``embedded/NAME`` into the directory shipped with the package; leave the rest alone.

    Raises:
        ModelError: If no such model is embedded.
    """
    if not name.startswith(EMBEDDED_PREFIX):
        return name
    path = EMBEDDED_ROOT / name.removeprefix(EMBEDDED_PREFIX)
    if not (path / "config.json").is_file():
        known = ", ".join(sorted(p.parent.name for p in EMBEDDED_ROOT.glob("*/config.json")))
        raise ModelError(
            f"model.name: no embedded model {name!r}; embedded models: {known or 'none'}"
        )
    return str(path)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the configured model's tokenizer alone."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        resolve_model_path(config.name),
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    return tokenizer


def describe_model(config: ModelConfig) -> ModelDescription:
    """Describe the configured model without loading it.

    Raises:
        ModelError: If its files cannot be found or read.
    """
    path, settings = _pretrained(config)
    where = {k: settings[k] for k in ("revision", "trust_remote_code")}
    with _explained(config):
        tokenizer = load_tokenizer(config)
        model_config = AutoConfig.from_pretrained(path, **where)
        try:
            generation: GenerationConfig | None = GenerationConfig.from_pretrained(path, **where)
        except OSError:  # it has no such file
            generation = GenerationConfig.from_model_config(model_config)
    text_config = model_config.get_text_config()
    revision = "" if Path(path).is_dir() else config.revision or ""
    commit = getattr(model_config, "_commit_hash", None) or revision
    identity = ModelIdentity(
        name=config.name,
        revision=revision,
        architecture=_architecture(model_config),
        weights_sha256=_weights_sha256(path, commit),
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        width=text_config.hidden_size,
        num_blocks=text_config.num_hidden_layers,
    )
    stops = _stop_token_ids(generation, tokenizer)
    return ModelDescription(identity, tokenizer, text_config.vocab_size, stops)


def _architecture(config: PretrainedConfig) -> str:
    """The class that the model is loaded as."""
    try:
        # There is no public look-up of the class.
        found: Any = AutoModelForCausalLM._model_mapping[type(config)]  # noqa: SLF001
    except KeyError:  # its repository's own code
        return str((config.architectures or ["unknown"])[0])
    return str((found[0] if isinstance(found, tuple) else found).__name__)


def _stop_token_ids(
    generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    ids = generation.eos_token_id if generation else None
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (int(ids),)


def load_model(config: ModelConfig, world: World | None = None) -> LoadedModel:
    """Load and freeze the configured model. Collective if it is sharded.

    Args:
        config: Which model, and how to hold it; device ``auto`` takes the GPU of the local rank.
        world: The processes of the launch; None if this one is by itself.

    Raises:
        ModelError: If it cannot be found or read, its blocks are not recognised, or the launch cannot
            hold it as configured.
    """
    world = world or alone()
    path, settings = _pretrained(config)
    spread = config.device == SPREAD
    device = resolve_device("auto" if spread else config.device, world.launch.local_rank)
    settings["dtype"] = resolve_dtype(config.dtype, device)
    collective_forward = None
    with _explained(config):
        tokenizer = load_tokenizer(config)
        if config.sharding == "tensor":
            model = load_tensor_parallel(path, settings, world, config.shards, device)
        elif config.sharding == "zero3":
            model, collective_forward = load_zero3(path, settings, world, settings["dtype"])
        elif spread:
            model, device = load_spread(path, settings, world, config.max_memory)
        else:
            model = AutoModelForCausalLM.from_pretrained(path, **settings)
            model.to(device)  # type: ignore[arg-type]  # transformers wraps the signature
    model.eval().requires_grad_(requires_grad=False)
    loaded = _as_loaded(config, model, tokenizer, collective_forward)
    return replace(loaded, input_device=device) if spread else loaded


def load_trainable(config: ModelConfig, world: World, deepspeed: dict[str, Any]) -> LoadedModel:
    """Load a base for training, in float32: whole, or if the model is sharded by ZeRO-3. Collective.

    Args:
        config: Which model.
        world: The processes that will train it.
        deepspeed: The configuration of the engine that is opened on it afterwards.
    """
    config = config.model_copy(update={"dtype": "float32"})
    if config.sharding == "none":
        return load_model(config, world)
    path, settings = _pretrained(config)
    with _explained(config):
        tokenizer = load_tokenizer(config)
        model = load_partitioned(path, settings | {"dtype": torch.float32}, world, deepspeed)
    model.eval().requires_grad_(requires_grad=False)
    return _as_loaded(config, model, tokenizer, None)


def unsharded(config: ModelConfig) -> ModelConfig:
    """The settings for one process that needs the model whole: in its own memory, if it is sharded."""
    if config.sharding == "none" and config.device != SPREAD:
        return config
    return config.model_copy(update={"sharding": "none", "shards": 1, "device": "cpu"})


def _pretrained(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Path or id, and what every way of loading it shares."""
    path = resolve_model_path(config.name)
    is_local = Path(path).is_dir()
    if not is_local and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ModelError(f"model.name: no directory {path!r}")
    transformers_logging.disable_progress_bar()  # our own bars show what matters
    return path, {
        "revision": None if is_local else config.revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": config.attention,
    }


@contextmanager
def _explained(config: ModelConfig) -> Iterator[None]:
    """Say which setting was at fault when transformers cannot load a model."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        where = f" at revision {config.revision}" if config.revision else ""
        eager = "scaled_dot_product_attention" in str(error)
        hint = " Set model.attention=eager." if eager else ""
        raise ModelError(
            f"model.name: cannot load {config.name!r}{where}: {error}{hint}"
        ) from error


def _as_loaded(
    config: ModelConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    collective_forward: CollectiveForward | None,
) -> LoadedModel:
    blocks = find_blocks(model, path=config.blocks_path)
    revision = "" if Path(resolve_model_path(config.name)).is_dir() else config.revision or ""
    identity = identify_model(model, tokenizer, name=config.name, revision=revision)
    sharded = config.sharding != "none"
    return LoadedModel(model, tokenizer, blocks, identity, sharded, collective_forward)


def resolve_device(device: str, local_rank: int = 0) -> torch.device:
    """Resolve ``auto`` to this rank's GPU when there is one."""
    if device != "auto":
        return torch.device(device)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Resolve ``auto``: bfloat16 on a GPU, float32 on a CPU."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash the vocabulary and the special tokens."""
    content = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": {k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items())},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def identify_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "",
    revision: str = "",
) -> ModelIdentity:
    """Identify a loaded model, by us or by the user, from where its weights came from."""
    path = model.name_or_path or ""
    text_config = model.config.get_text_config()
    return ModelIdentity(
        name=name or path,
        revision=revision,
        architecture=type(model).__name__,
        weights_sha256=_weights_sha256(
            path, getattr(model.config, "_commit_hash", None) or revision
        ),
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        width=text_config.hidden_size,
        num_blocks=text_config.num_hidden_layers,
    )


def _weights_sha256(path: str, commit: str) -> str:
    directory = Path(path)
    if not directory.is_dir():
        return hashlib.sha256(f"{path}@{commit}".encode()).hexdigest()
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for file in sorted(directory.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(SAMPLED_BYTES))
            stream.seek(max(0, size - SAMPLED_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()
