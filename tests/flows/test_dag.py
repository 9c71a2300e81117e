"""The DAG: which stage gets what, kept as a picture that a change must redraw."""

from __future__ import annotations

from typing import Any

import flows.dag
import tasks.alpha
from alphaquant.config import RunConfig
from alphaquant.config.file import parse_config
from alphaquant.models.resolve import ModelRef
from alphaquant.store.stage import Stage
from flows.dag import STAGE_NAMES, pipeline, quantize_and_measure, quantize_only

MODEL = ModelRef(path="/models/toy", name="toy", model_type="olmoe", digest="0" * 64)

WHOLE = parse_config(
    {
        "calibration": {"balance": 2, "generated": 0.5},
        "router": {"method": "kl"},
        "comparison": {"random": 1},
        "rotation": {"kind": "hadamard"},
        "quantization": {"tune": "model"},
    }
)


class Recorder:
    """Calls stages by writing down what they were given."""

    def __init__(self) -> None:
        self.given: dict[str, set[str]] = {}
        self.skipped: dict[str, str] = {}

    def __call__(self, stage: Stage, **inputs: Any) -> str:
        self.given[stage.name] = set(_artifacts(inputs))
        return f"<{stage.name}>"

    def skip(self, stage: Stage, reason: str, **inputs: Any) -> None:
        """Note it."""
        self.skipped[stage.name] = reason


def _artifacts(value: Any) -> list[str]:
    if isinstance(value, str) and value.startswith("<"):
        return [value.strip("<>")]
    parts = value.values() if isinstance(value, dict) else ()
    return [name for part in parts for name in _artifacts(part)]


def _drawn(config: RunConfig, stages: Any = pipeline) -> Recorder:
    recorder = Recorder()
    stages(config, MODEL, recorder)
    return recorder


def test_the_whole_pipeline() -> None:
    recorder = _drawn(WHOLE)
    assert recorder.given == {
        "calibration": set(),
        "generate": {"calibration"},
        "balance": {"generate"},
        "baseline": set(),
        "answers": set(),
        "alpha": set(),
        "rotate": set(),
        "sensitivity": {"balance", "rotate"},
        "allocate": {"alpha", "sensitivity"},
        "quantize": {"balance", "rotate", "allocate"},
        "tune": {"balance", "rotate", "quantize"},
        "router": {"balance", "rotate", "allocate", "tune"},
        "export": {"allocate", "rotate", "tune", "router"},
        "evaluate": {"allocate", "export", "baseline", "answers"},
        "compare": {"balance", "rotate", "allocate", "quantize", "baseline"},
        "analyze": {*STAGE_NAMES}
        - {"calibration", "generate", "balance", "baseline", "answers", "export", "analyze"},
    }


def test_stages_that_nobody_asked_for_are_skipped_and_say_why() -> None:
    recorder = _drawn(RunConfig())
    assert recorder.skipped == {
        "generate": "calibration.generated is 0",
        "balance": "calibration.balance is 1",
        "rotate": "rotation.kind is none",
        "tune": "quantization.tune is not model",
        "router": "router.method is none",
        "compare": "comparison names no rival plans",
    }
    assert recorder.given["export"] == {"allocate", "quantize"}
    assert recorder.given["quantize"] == {"calibration", "allocate"}


def test_an_original_that_nothing_is_held_against_is_not_evaluated() -> None:
    nothing = {"perplexity": False, "tasks": []}
    recorder = _drawn(parse_config({"evaluation": nothing}))
    assert recorder.skipped["baseline"] == "evaluation.perplexity is false"
    assert recorder.skipped["answers"] == "evaluation.tasks is empty"
    rivals = _drawn(parse_config({"evaluation": nothing, "comparison": {"random": 1}}))
    assert "baseline" in rivals.given["compare"]
    assert "baseline" not in rivals.given["evaluate"]


def test_the_short_way_scores_nothing() -> None:
    recorder = _drawn(RunConfig(), quantize_only)
    assert list(recorder.given) == ["calibration", "allocate", "quantize", "export"]
    recorder = _drawn(WHOLE, quantize_only)
    assert list(recorder.given) == [
        "calibration", "generate", "balance", "allocate", "rotate", "quantize", "tune", "export"
    ]  # fmt: skip


def test_a_point_of_a_comparison_is_quantized_and_measured() -> None:
    recorder = _drawn(RunConfig(), quantize_and_measure)
    assert recorder.given == {
        "calibration": set(),
        "baseline": set(),
        "allocate": set(),
        "quantize": {"calibration", "allocate"},
        "compare": {"calibration", "allocate", "quantize", "baseline"},
    }
    blind = _drawn(parse_config({"quantization": {"method": "rtn"}}), quantize_and_measure)
    assert blind.given["quantize"] == {"allocate"}
    whole = _drawn(WHOLE, quantize_and_measure)
    assert whole.given["compare"] == {"balance", "rotate", "allocate", "tune", "baseline"}


