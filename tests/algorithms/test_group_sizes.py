"""Group sizes on the menu: chosen, stored, counted and quantized like any other scheme."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.algorithms.quantized_block import load_block
from alphaquant.algorithms.sensitivity import sensitivity_table
from alphaquant.config import AllocationConfig, QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.plan import QuantPlan
from tests.specs import moe_specs
from tests.tiny import make_model

CPU = torch.device("cpu")
ROUNDING = QuantizationConfig(group_size=32)


def test_group_sizes_of_one_format_compete_for_bits(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe"))
    tokens = torch.randint(256, (8, 32), generator=torch.Generator().manual_seed(0))
    config = AllocationConfig(
        formats=("int4-g8", "int4", "int4-g16"),
        target_bits=5.4,
        granularity="linear",
        skip_router=False,
    )
    schemes = [Scheme.parse(name, group_size=32) for name in config.formats]
    losses = sensitivity_table(checkpoint, tokens, schemes, device=CPU)
    by_group = losses.groupby("format")[["predicted_loss", "bits_per_weight"]].sum()
    assert by_group["predicted_loss"].idxmin() == by_group["bits_per_weight"].idxmax() == "int4-g8"
    plan = allocate(checkpoint.specs, config, ROUNDING, None, losses)
    assert {str(scheme) for scheme in plan.schemes.values()} == {"int4-g8", "int4-g16", "int4-g32"}
    assert 5.35 < plan.bits_per_weight <= 5.4

    plan.save(tmp_path)
    again = QuantPlan.load(tmp_path, checkpoint.specs)
    assert again.schemes == plan.schemes
    out = tmp_path / "blocks"
    out.mkdir()
    folders = quantize_blocks(
        checkpoint, again, tokens, ROUNDING, device=CPU, batch_size=8, blocks=FreshBlocks(out)
    )
    found = {name: w.scheme for folder in folders for name, w in load_block(folder).items()}
    assert found == dict(plan.schemes)


@pytest.mark.parametrize("name", ["int4-g32", "int4-g128", "fp4-g64"])
def test_a_group_size_is_part_of_the_seeds_form(name: str) -> None:
    scheme = Scheme.parse(name)
    specs = [spec for spec in moe_specs() if spec.role == "q"]
    plan = QuantPlan(specs, {spec.name: scheme for spec in specs})
    assert plan.as_seed_config()["default"] == {
        "wq": scheme.format,
        "aq": None,
        "group_size": scheme.group_size,
    }
