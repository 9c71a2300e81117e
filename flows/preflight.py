"""Checks made before anything is written: each finds a mistake that would show hours later."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphaquant.config import RunConfig
from alphaquant.errors import ConfigError, DataError, nearest
from alphaquant.models.architecture import Architecture
from alphaquant.models.fused import Layout, check_whole, layout_of
from alphaquant.models.resolve import ModelRef, read_config, resolve_model
from alphaquant.models.rows import architecture_of
from alphaquant.models.tensors import tensor_index
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.whole import check_writable
from flows.dag import STAGE_NAMES, Stages, needs_calibration, pipeline, quantize_only
from flows.preflight_memory import check_memory
from flows.publish import check_target
from flows.runner import Request

if TYPE_CHECKING:
    from alphaquant.export.size import Size
    from alphaquant.models.stock import Need

_FILE_TYPES = (".txt", ".jsonl", ".parquet", ".yaml", ".yml")


def open_store(folder: Path | str | None = None) -> ArtifactStore:
    """The store at `folder`, else at ALPHAQUANT_STORE, else at `artifacts/`; a URL names a remote one.

    Nothing is asked of the network yet.
    """
    place = str(folder or os.environ.get("ALPHAQUANT_STORE") or "artifacts")
    if "://" not in place:
        return ArtifactStore(place)
    from alphaquant.store.remote import RemoteStore

    return RemoteStore(place)


def prepare(
    config: RunConfig,
    store: ArtifactStore,
    out: Path | None = None,
    force: tuple[str, ...] = (),
    stages: Stages = pipeline,
    *,
    dry: bool = False,
) -> Request:
    """Check everything a run was asked for. Raises UserError for the first thing that is wrong.

    A `dry` run needs no device, and so no torch.
    """
    check_force(force)
    check_places(store, out)
    check_files(config, calibrated=stages is not quantize_only or needs_calibration(config))
    model = find_model(config, store)
    check_plan(config, model)
    check_consumers(config, model)
    check_rotation(config, model)
    check_windows(config, stages)
    if not dry and config.execution.where == "here":
        check_device(config.execution.device)
        check_memory(config, model, stages)
    return Request(config, model, store, out, force, stages)


def check_windows(config: RunConfig, stages: Stages) -> None:
    """Raise ConfigError where one calibration window is to teach and to judge, or to be two halves."""
    rounding = config.quantization
    learns = {
        "quantization.tune": rounding.tune if rounding.tune != "none" else None,
        "quantization.correction": rounding.correction if rounding.corrects else None,
        "router.method": config.router.method
        if stages is not quantize_only and config.router.method != "none"
        else None,
    }
    for key, value in learns.items():
        if value and config.calibration.samples < 2:
            raise ConfigError(
                f"{key}={value} judges by other calibration windows than it learns from, and calibration.samples is "
                f"{config.calibration.samples}. Use at least 2, better 64."
            )


def find_model(config: RunConfig, store: ArtifactStore, *, packed: bool = False) -> ModelRef:
    """The model that is meant, quantized only where `packed`; remembers file digests in a store that exists already."""
    cache = store.root / "cache" / "models.json" if store.root.is_dir() else None
    return resolve_model(config.model, cache, packed=packed)


def check_places(store: ArtifactStore, out: Path | None) -> None:
    """Raise UserError unless the store and the output folder may be written."""
    here = store.location == str(store.root)
    check_writable(store.root, "--store" if here else "ALPHAQUANT_CACHE")
    store.reach()
    if out is None:
        check_writable(Path("runs"), "--out")
    else:
        check_target(out)


def check_force(stages: tuple[str, ...], option: str = "--force") -> None:
    """Raise ConfigError for a stage that does not exist."""
    for name in stages:
        if name not in STAGE_NAMES:
            raise ConfigError(
                f"{option} {name!r} is not a stage; nearest: {nearest(name, STAGE_NAMES, 1)}; allowed: "
                f"{', '.join(STAGE_NAMES)}"
            )


def check_files(config: RunConfig, *, calibrated: bool = True) -> None:
    """Raise DataError for a text or task file that is not there."""
    named = {
        "calibration.dataset": [config.calibration.dataset] if calibrated else [],
        "evaluation.dataset": [config.evaluation.dataset],
        "evaluation.tasks": list(config.evaluation.tasks),
    }
    for key, names in named.items():
        for name in names:
            if Path(name).suffix in _FILE_TYPES and not Path(name).expanduser().is_file():
                raise DataError(f"{key}: the file {name} does not exist. Check the path.")


def check_device(name: str) -> None:
    """Raise ConfigError for a device that this machine lacks."""
    if name in ("auto", "cpu"):
        return
    from alphaquant.models.device import compute_device

    compute_device(name)


def check_plan(config: RunConfig, model: ModelRef) -> None:
    """Raise PlanError or FormatError for rules or a checkpoint that cannot be on this model, or a budget below them."""
    from alphaquant.algorithms.allocation_budget import check_reachable
    from alphaquant.algorithms.allocation_groups import BF16, group_costs, group_linears, menu
    from alphaquant.algorithms.allocation_rules import default_scheme, resolve_rules

    architecture, raw, layout = _structure(model)
    specs = architecture.with_head(architecture.linears(raw, layout.shapes), layout.shapes)
    allocation, quantization = config.allocation, config.quantization
    rules = resolve_rules(specs, allocation, quantization)
    quantized = [spec for spec in rules.specs if rules.fixed.get(spec.name) != BF16]
    if allocation.policy in ("uniform", "manual") and (
        default_scheme(allocation, quantization) == BF16
    ):
        quantized = [spec for spec in quantized if spec.name in rules.fixed]
    if config.export.format != "dense":
        check_whole(layout, [spec.name for spec in quantized], config.export.format)
    if allocation.policy not in ("budget", "alpha"):
        return
    options = menu(allocation, quantization)
    groups = group_linears(rules.free, allocation.granularity or "fused")
    smallest = int(group_costs(groups, options).min(axis=1).sum()) if groups else 0
    check_reachable(rules, options, smallest, allocation.target_bits)


def check_consumers(config: RunConfig, model: ModelRef) -> None:
    """Raise PlanError where the checkpoint would not load in export.consumers, as far as can be told before."""
    if config.export.format == "dense":
        return
    from alphaquant.export.consumers import require
    from alphaquant.export.foreseen import foreseen

    architecture, raw, layout = _structure(model)
    specs = architecture.with_head(architecture.linears(raw, layout.shapes), layout.shapes)
    require(foreseen(specs, architecture, config.allocation, config.quantization, config.export))


def foreseen_loading(config: RunConfig, model: ModelRef) -> Need | None:
    """What plain transformers will need to load the checkpoint; None where that is up to the plan to be chosen."""
    from alphaquant.export.foreseen import foreseen_need

    architecture, raw, layout = _structure(model)
    specs = architecture.with_head(architecture.linears(raw, layout.shapes), layout.shapes)
    return foreseen_need(specs, architecture, config.allocation, config.quantization, config.export)


def foreseen_size(config: RunConfig, model: ModelRef) -> Size | None:
    """How large the checkpoint will be; None for a policy that looks at weights first."""
    from alphaquant.export.foreseen import known_plan
    from alphaquant.export.size import checkpoint_size

    architecture, raw, layout = _structure(model)
    specs = architecture.with_head(architecture.linears(raw, layout.shapes), layout.shapes)
    plan = known_plan(specs, config.allocation, config.quantization)
    if plan is None:
        return None
    return checkpoint_size(plan, layout.entries, config.export)


def check_rotation(config: RunConfig, model: ModelRef) -> None:
    """Raise ModelError for a model that a rotation would change, ConfigError for blocks that do not fit."""
    if config.rotation.kind == "none":
        return
    from alphaquant.models.rotatable import turns

    architecture, raw, layout = _structure(model)
    turns(
        architecture,
        raw,
        layout.shapes,
        architecture.linears(raw, layout.shapes),
        config.rotation,
        trust_remote_code=model.trust_remote_code,
    )


def _structure(model: ModelRef) -> tuple[Architecture, dict[str, Any], Layout]:
    """A model's architecture, config.json and tensors, read from headers."""
    folder = Path(model.path)
    raw = read_config(folder)
    architecture = architecture_of(
        raw, model.architecture, trust_remote_code=model.trust_remote_code
    )
    layout = layout_of(architecture, tensor_index(folder), raw)
    return architecture.fitted(layout.shapes), raw, layout
