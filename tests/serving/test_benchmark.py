"""`alphaquant benchmark`: fresh processes, honest words, and reasons for what is not measured.

GPTQModel and vLLM are stand-ins here, modules that answer as their documented API does: what is tested is our side.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from alphaquant.errors import ConfigError, ModelError
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.reporting.figures_serving import serving
from alphaquant.serving.consumers import CONSUMERS, obstacle, pythons
from alphaquant.serving.driver import computed_with, prompts
from alphaquant.serving.measure import Contender, summaries
from flows.cli import main
from flows.commands.benchmark import FIGURE, TABLE, find_contenders
from tests.export.test_packed import SIZES, exported
from tests.flows.server_command import none_running, until
from tests.tiny import make_model

SHORT = ("--prompt-tokens", "8", "--new-tokens", "3", "--repeats", "1", "--json")
VLLM = """
import time
class SamplingParams:
    def __init__(self, *, max_tokens, temperature, ignore_eos, detokenize):
        self.max_tokens = max_tokens
class _Config:
    quantization, dtype = "compressed-tensors", "torch.bfloat16"
    def get_vocab_size(self): return 250
class LLM:
    def __init__(self, *, model, max_model_len, enable_prefix_caching, **options):
        assert max_model_len == 12 and not enable_prefix_caching
        self.llm_engine = type("Engine", (), {"model_config": _Config()})
    def generate(self, prompts, settings, use_tqdm):
        assert [len(p["prompt_token_ids"]) for p in prompts] == [8, 8]
        time.sleep(0.2 * settings.max_tokens)
"""
GPTQMODEL = """
import torch
class QuantLinear(torch.nn.Linear):
    def __init__(self, width):
        super().__init__(width, width)
        self.register_buffer("qweight", torch.zeros(width, width, dtype=torch.int32))
class _Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.inner = torch.nn.Embedding(250, 8), QuantLinear(8)
    def get_input_embeddings(self): return self.table
    def forward(self, input_ids, past_key_values=None, use_cache=True):
        logits = self.inner(self.table(input_ids))
        return type("Out", (), {"logits": logits, "past_key_values": None})
class GPTQModel:
    @staticmethod
    def load(model_id_or_path, device, trust_remote_code):
        return type("Loaded", (), {"model": _Model().to(device)})
"""


def environment(folder: Path, module: str, source: str) -> Path:
    """An executable that finds a stand-in besides what this Python finds."""
    folder.mkdir()
    (folder / f"{module}.py").write_text(source)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`original`, `compressed-tensors` and `gptq` folders of one tiny model."""
    root = tmp_path_factory.mktemp("models")
    from alphaquant.models.checkpoint import Checkpoint

    checkpoint = Checkpoint(make_model(root / "original", "llama", **SIZES))
    for export in ("compressed-tensors", "gptq"):
        _, packed = exported(checkpoint, lambda spec: "int4-g32", export, root / f"of-{export}")
        packed.rename(root / export)
    return root


