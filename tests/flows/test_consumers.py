"""A checkpoint that would not load where it must ends a run before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alphaquant.config import AllocationConfig, ExportConfig, ModelConfig, QuantizationConfig
from alphaquant.errors import PlanError
from alphaquant.models.resolve import resolve_model
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.stage import run_stage
from tasks.allocate import allocate
from tests.flows.conftest import Cli

_VLLM = (
    "--set", "export.format=compressed-tensors",
    "--set", "export.consumers=[vllm]",
    "--set", "allocation.policy=manual",
    "--set", "quantization.group_size=16",
)  # fmt: skip
_BROKEN = json.dumps([{"pattern": "*.q_proj", "wq": "int8"}])


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_a_broken_plan_ends_with_2_and_writes_nothing(cli: Cli, verb: str, tmp_path: Path) -> None:
    ending = cli(
        verb, "--model", "model", *_VLLM,
        "--set", "allocation.default.wq=int4",
        "--set", f"allocation.overrides={_BROKEN}",
    )  # fmt: skip
    assert ending.status == 2
    assert "vllm: q, k and v of block 0 are one kernel" in ending.stderr
    assert "Use int8-g16 for all of them" in ending.stderr
    assert "Traceback" not in ending.stderr
    assert not (tmp_path / "artifacts").exists()
    assert not (tmp_path / "runs").exists()


def test_a_consumer_that_loads_no_format_of_the_menu_is_told_instead_of_the_budget(
    cli: Cli,
) -> None:
    asked = ("--set", "export.format=gptq", "--set", "export.consumers=[transformers]")
    ending = cli("plan", "--model", "model", *asked)
    assert ending.status == 2
    assert "transformers: found int2-g128; allowed" in ending.stderr
    assert "export.format=compressed-tensors" in ending.stderr
    assert "target_bits" not in ending.stderr


def test_plan_tells_the_checkpoint(cli: Cli) -> None:
    sound = ("plan", "--model", "model", *_VLLM, "--set", "allocation.default.wq=int4")
    found = cli(*sound, "--json").json["checkpoint"]
    assert found["consumers"] == ["vllm"]
    assert 5 < found["bits_per_weight"] < 12  # small matrices: their shapes are stored too
    assert found["bytes"] > 1000
    assert "nothing speaks against vllm" in " ".join(cli(*sound).stdout.split())
    unknown = cli("plan", "--model", "model", "--json").json["checkpoint"]
    assert (unknown["format"], unknown["bytes"]) == ("dense", None)


@pytest.mark.parametrize(
    ("wq", "consumers", "needs", "said"),
    [
        ("int4", "transformers", "nothing", "against transformers."),
        ("int4-asym", "transformers", "alphaquant.hf", "loads it after `import alphaquant.hf`."),
        ("int4-asym", "vllm", "alphaquant.hf", "against vllm."),
    ],
)
def test_plan_tells_what_transformers_needs(
    wq: str, consumers: str, needs: str, said: str, cli: Cli
) -> None:
    asked = (*_VLLM, "--set", f"export.consumers=[{consumers}]")
    sound = ("plan", "--model", "model", *asked, "--set", f"allocation.default.wq={wq}")
    assert cli(*sound, "--json").json["checkpoint"]["transformers_needs"] == needs
    assert said in " ".join(cli(*sound).stdout.split())


def test_a_chosen_plan_is_looked_at_before_it_is_quantized(tmp_path: Path, cli: Cli) -> None:
    """What no policy could tell before is told by the stage that chooses."""
    inputs = {
        "model": resolve_model(ModelConfig(path=str(tmp_path / "model"))),
        "allocation": AllocationConfig.model_validate(
            {
                "policy": "manual",
                "default": {"wq": "int4"},
                "overrides": [{"pattern": "*.up_proj", "wq": "int8"}],
            }
        ),
        "quantization": QuantizationConfig(group_size=16),
        "export": ExportConfig(format="compressed-tensors", consumers=("vllm",)),
        "alpha": None,
        "sensitivity": None,
    }
    with pytest.raises(PlanError, match="vllm: gate and up of block 0 are one kernel"):
        run_stage(allocate, ArtifactStore(tmp_path / "store"), inputs)
