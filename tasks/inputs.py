"""How stage bodies open what they are given: a model on disk, token windows, trained routers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from alphaquant.models.checkpoint import Checkpoint
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.artifacts import ArtifactRef
    from alphaquant.store.stage import Workbench

TOKENS = "tokens.safetensors"
ROUTERS = "routers.safetensors"


def open_model(model: ModelRef) -> Checkpoint:
    """The original model, headers read and checked."""
    from alphaquant.models.checkpoint import Checkpoint
    from alphaquant.models.device import suit_threads

    checkpoint = Checkpoint(model.path, model.trust_remote_code)
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
