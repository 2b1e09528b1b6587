"""Who a model is: everything that determines its tokens, hashed part by part.

Weights are hashed whole. Reading them once is what loading them costs anyway; the hash of a file is
kept in the user's cache under its inode, size and times, so that only a changed file is read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from stir_train.artifacts.atomic import file_sha256, write_json
from stir_train.errors import ModelError
from stir_train.models.blocks import BLOCK_CONVENTION

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
CACHE = Path("~/.cache/stir_train/file_hashes")


@dataclass(frozen=True)
class ModelIdentity:
    """What an artifact must match to be used with a model.

    Attributes:
        name: Path or hub id as configured.
        revision: Pinned hub revision, or empty for a local directory.
        architecture: Model class.
        weights_sha256: For a local directory, a hash of its config and of every weights file; for a
            hub id, of its id and commit.
        tokenizer_sha256: Hash of all that turns text into token ids and back.
        chat_template_sha256: Hash of the chat template, or empty.
        stop_token_ids: What ends a completion.
        width: Residual width ``D``.
        num_blocks: Number of decoder blocks.
        block_convention: What ``h[b]`` means.
    """

    name: str
    revision: str
    architecture: str
    weights_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str
    stop_token_ids: tuple[int, ...]
    width: int
    num_blocks: int
    block_convention: str = BLOCK_CONVENTION

    def as_dict(self) -> dict[str, object]:
        """The identity as JSON-ready values."""
        return {**asdict(self), "stop_token_ids": list(self.stop_token_ids)}

    def parts(self) -> dict[str, str]:
        """What the model is, not what it was called or where it lay: a value by a name for people."""
        return {
            "model architecture": f"{self.architecture}, {self.num_blocks} blocks of {self.width}",
            "model weights": self.weights_sha256,
            "tokenizer": self.tokenizer_sha256,
            "chat template": self.chat_template_sha256,
            "stop token ids": ", ".join(map(str, self.stop_token_ids)),
            "block convention": self.block_convention,
        }

    def fingerprint(self) -> str:
        """One hash of all parts."""
        return _sha256(json.dumps(self.parts(), sort_keys=True))


def identify(
    *,
    name: str,
    revision: str,
    architecture: str,
    weights_sha256: str,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: tuple[int, ...],
    size: tuple[int, int],
) -> ModelIdentity:
    """Put an identity together; ``size`` is the width and the number of blocks."""
    return ModelIdentity(
        name=name,
        revision=revision,
        architecture=architecture,
        weights_sha256=weights_sha256,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        chat_template_sha256=chat_template_sha256(tokenizer),
        stop_token_ids=stop_token_ids,
        width=size[0],
        num_blocks=size[1],
    )


def identify_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "",
    revision: str = "",
    gguf_file: str | None = None,
) -> ModelIdentity:
    """Identify a loaded model, by us or by the user, from where its weights came from."""
    path = model.name_or_path or ""
    text_config = model.config.get_text_config()
    commit = getattr(model.config, "_commit_hash", None) or revision
    return identify(
        name=name or path,
        revision=revision,
        architecture=type(model).__name__,
        weights_sha256=weights_sha256(path, commit, gguf_file=gguf_file),
        tokenizer=tokenizer,
        stop_token_ids=stop_token_ids_of(model.generation_config, tokenizer),
        size=(text_config.hidden_size, text_config.num_hidden_layers),
    )


def stop_token_ids_of(
    generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """The end-of-sequence ids of a generation config, or else of the tokenizer.

    Raises:
        ModelError: If they are no token ids.
    """
    ids = generation.eos_token_id if generation else None
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        return ()
    held = tuple(ids) if isinstance(ids, list | tuple) else (ids,)
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in held):
        raise ModelError(
            f"model.name: eos_token_id in generation_config.json is {ids!r}; it must be a token id, or a "
            "list of them"
        )
    return held


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash vocabulary, merges, normalisation, added and special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = {
        "backend": None if backend is None else _without_state(backend.to_str()),
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": {k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items())},
    }
    return _sha256(json.dumps(content, sort_keys=True))


def chat_template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash the chat template; empty without one."""
    template = tokenizer.chat_template
    return "" if not template else _sha256(json.dumps(template, sort_keys=True))


def weights_sha256(path: str, commit: str, *, gguf_file: str | None = None) -> str:
    """Hash a local directory's config and weights, or a hub id with its commit.

    Args:
        path: Directory or hub id.
        commit: Of the hub id.
        gguf_file: The one file of the directory that is read, if it is a GGUF.
    """
    directory = Path(path)
    if not directory.is_dir():
        return _sha256(f"{path}@{commit}:{gguf_file or ''}")
    files = [directory / gguf_file] if gguf_file else weight_files(directory)
    digest = hashlib.sha256()
    if not gguf_file and (directory / "config.json").is_file():
        digest.update((directory / "config.json").read_bytes())
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter's lock
        for file, found in zip(files, pool.map(_cached_sha256, files), strict=True):
            digest.update(f"{file.name}:{found}".encode())
    return digest.hexdigest()


def weights_by_content(path: str, revision: str | None, *, gguf_file: str | None = None) -> str:
    """The hash that a model has as a local directory, also where it is a hub id whose files are in the cache.

    So a copy in a directory and the same commit of the hub are known as one model.

    Args:
        path: Directory or hub id.
        revision: Of the hub id.
        gguf_file: As of `weights_sha256`.

    Returns:
        The hash; empty if its files are not at hand.
    """
    folder = Path(path) if Path(path).is_dir() else cached_snapshot(path, revision)
    return "" if folder is None else weights_sha256(str(folder), "", gguf_file=gguf_file)


def cached_snapshot(hub_id: str, revision: str | None) -> Path | None:
    """Where the hub's cache has a commit of a model, in a folder called by the commit; None if it has not."""
    held = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    return Path(held).parent if isinstance(held, str) else None


def weight_files(directory: Path) -> list[Path]:
    """Files that may hold weights, by name: those that transformers would read come among them."""
    return sorted({file for pattern in WEIGHTS for file in directory.glob(pattern)})


def _cached_sha256(file: Path) -> str:
    status = file.stat()
    state: Sequence[int] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    entry = CACHE.expanduser() / f"{status.st_dev}-{status.st_ino}.json"
    try:
        held = json.loads(entry.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not cached yet, or of no use: the file itself is what counts
        held = {}
    if isinstance(held, dict) and held.get("state") == list(state):
        return str(held["sha256"])
    found = file_sha256(file)
    try:
        write_json(entry, {"file": str(file.resolve()), "state": list(state), "sha256": found})
    except OSError:  # no home to write to; the next process reads the file again
        return found
    return found


def _without_state(serialized: str) -> str:
    """A serialised tokenizer without what its last call left behind."""
    content = json.loads(serialized)
    return json.dumps({**content, "truncation": None, "padding": None}, sort_keys=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
