from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alphaquant.config import DEFAULT_MENU, RunConfig
from alphaquant.config.file import load_config, parse_config
from alphaquant.config.recipes import RECIPES, RecipeName, assignments_of
from alphaquant.errors import ConfigError, UserError

ROOT = Path(__file__).parent.parent


def test_assignments_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("allocation: {policy: uniform, target_bits: 3}\n")
    config = load_config(
        path, ["allocation.target_bits=4.5", "evaluation.tasks=[]", "model.path=x"]
    )
    assert config.allocation.policy == "uniform"
    assert config.allocation.target_bits == 4.5
    assert config.evaluation.tasks == ()
    assert config.model.path == "x"


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4_000_000_000), ("4GiB", 4 << 30), ("1.5 GB", 1_500_000_000), ("4096", 4096)],
)
def test_a_memory_limit_is_a_size(text: str, size: int) -> None:
    config = load_config(None, [f"execution.memory_limit={text}"])
    assert config.execution.memory_bytes == size
    again = parse_config(config.model_dump(mode="json"))
    assert again.execution.memory_bytes == size
    assert load_config(None, []).execution.memory_bytes is None


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'allocation\.target_bit'; nearest: target_bits"):
        parse_config({"allocation": {"target_bit": 4}})


def test_unknown_section_lists_the_sections() -> None:
    with pytest.raises(ConfigError, match=r"'alocation'; nearest: allocation.*router"):
        parse_config({"alocation": {}})


def test_unknown_key_of_an_override_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"overrides\.0\.patern'; nearest: pattern"):
        parse_config({"allocation": {"overrides": [{"patern": "x"}]}})


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("allocation.mxfp4_ratio=1.5", "less than or equal to 1"),
        ("allocation.bf16_ratio=-0.1", "greater than or equal to 0"),
        ("allocation.policy=best", "'budget', 'ratio', 'alpha', 'uniform' or 'manual'"),
        ("allocation.formats=[int5]", "int5.*int4"),
        ("allocation.formats=[]", "empty"),
        ("allocation.default.wq=int5", "int5"),
        ("allocation.overrides=[{pattern: x, group_size: 0}]", "0 is not a group size"),
        ("quantization.group_size=0", "0 is not a group size"),
        ("calibration.samples=0", "greater than or equal to 1"),
        ("execution.memory_limit=plenty", "'plenty' is no size of memory.*4GB, 4GiB or 4096MB"),
        ("execution.memory_limit=0", "'0' is no size of memory"),
        ("rotation.kind=spin", "'none' or 'hadamard'"),
        ("rotation.block=1", "greater than or equal to 2"),
        ("export.consumers=[llama.cpp]", "gptqmodel"),
        ("novalue", "section.key=value"),
        ("model.path.deep=1", "Input should be a valid string"),
    ],
)
def test_wrong_value_says_what_is_allowed(assignment: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, [assignment])


def test_ratios_above_one_together_are_an_error() -> None:
    with pytest.raises(ConfigError, match="more than 1"):
        load_config(None, ["allocation.mxfp4_ratio=0.7", "allocation.bf16_ratio=0.7"])


def test_a_quantized_cache_needs_a_checkpoint_that_asks_for_it() -> None:
    with pytest.raises(ConfigError, match=r"kv_cache=fp8 is written by format=compressed-tensors"):
        parse_config({"export": {"kv_cache": "fp8"}})


@pytest.mark.parametrize(
    ("export", "allocation", "message"),
    [
        ("gptq", {"default": {"aq": "int8"}}, "gptq checkpoints ask for no activation format"),
        (
            "compressed-tensors",
            {"overrides": [{"pattern": "*", "aq": "nvfp4"}]},
            "no checkpoint asks for activations as nvfp4",
        ),
    ],
)
def test_activations_that_a_checkpoint_cannot_ask_for_are_refused_at_once(
    export: str, allocation: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"export": {"format": export}, "allocation": allocation})
    parse_config({"export": {"format": "dense"}, "allocation": allocation})
    kept = {"default": {"aq": "bf16"}}
    parse_config({"export": {"format": export}, "allocation": kept})


