"""How stage bodies open what they are given: a model on disk, token windows, trained routers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alphaquant.store.artifacts import ArtifactRef

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from alphaquant.models.checkpoint import Checkpoint
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.stage import Workbench

TOKENS = "tokens.safetensors"
ROUTERS = "routers.safetensors"
ROTATED = "model"
"""Folder of the checkpoint in the artifact of stage rotate."""


def open_model(model: ModelRef) -> Checkpoint:
    """The original model, headers read and checked."""
    return _opened(model.path, model.trust_remote_code, model.architecture)


def open_weights(store: Workbench, model: ModelRef | ArtifactRef) -> Checkpoint:
    """The model whose weights are quantized: the original, or what stage rotate made of it."""
    if isinstance(model, ArtifactRef):
        return _opened(store.path(model) / ROTATED)
    return open_model(model)


def _opened(
    path: Path | str,
    trust_remote_code: bool = False,
    architecture: Literal["auto", "generic"] = "auto",
) -> Checkpoint:
    from alphaquant.models.checkpoint import Checkpoint
    from alphaquant.models.device import suit_threads

    checkpoint = Checkpoint(path, trust_remote_code, architecture)
    suit_threads(checkpoint.parameters)
    return checkpoint


def load_tokens(store: Workbench, tokens: ArtifactRef) -> Tensor:
    """Calibration windows, int64 [samples, length]."""
    from safetensors.torch import load_file

    return load_file(store.path(tokens) / TOKENS)["tokens"]


def load_routers(store: Workbench, routers: ArtifactRef | None) -> dict[str, Tensor]:
    """Trained routers `[experts, hidden]` by linear name; empty when none were trained."""
    from safetensors.torch import load_file

    return load_file(store.path(routers) / ROUTERS) if routers else {}


def read_table(store: Workbench, made: ArtifactRef | None, name: str) -> pd.DataFrame | None:
    """The table `<name>.parquet` of an artifact; None without one."""
    import pandas as pd

    return pd.read_parquet(store.path(made) / f"{name}.parquet") if made else None