Benchmark = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def benchmark(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    """The verb; its status, what it answered and what it said."""

    def call(*arguments: object) -> tuple[int, Any, str]:
        capfd.readouterr()
        status = main(["benchmark", *map(str, arguments)])
        out, err = capfd.readouterr()
        return status, json.loads(out) if out.startswith("{") else out, err

    return call


def test_decoded_weights_are_called_so(models: Path, benchmark: Benchmark, tmp_path: Path) -> None:
    status, answer, _ = benchmark(
        models / "compressed-tensors",
        "--consumers",
        "transformers,gptqmodel",
        "--out",
        tmp_path / "out",
        *SHORT,
    )
    assert status == 0
    (row,) = answer["rows"]
    assert (row["model"], row["consumer"]) == ("checkpoint", "transformers")
    assert row["computed_with"] == "weights decoded to bfloat16"
    stored = (models / "compressed-tensors" / "model.safetensors").stat().st_size
    assert row["bytes_on_disk"] == stored
    assert row["peak_bytes"]["median"] > 50e6
    assert all(row[name]["median"] > 0 for name in ("load_seconds", "prefill", "decode"))
    assert row["versions"]["transformers"]
    table = pd.read_parquet(tmp_path / "out" / TABLE)
    assert table["decode"].tolist() == [row["decode"]["median"]]
    assert (tmp_path / "out" / FIGURE).read_bytes().startswith(b"\x89PNG")
    (left,) = answer["not_measured"]
    assert left["consumer"] == "gptqmodel"


@pytest.mark.slow
def test_original_and_checkpoint_in_every_consumer_that_is_here(
    models: Path, benchmark: Benchmark
) -> None:
    _, answer, _ = benchmark(
        models / "gptq",
        "--original",
        models / "original",
        "--consumers",
        "transformers,alphaquant",
        *SHORT,
    )
    found = {(row["model"], row["consumer"]): row["computed_with"] for row in answer["rows"]}
    assert found == {
        ("original", "transformers"): "bfloat16 weights",
        ("original", "alphaquant"): "bfloat16 weights",
        ("checkpoint", "alphaquant"): "weights decoded to bfloat16",
    }
    (left,) = answer["not_measured"]
    assert "transformers" in left["consumer"]
    assert "does not read gptq checkpoints" in left["reason"]


def test_a_stand_in_for_vllm_is_asked_as_vllm_is(
    models: Path, benchmark: Benchmark, tmp_path: Path
) -> None:
    python = environment(tmp_path / "environment", "vllm", VLLM)
    status, answer, _ = benchmark(
        models / "compressed-tensors",
        "--consumers",
        "vllm",
        "--python",
        f"vllm={python}",
        "--batch-size",
        2,
        *SHORT,
    )
    assert status == 0
    (row,) = answer["rows"]
    assert row["computed_with"] == "vLLM's kernels for compressed-tensors"
    # a step takes 0.2 seconds: 16 tokens are read in one, 6 written in three
    assert row["prefill"]["median"] == pytest.approx(16 / 0.2, rel=0.3)
    assert row["decode"]["median"] == pytest.approx(6 / 0.6, rel=0.3)


def test_a_stand_in_for_gptqmodel_computes_with_packed_weights(
    models: Path, benchmark: Benchmark, tmp_path: Path
) -> None:
    python = environment(tmp_path / "environment", "gptqmodel", GPTQMODEL)
    choice = ("--consumers", "gptqmodel", "--python", f"gptqmodel={python}")
    _, answer, _ = benchmark(models / "gptq", *choice, *SHORT)
    assert answer["rows"][0]["computed_with"] == "packed weights, QuantLinear"


def test_a_consumer_that_fails_is_listed_with_its_last_words(
    models: Path, benchmark: Benchmark, tmp_path: Path
) -> None:
    python = environment(tmp_path / "environment", "gptqmodel", "class GPTQModel: pass")
    choice = ("--consumers", "gptqmodel", "--python", f"gptqmodel={python}")
    status, answer, said = benchmark(models / "gptq", *choice, *SHORT)
    assert status == 1
    assert "nothing could be measured" in said
    assert answer["rows"] == []
    assert "failed: AttributeError" in answer["not_measured"][0]["reason"]


def test_a_consumer_that_hangs_is_ended_with_all_that_it_started(
    models: Path, benchmark: Benchmark, tmp_path: Path
) -> None:
    hanging = f"""
import pathlib, subprocess, time
child = subprocess.Popen(["sleep", "600"])
pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
time.sleep(600)
"""
    python = environment(tmp_path / "environment", "gptqmodel", hanging)
    choice = ("--consumers", "gptqmodel", "--python", f"gptqmodel={python}", "--limit", 3)
    _, answer, _ = benchmark(models / "gptq", *choice, *SHORT)
    assert "took longer than 3 s; give it more with --limit" in answer["not_measured"][0]["reason"]
    child = int((tmp_path / "child").read_text())
    until(lambda: none_running([child]))  # a process that is killed ends when it is its turn


@pytest.mark.slow
def test_a_type_without_a_row_is_measured_too(benchmark: Benchmark, tmp_path: Path) -> None:
    source = Checkpoint(make_model(tmp_path / "model", "olmo2", **SIZES), architecture="generic")
    _, packed = exported(source, lambda spec: "int4-g32", "compressed-tensors", tmp_path)
    choice = (packed, "--consumers", "alphaquant", *SHORT)
    assert benchmark(*choice)[0] == 1
    _, answer, _ = benchmark(*choice, "--architecture", "generic")
    assert answer["rows"][0]["computed_with"] == "weights decoded to bfloat16"


def test_a_run_folder_names_checkpoint_and_original(models: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint").symlink_to(models / "gptq")
    summary = {"model": "x", "original": str(models / "original")}
    (run / "summary.json").write_text(json.dumps(summary))
    (original, checkpoint), own = find_contenders(str(run), None)
    assert own == run
    assert (original.label, original.storage) == ("original", "dense")
    assert (checkpoint.label, checkpoint.storage) == ("checkpoint", "gptq")
    (run / "summary.json").write_text('{"model": "x"}')
    with pytest.raises(ConfigError, match="name it with --original"):
        find_contenders(str(run), None)
    with pytest.raises(ModelError, match=r"no config\.json"):
        find_contenders(str(tmp_path), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--consumers", "ollama"), "'ollama' is not known; allowed: transformers"),
        (("--consumers", ","), "names nobody"),
        (("--python", "vllm"), "is not CONSUMER=EXECUTABLE"),
        (("--python", "vllm=/none/python"), "does not exist"),
        (("--new-tokens", "127"), "no room for a prompt before 127 new tokens"),
        (("--original", "nowhere/at/all"), "does not exist"),
    ],
)
def test_wrong_input_is_said_before_anything_runs(
    models: Path, benchmark: Benchmark, arguments: tuple[str, ...], message: str
) -> None:
    status, _, said = benchmark(models / "gptq", *arguments)
    assert (status, message in said) == (2, True), said


def test_obstacles_name_the_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "environment"
    python = environment(folder, "vllm", "")
    (folder / "gptqmodel").mkdir()  # a folder of that name is no package
    assert obstacle(CONSUMERS["vllm"], "quark", python) is None
    assert "pip install gptqmodel" in str(obstacle(CONSUMERS["gptqmodel"], "gptq", python))
    assert "only dense, compressed" in str(obstacle(CONSUMERS["transformers"], "gptq", None))
    for storage in ("awq", "fp8"):
        assert obstacle(CONSUMERS["alphaquant"], storage, None) is None
    assert pythons([f"vllm={python}"]) == {"vllm": python}


def test_summaries_are_medians_with_their_range() -> None:
    same = {
        "model": "original",
        "consumer": "transformers",
        "storage": "dense",
        "computed_with": "bfloat16 weights",
        "device": "cpu",
        "bytes_on_disk": 7,
        "device_peak_bytes": None,
        "versions": "{}",
    }
    rows = [
        same | {"load_seconds": s, "peak_bytes": 10, "prefill": 1.0, "decode": d}
        for s, d in ((3.0, 5.0), (1.0, 9.0), (2.0, 6.0))
    ]
    (entry,) = summaries(rows)
    assert entry["load_seconds"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert entry["decode"] == {"median": 6.0, "low": 5.0, "high": 9.0}
    assert entry["device_peak_bytes"] is None
    assert entry["repeats"] == 3
    labels = [label.get_text() for label in serving([entry]).axes[0].get_yticklabels()]
    assert labels == ["original, transformers\nbfloat16 weights"]


def test_what_was_computed_with_is_told_by_the_tensors() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4).bfloat16(), nn.Linear(4, 90).half())
    assert computed_with(model, packed=False) == "float16 weights"
    assert computed_with(model, packed=True) == "weights decoded to float16"
    model[2].register_buffer("mask", torch.ones(4, 4, dtype=torch.bool))
    assert computed_with(model, packed=True) == "weights decoded to float16"
    model[2].quantization_scheme = type("Scheme", (), {"input_activations": {"num_bits": 8}})()
    assert computed_with(model, packed=True).endswith(", inputs rounded in software")
    model[1].weight = nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
    assert computed_with(model, packed=True) == "packed weights, Linear"


def test_everybody_reads_the_same_prompts(models: Path) -> None:
    job = {"batch_size": 2, "prompt_tokens": 5}
    assert prompts(job, 250, 0) == prompts(job, 250, 0) != prompts(job, 250, 1)
    assert Contender.of("original", models / "original").context == 128
