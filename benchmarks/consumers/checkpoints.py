"""The checkpoints that consumers are given: small random models, rounded to nearest, exported whatever our check says."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.config import ExportConfig, QuantizationConfig
from alphaquant.export.consumers import plan_needs, violations
from alphaquant.export.dense import export_dense
from alphaquant.export.group_rules import Violation
from alphaquant.export.packed import export_packed
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.stock import Need
from benchmarks.consumers.plans import MODELS, Case
from tests.tiny import make_model

_NEAREST = QuantizationConfig(method="rtn", scale_search="none")


@dataclass(frozen=True, slots=True)
class Made:
    """A checkpoint of a case, the dense one of the same values, and what our check says."""

    case: Case
    packed: Path
    dense: Path
    violations: tuple[Violation, ...]
    quantized: int
    """Number of linears that are not kept."""
    needs: Need = "nothing"
    """What plain transformers is said to need, where it is the consumer."""

    @property
    def rules(self) -> list[str]:
        """Why the consumer is said not to load the checkpoint as it stands; empty: it is accepted."""
        needs = [self.needs] if self.needs != "nothing" else []
        return list(dict.fromkeys([*(found.rule for found in self.violations), *needs]))


def make(case: Case, root: Path) -> Made:
    """Write both checkpoints of a case below `root`; the packed one is forced."""
    kind, changes = MODELS[case.model]
    source = root / "models" / case.model
    if not source.is_dir():
        make_model(source, kind, **changes)
    checkpoint = Checkpoint(source)
    plan = case.plan(checkpoint.plannable)
    folder = root / f"{case.consumer}-{case.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folders = {name: folder / name for name in ("blocks", "dense", "packed")}
    for each in folders.values():
        each.mkdir(parents=True)
    blocks = quantize_blocks(
        checkpoint,
        plan,
        None,
        _NEAREST,
        device=torch.device("cpu"),
        batch_size=1,
        blocks=FreshBlocks(folders["blocks"]),
    )
    export_dense(checkpoint, blocks, {}, folders["dense"])
    export = ExportConfig.model_validate(
        {
            "format": case.export,
            "consumers": case.asked,
            "tensor_parallel": case.tensor_parallel,
        }
    )
    if export.format == "dense":
        raise ValueError(f"{case.name} has nothing to pack")
    export_packed(
        checkpoint,
        blocks,
        {},
        folders["packed"],
        export.format,
        activations=plan.activations,
        module_names=case.module_names,
    )
    shutil.rmtree(folders["blocks"])
    found = violations(plan, checkpoint.architecture, export)
    quantized = sum(scheme.format != "bf16" for scheme in plan.schemes.values())
    alone = case.asked == ("transformers",) and not found
    needs: Need = plan_needs(plan, checkpoint.architecture, export) if alone else "nothing"
    return Made(case, folders["packed"], folders["dense"], tuple(found), quantized, needs)
