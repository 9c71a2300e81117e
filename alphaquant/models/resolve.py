"""ModelRef: which model is meant, by the content of its files. Never cached: it looks at what is there now."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from alphaquant.config import ModelConfig
from alphaquant.demo import demo_model_path
from alphaquant.errors import ModelError
from alphaquant.models.fused import layout_of
from alphaquant.models.originals import ORIGINALS
from alphaquant.models.rows import architecture_of
from alphaquant.models.tensors import tensor_index
from alphaquant.store.files import sha256_of, write_json

# what decides a model's behaviour; READMEs and pictures may change without effect
_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py", "*.tiktoken")
FACTS = "alphaquant.json"
"""File of a checkpoint folder that says who made it: nothing that computes reads it, and no digest counts it."""


class ModelRef(BaseModel):
    """A model on disk: its place, a name for people and a digest of its contents."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    path: str
    name: str
    model_type: str
    digest: str
    trust_remote_code: bool = False
    architecture: Literal["auto", "generic"] = "auto"
    source: ModelConfig = ModelConfig()
    """What finds the same model on another machine."""

    def cache_identity(self) -> dict[str, str]:
        """What enters a cache key: the content, not the place, and how it is read."""
        generic = {"architecture": self.architecture} if self.architecture != "auto" else {}
        return {"digest": self.digest} | generic


def resolve_model(
    config: ModelConfig, digest_cache: Path | None = None, *, packed: bool = False
) -> ModelRef:
    """Find a model folder (or fetch a hub id), check it whole from its headers, and digest it.

    `digest_cache` is a JSON file that remembers sha256 sums by size, time and inode. `packed` lets quantized models
    pass, whose tensors are checked when they are decoded. Raises ModelError for a missing, damaged or unsupported
    model.
    """
    folder = model_folder(config)
    raw = read_config(folder)
    architecture = architecture_of(
        raw, config.architecture, trust_remote_code=config.trust_remote_code
    )
    decoded = architecture.reads(raw)
    if not decoded and not packed:
        raise ModelError(
            f"{folder} is already quantized (quantization_config in config.json). Start from the "
            f"original weights; of a packed {architecture.model_type} only "
            f"{' and '.join(ORIGINALS[method].words for method in architecture.decodes)} can be an original."
        )
    index = tensor_index(folder)
    if decoded:
        layout = layout_of(architecture, index, raw)
        architecture.fitted(layout.shapes).linears(raw, layout.shapes)
    name = folder.name if _is_folder(config) else config.path
    return ModelRef(
        path=str(folder),
        name=(name or "demo").replace("/", "--"),
        model_type=architecture.model_type,
        digest=_digest(folder, digest_cache),
        trust_remote_code=config.trust_remote_code,
        architecture=config.architecture,
        source=config.model_copy(update={"path": str(folder)}) if _is_folder(config) else config,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder} has no config.json; it is not a transformers model folder"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} holds no JSON object")
    return raw


def _is_folder(config: ModelConfig) -> bool:
    return config.path is not None and Path(config.path).expanduser().is_dir()


def model_folder(config: ModelConfig) -> Path:
    """Where a model lies; a hub id is downloaded first. Raises ModelError when there is none."""
    if config.path is None:
        return demo_model_path()
    local = Path(config.path).expanduser()
    if local.is_dir():
        return local.resolve()
    if local.exists():
        raise ModelError(f"{local} is a file; give the model's folder")
    looks_like_path = config.path.startswith((".", "/", "~")) or config.path.count("/") != 1
    if looks_like_path:
        raise ModelError(
            f"model folder {config.path!r} does not exist (a hub id looks like owner/name)"
        )
    return _download(config.path, config.revision)


def _download(repository: str, revision: str | None) -> Path:
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(_FILES)))
    except (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        HTTPError,
        OSError,
    ) as error:
        raise ModelError(
            f"{repository!r} is neither a local folder nor reachable on the hub "
            f"({type(error).__name__}). Check the name, the network and HF_HUB_OFFLINE, or give a folder."
        ) from error


def _digest(folder: Path, cache_path: Path | None) -> str:
    cache = _read_cache(cache_path)
    known = dict(cache)
    total = hashlib.sha256()
    for path in _files(folder):
        total.update(f"{path.relative_to(folder).as_posix()}\0{_file_sum(path, cache)}\n".encode())
    if cache != known:
        _write_cache(cache_path, cache)
    return total.hexdigest()


def _files(folder: Path) -> Iterable[Path]:
    found = {path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name != FACTS)


def _file_sum(path: Path, cache: dict[str, list[Any]]) -> str:
    stat = path.stat()
    mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    known = cache.get(str(path))
    if known and known[:3] == mark:
        return str(known[3])
    try:
        digest = _sum_of(path, *mark)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    cache[str(path)] = [*mark, digest]
    return digest


@functools.cache
def _sum_of(path: Path, *_mark: int) -> str:
    """A file's sha256, once per process: comparisons resolve a model many times before there is a store."""
    return sha256_of(path)


def _read_cache(path: Path | None) -> dict[str, list[Any]]:
    if path is None or not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a torn cache only costs hashing again
    return loaded if isinstance(loaded, dict) else {}


def _write_cache(path: Path | None, cache: dict[str, list[Any]]) -> None:
    if path is None:
        return
    with contextlib.suppress(OSError):  # on a full disk the digests are not remembered
        write_json(path, cache)