def test_broken_yaml_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(path)
    path.write_text("- 1")
    with pytest.raises(ConfigError, match="holds list"):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("value", "expected"), [("true", "hessian"), ("false", "none"), ("mse", "mse")]
)
def test_scale_search_takes_switches(value: str, expected: str) -> None:
    config = load_config(None, [f"quantization.scale_search={value}"])
    assert config.quantization.scale_search == expected


def test_every_setting_is_described() -> None:
    for name, section in RunConfig.model_fields.items():
        fields = section.annotation.model_fields  # type: ignore[union-attr]
        undocumented = [key for key, field in fields.items() if not field.description]
        assert not undocumented, f"{name}: {undocumented}"


RUN_CONFIGS = [
    path
    for path in sorted((ROOT / "deployments").glob("*.yaml"))
    if path.read_text().startswith("model:") or "\nmodel:" in path.read_text()
]


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda path: path.stem)
def test_shipped_run_configs_load(path: Path) -> None:
    assert load_config(path).model.path


def test_defaults_of_the_readme_sections_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in RunConfig.model_fields:
        assert f"| `{name}`" in text, f"README.md does not mention config section {name}"


def test_the_menu_nobody_chose_is_what_the_export_can_store() -> None:
    gptq = parse_config({"export": {"format": "gptq"}})
    assert gptq.allocation.formats == ("int2", "int3", "int4", "int8", "bf16")
    assert parse_config({}).allocation.formats == DEFAULT_MENU
    served = parse_config({"export": {"format": "compressed-tensors", "consumers": ["vllm"]}})
    assert set(DEFAULT_MENU) - set(served.allocation.formats) == {"mxfp6"}
    nowhere = {"export": {"format": "gptq", "consumers": ["transformers", "vllm"]}}
    assert parse_config(nowhere).allocation.formats == gptq.allocation.formats
    chosen = {"export": {"format": "gptq"}, "allocation": {"formats": ["int4", "mxfp4"]}}
    assert parse_config(chosen).allocation.formats == ("int4", "mxfp4")
    again = RunConfig.model_validate(gptq.model_dump(mode="json"))
    assert again == gptq


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fills_in_what_nobody_says(name: RecipeName, tmp_path: Path) -> None:
    alone = load_config(None, [], name)
    spelt = [f"{key}={value}" for key, value in assignments_of(name).items()]
    assert alone == load_config(None, spelt)
    path = tmp_path / "run.yaml"
    path.write_text(f"recipe: {name}\nrotation: {{seed: 3}}\n")
    said = load_config(path, ["rotation.kind=none", "calibration.samples=9"])
    assert (said.rotation.kind, said.rotation.seed, said.calibration.samples) == ("none", 3, 9)
    assert said.quantization == alone.quantization
    assert said.calibration.generated == alone.calibration.generated


def test_recipes_differ_and_the_fast_one_is_what_is_there_without_one(tmp_path: Path) -> None:
    fast, balanced, best = (load_config(None, [], name) for name in RECIPES)
    assert fast == RunConfig()
    assert balanced.quantization.tune == "none"
    assert best == load_config(None, ["quantization.tune=block"], "balanced")
    path = tmp_path / "run.yaml"
    path.write_text("recipe: balanced\n")
    assert load_config(path) == balanced
    assert load_config(path, [], "best") == best, "an option wins over the file"


def test_a_wrong_recipe_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("recipe: bets\n")
    with pytest.raises(
        ConfigError, match="'bets' is not known; nearest: best; allowed: fast, balanced, best"
    ):
        load_config(path)
    path.write_text("recipe: best\nquantization: 3\n")
    with pytest.raises(ConfigError, match="'quantization'"):
        load_config(path)
    path.write_text("recipes: best\n")
    with pytest.raises(ConfigError, match="'recipes'; nearest: recipe"):
        load_config(path)
    path.write_text("recipe: [best]\n")
    with pytest.raises(ConfigError, match="allowed: fast, balanced, best"):
        load_config(path)
