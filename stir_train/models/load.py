"""Load a frozen causal language model by path, hub id or embedded name, and identify it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from stir_train.errors import ModelError, StirError
from stir_train.models.blocks import find_blocks
from stir_train.models.identity import (
    ModelIdentity,
    identify,
    identify_model,
    stop_token_ids_of,
    weights_sha256,
)
from stir_train.models.sharding import (
    load_partitioned,
    load_spread,
    load_tensor_parallel,
    load_zero3,
)

EMBEDDED_PREFIX = "embedded/"
EMBEDDED_ROOT = Path(__file__).resolve().parent.parent / "tasks" / "models"
GGUF_SUFFIX = ".gguf"
GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class ModelDescription:
    """A model as its files describe it, its weights unread but for their hash.

    Attributes:
        identity: The same that it has when it is loaded.
        tokenizer: Its tokenizer.
        vocab_size: Rows of its output layer.
        max_tokens: Context length in tokens.
    """

    identity: ModelIdentity
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    max_tokens: int

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """What ends a completion."""
        return self.identity.stop_token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion, special tokens left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


@dataclass(frozen=True)
class LoadedModel:
    """A frozen model in evaluation mode with its tokenizer, blocks and identity.

    ``is_sharded`` if ranks can run it only together, and ``collective_forward`` if they do so on work of
    their own. ``stored_dtype`` is that of its files, whatever it was loaded in. ``adapter`` is the directory
    of the adapter on it, if it has one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    blocks: nn.ModuleList
    identity: ModelIdentity
    is_sharded: bool = False
    collective_forward: CollectiveForward | None = None
    input_device: torch.device | None = None
    stored_dtype: torch.dtype | None = None
    adapter: Path | None = None

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return self.input_device or self.model.device

    @property
    def vocab_size(self) -> int:
        """Rows of the output layer, which may be more than the tokenizer has tokens."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def pad_token_id(self) -> int:
        """What masked positions are fed: any row of the embedding, so 0 where padding has none."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None and pad < self.vocab_size else 0

    @property
    def max_tokens(self) -> int:
        """Context length in tokens."""
        return _max_tokens(self.model.config)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion, special tokens left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """What ends a completion."""
        return self.identity.stop_token_ids


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
    """Load the configured model's tokenizer alone.

    Raises:
        ModelError: If its files cannot be found or read.
    """
    path, settings = _pretrained(config)
    with _explained(config):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **_where(settings))
    return tokenizer


def describe_model(config: ModelConfig) -> ModelDescription:
    """Describe the configured model without loading it.

    Raises:
        ModelError: If its files cannot be found or read.
    """
    path, settings = _pretrained(config)
    tokenizer = load_tokenizer(config)
    revision = "" if Path(path).is_dir() else config.revision or ""
    with _explained(config):
        model_config = AutoConfig.from_pretrained(path, **_where(settings))
        try:
            generation = GenerationConfig.from_pretrained(
                path, revision=settings["revision"], trust_remote_code=config.trust_remote_code
            )
        except OSError:
            if (Path(path) / GENERATION_CONFIG).exists():
                raise  # it is there, and cannot be read: without it, other tokens would stop
            generation = GenerationConfig.from_model_config(model_config)
        text_config = model_config.get_text_config()
        hashed = weights_sha256(
            path,
            getattr(model_config, "_commit_hash", None) or revision,
            gguf_file=settings.get("gguf_file"),
        )
    identity = identify(
        name=config.name,
        revision=revision,
        architecture=_architecture(model_config),
        weights_sha256=hashed,
        tokenizer=tokenizer,
        stop_token_ids=stop_token_ids_of(generation, tokenizer),
        size=(text_config.hidden_size, text_config.num_hidden_layers),
    )
    return ModelDescription(identity, tokenizer, text_config.vocab_size, _max_tokens(model_config))


def decoder_config(config: ModelConfig) -> dict[str, Any]:
    """The sizes of the configured model's decoder, as transformers names them.

    Raises:
        ModelError: If its files cannot be found or read.
    """
    path, settings = _pretrained(config)
    with _explained(config):
        found = AutoConfig.from_pretrained(path, **_where(settings))
    return dict(found.get_text_config().to_dict())


def _where(settings: dict[str, Any]) -> dict[str, Any]:
    """Of the settings of ``from_pretrained``, those that say which files are read."""
    named = ("revision", "trust_remote_code", "gguf_file")
    return {key: settings[key] for key in named if key in settings}