def test_without_a_rotation_no_stage_is_told_of_one() -> None:
    """Its name in a key would make every result of unrotated models a new one."""
    inputs: dict[str, set[str]] = {}

    class Keeper(Recorder):
        def __call__(self, stage: Stage, **given: Any) -> str:
            inputs[stage.name] = {*given, *given.get("tables", ())}
            return super().__call__(stage, **given)

    pipeline(parse_config({"comparison": {"random": 1}}), MODEL, Keeper())
    assert "original" not in inputs["compare"]
    assert "rotation" not in inputs["analyze"]
    pipeline(WHOLE, MODEL, Keeper())
    assert "original" in inputs["compare"]
    assert "rotation" in inputs["analyze"]


def test_rounding_to_nearest_needs_no_calibration() -> None:
    recorder = _drawn(parse_config({"quantization": {"method": "rtn"}}), quantize_only)
    assert recorder.skipped["calibration"] == "method rtn looks at no inputs"
    assert recorder.given["quantize"] == {"allocate"}
    tuned = {"method": "rtn", "tune": "block"}
    recorder = _drawn(parse_config({"quantization": tuned}), quantize_only)
    assert recorder.given["quantize"] == {"allocate", "calibration"}


def test_blocks_are_the_same_whether_the_whole_model_is_tuned_behind_them() -> None:
    def rounding(**changes: Any) -> Any:
        given: dict[str, Any] = {}

        class Keeper(Recorder):
            def __call__(self, stage: Stage, **inputs: Any) -> str:
                given[stage.name] = inputs.get("quantization")
                return super().__call__(stage, **inputs)

        pipeline(parse_config({"quantization": changes}), MODEL, Keeper())
        return given

    by_block = rounding(tune="block", tune_rate=1e-3)
    whole = rounding(tune="model", tune_rate=1e-3, tune_model_steps=7, tune_model_rate=0.1)
    assert whole["quantize"] == by_block["quantize"]
    assert whole["tune"].tune_model_steps == 7
    assert "tune" not in by_block


def test_what_changes_no_byte_runs_no_stage_again() -> None:
    """GPUs of a consumer and its checks are looked at when a plan is made; adaround's steps by adaround alone."""

    def given(**sections: Any) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}

        class Keeper(Recorder):
            def __call__(self, stage: Stage, **inputs: Any) -> str:
                found[stage.name] = {k: v for k, v in inputs.items() if k != "execution"}
                return super().__call__(stage, **inputs)

        shared = {"comparison": {"random": 1}, "allocation": {"formats": ["int4", "int8"]}}
        pipeline(parse_config(shared | sections), MODEL, Keeper())
        return found

    packed = {"format": "compressed-tensors", "consumers": ["vllm"]}
    once = given(export=packed)
    wider = given(export=packed | {"tensor_parallel": 4, "consumers": ["vllm", "sglang"]})
    assert {name for name in once if once[name] != wider[name]} == {"allocate", "analyze"}
    gptq = {"format": "gptq", "consumers": ["vllm"]}
    named = given(export=gptq | {"consumers": ["gptqmodel"]})
    assert named["export"] != given(export=gptq)["export"]
    longer = given(export=packed, quantization={"learned_rounding_steps": 7})
    assert {name for name in once if once[name] != longer[name]} == {"analyze"}
    learned = {"method": "adaround", "learned_rounding_steps": 7}
    assert given(quantization=learned)["quantize"]["quantization"].learned_rounding_steps == 7
    rivals = {"uniform": ["int4"], "methods": ["adaround"]}
    tried = given(quantization={"learned_rounding_steps": 7}, comparison=rivals)
    assert tried["compare"]["quantization"].learned_rounding_steps == 7
    assert tried["quantize"] == given()["quantize"]


def test_the_names_offered_in_forms_are_the_stages_in_order() -> None:
    recorder = _drawn(WHOLE)
    assert list(recorder.given) == list(STAGE_NAMES)


def test_every_stage_lives_in_the_module_of_its_name_and_keys_all_but_the_execution() -> None:
    for name in STAGE_NAMES:
        stage = getattr(flows.dag, name)
        assert isinstance(stage, Stage)
        assert (stage.name, stage.module) == (name, f"tasks.{name}")
        assert stage.unkeyed == ("execution",)


def test_a_models_place_and_name_are_in_no_key_of_a_stage_that_computes() -> None:
    elsewhere = MODEL.model_copy(update={"path": "/other", "name": "other"})
    inputs = {"alpha": RunConfig().alpha}
    keys = [tasks.alpha.alpha.ingredients({"model": m, **inputs}) for m in (MODEL, elsewhere)]
    assert keys[0] == keys[1]


def test_target_bits_do_not_concern_what_comes_before_allocation() -> None:
    def inputs_of(bits: float) -> dict[str, dict[str, Any]]:
        given: dict[str, dict[str, Any]] = {}

        class Keeper(Recorder):
            def __call__(self, stage: Stage, **inputs: Any) -> str:
                given[stage.name] = stage.ingredients(inputs)["inputs"]
                return f"<{stage.name}>"

        pipeline(parse_config({"allocation": {"target_bits": bits}}), MODEL, Keeper())
        return given

    three, four = inputs_of(3.0), inputs_of(4.0)
    same = {name for name in three if three[name] == four[name]}
    assert same == {
        "calibration", "baseline", "answers", "alpha", "sensitivity", "quantize", "export", "evaluate"
    }  # fmt: skip