def _max_tokens(config: PretrainedConfig) -> int:
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 20)


def _architecture(config: PretrainedConfig) -> str:
    """The class that the model is loaded as."""
    try:
        # There is no public look-up of the class.
        found: Any = AutoModelForCausalLM._model_mapping[type(config)]  # noqa: SLF001
    except KeyError:  # its repository's own code
        return str((config.architectures or ["unknown"])[0])
    return str((found[0] if isinstance(found, tuple) else found).__name__)


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
            model = _load_whole(path, settings, device)
    model.eval().requires_grad_(requires_grad=False)
    loaded = _as_loaded(config, model, tokenizer, collective_forward)
    return replace(loaded, input_device=device) if spread else loaded


def _load_whole(path: str, settings: dict[str, Any], device: torch.device) -> PreTrainedModel:
    """Load in this process, and make sure that every weight came from the files and is a number.

    Raises:
        ModelError: If not: transformers fills what is missing with random numbers and warns at most.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **settings)
    model: PreTrainedModel = loaded[0]
    found: dict[str, Any] = loaded[1]
    wrong = [
        f"{what}: {', '.join(sorted(map(str, names))[:4])} ({len(names)} in all)"
        for what, names in (
            ("missing from its files", found["missing_keys"]),
            ("of another shape than its config says", found["mismatched_keys"]),
        )
        if names
    ]
    if wrong:
        raise ModelError(
            f"model.name: the weights in {path} are not those of the model that its config "
            f"describes; {'; '.join(wrong)}. Get the checkpoint again, or mend config.json"
        )
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(
                f"model.name: {name} in {path} holds values that are not finite numbers; the "
                "checkpoint is damaged, or was saved from a training that diverged"
            )
    return model.to(device)  # type: ignore[arg-type]  # transformers wraps the signature


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
    path, gguf_file = locate_model(config)
    is_local = Path(path).is_dir()
    if not is_local and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ModelError(f"model.name: no directory {path!r}")
    transformers_logging.disable_progress_bar()  # our own bars show what matters
    return path, {
        "revision": None if is_local else config.revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": config.attention,
        **({"gguf_file": gguf_file} if gguf_file else {}),
    }


def locate_model(config: ModelConfig) -> tuple[str, str | None]:
    """Directory or hub id, and the GGUF file in it, named by itself or at the end of the path.

    Raises:
        ModelError: If the file is not there.
    """
    path, gguf_file = resolve_model_path(config.name), config.gguf_file
    if gguf_file is None and path.endswith(GGUF_SUFFIX):
        path, gguf_file = str(Path(path).parent), Path(path).name
    if gguf_file is not None and Path(path).is_dir() and not (Path(path) / gguf_file).is_file():
        held = ", ".join(sorted(file.name for file in Path(path).glob(f"*{GGUF_SUFFIX}")))
        raise ModelError(f"model.gguf_file: no {gguf_file} in {path}; it holds {held or 'no GGUF'}")
    return path, gguf_file


@contextmanager
def _explained(config: ModelConfig) -> Iterator[None]:
    """Say which setting was at fault when transformers cannot load a model.

    Files that are damaged, or say what is not so, make the libraries raise whatever they came upon.
    """
    try:
        yield
    except StirError:
        raise
    except Exception as error:
        where = f" at revision {config.revision}" if config.revision else ""
        known = isinstance(error, OSError | ValueError | ImportError)
        said = str(error) if known else f"{type(error).__name__}: {error}"
        hint = "" if known else "; its files are damaged, or are not what its config.json describes"
        if "scaled_dot_product_attention" in said:
            hint = " Set model.attention=eager."
        raise ModelError(f"model.name: cannot load {config.name!r}{where}: {said}{hint}") from error


def _as_loaded(
    config: ModelConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    collective_forward: CollectiveForward | None,
) -> LoadedModel:
    blocks = find_blocks(model, path=config.blocks_path)
    revision = "" if Path(locate_model(config)[0]).is_dir() else config.revision or ""
    identity = identify_model(
        model,
        tokenizer,
        name=config.name,
        revision=revision,
        gguf_file=locate_model(config)[1],
    )
    path, settings = _pretrained(config)
    return LoadedModel(
        model,
        tokenizer,
        blocks,
        identity,
        is_sharded=config.sharding != "none",
        collective_forward=collective_forward,
        stored_dtype=AutoConfig.from_pretrained(path, **_where(settings)).dtype,
    )


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
