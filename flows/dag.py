"""The pipeline: what happens, in which order, from a model to a scored checkpoint and a report.

Each line is a stage; what it is given decides whether it must run. The same lines serve the run, the dry
run (`alphaquant plan`) and the Prefect flow: they differ in `call` only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

from alphaquant.config import RunConfig
from alphaquant.models.resolve import ModelRef
from alphaquant.store.stage import Stage
from flows.contents import file_digests
from flows.stage_inputs import (
    balance_inputs,
    baseline_inputs,
    calibration_inputs,
    compare_settings,
    generate_inputs,
    sensitivity_settings,
)
from tasks.allocate import allocate
from tasks.alpha import alpha
from tasks.analyze import analyze
from tasks.answers import answers
from tasks.balance import balance
from tasks.baseline import baseline
from tasks.calibration import calibration
from tasks.compare import compare
from tasks.evaluate import evaluate
from tasks.export import export
from tasks.generate import generate
from tasks.quantize import quantize
from tasks.rotate import rotate
from tasks.router import router
from tasks.sensitivity import sensitivity
from tasks.tune import tune

StageName: TypeAlias = Literal[
    "calibration",
    "generate",
    "balance",
    "baseline",
    "answers",
    "rotate",
    "sensitivity",
    "alpha",
    "allocate",
    "quantize",
    "tune",
    "router",
    "export",
    "evaluate",
    "compare",
    "analyze",
]
STAGE_NAMES: tuple[str, ...] = get_args(StageName)


class Call(Protocol):
    """How a stage is called: run here, run as a Prefect task, or only planned."""

    def __call__(self, stage: Stage, **inputs: Any) -> Any:
        """Return the stage's artifact, or what stands for it."""

    def skip(self, stage: Stage, reason: str, **inputs: Any) -> Any:
        """Note that the stage does not apply; returns None, the artifact it does not make.

        `inputs` are artifacts that stages behind it are given in its stead.
        """


@dataclass(frozen=True)
class Products:
    """What a run hands over; references, or what stands for them in a dry run."""

    plan: Any
    checkpoint: Any
    scores: Any = None
    report: Any = None


Stages: TypeAlias = Callable[[RunConfig, ModelRef, Call], Products]


def pipeline(config: RunConfig, model: ModelRef, call: Call) -> Products:
    """Compress a model, score it and report."""
    here, rounding = config.execution, config.quantization.by_block()
    tokens = _tokens(config, model, call)
    original = _original(config, model, call)
    if config.rotation.kind == "none":
        turned = call.skip(rotate, "rotation.kind is none")
    else:
        turned = _rotated(config, model, call)
    weights = turned or model  # what is rounded; alpha and scores belong to the original
    losses = call(
        sensitivity, model=weights, tokens=tokens, **sensitivity_settings(config), execution=here
    )
    # last of what a plan needs: where a GPU is at work, FARMS has been computed beside (`flows.beside`)
    alphas = call(alpha, model=model, alpha=config.alpha, execution=here)
    plan = call(
        allocate,
        model=model,
        allocation=config.allocation,
        quantization=rounding,
        export=config.export,
        alpha=alphas,
        sensitivity=losses,
    )
    blocks = _quantized(config, weights, plan, tokens, call)
    if config.quantization.tune != "model":
        tuned = call.skip(tune, "quantization.tune is not model", blocks=blocks)
    else:
        tuned = _tuned(config, weights, blocks, tokens, call)
    if config.router.method == "none":
        routers = call.skip(router, "router.method is none")
    else:
        routers = call(
            router,
            model=weights,
            plan=plan,
            blocks=tuned or blocks,
            tokens=tokens,
            router=config.router,
            execution=here,
        )
    checkpoint = call(
        export,
        model=weights,
        plan=plan,
        blocks=tuned or blocks,
        routers=routers,
        export=config.export.as_written(),
    )
    scores = _score(config, model, checkpoint, original, call, plan)
    if not _has_rivals(config):
        rivals = call.skip(compare, "comparison names no rival plans")
    else:
        rivals = call(
            compare,
            model=weights,
            plan=plan,
            blocks=blocks,
            tokens=tokens,
            baseline=original.baseline,
            **compare_settings(config),
            **({"original": model} if turned else {}),
            execution=here,
        )
    report = call(
        analyze,
        model=model,
        name=model.name,
        config=config.model_dump(mode="json", exclude={"model", "experiment", "execution"}),
        tables={
            "alpha": alphas,
            "sensitivity": losses,
            "plan": plan,
            "blocks": blocks,
            "routers": routers,
            "scores": scores,
            "rivals": rivals,
            **({"rotation": turned} if turned else {}),
            **({"tune": tuned} if tuned else {}),
        },
    )
    return Products(plan, checkpoint, scores, report)


@dataclass(frozen=True)
class Original:
    """What the original makes of held-out text and of the tasks; None where nobody asked."""

    baseline: Any
    answers: Any


def evaluate_checkpoints(
    config: RunConfig, model: ModelRef, checkpoints: Sequence[ModelRef], call: Call
) -> list[Any]:
    """The scores of checkpoints that others made, against an original that is evaluated once."""
    original = _original(config, model, call)
    return [_score(config, model, checkpoint, original, call) for checkpoint in checkpoints]


def _original(config: RunConfig, model: ModelRef, call: Call) -> Original:
    """Evaluate the original, once for every plan and checkpoint."""
    if config.evaluation.perplexity or _has_rivals(config):
        kept = call(baseline, **baseline_inputs(config, model))
    else:
        kept = call.skip(baseline, "evaluation.perplexity is false")
    if not config.evaluation.tasks:
        return Original(kept, call.skip(answers, "evaluation.tasks is empty"))
    found = call(
        answers,
        model=model,
        tasks=config.evaluation.tasks,
        sequence_length=config.evaluation.sequence_length,
        limit=config.evaluation.limit,
        files=file_digests(config.evaluation.tasks),
        execution=config.execution,
    )
    return Original(kept, found)


def _score(
    config: RunConfig,
    model: ModelRef,
    checkpoint: Any,
    original: Original,
    call: Call,
    plan: Any = None,
) -> Any:
    """Evaluate a checkpoint against what the original made of the same text and tasks."""
    return call(
        evaluate,
        model=model,
        checkpoint=checkpoint,
        plan=plan,
        evaluation=config.evaluation,
        files=file_digests(config.evaluation.tasks),
        baseline=original.baseline if config.evaluation.perplexity else None,
        answers=original.answers,
        execution=config.execution,
    )


def _has_rivals(config: RunConfig) -> bool:
    return bool(config.comparison.uniform or config.comparison.random)


def quantize_only(config: RunConfig, model: ModelRef, call: Call) -> Products:
    """The short way: one format for all linears, no scores."""
    if needs_calibration(config):
        tokens = _tokens(config, model, call)
    else:
        tokens = call.skip(calibration, f"method {config.quantization.method} looks at no inputs")
    plan, weights, blocks = _rounded(config, model, tokens, call)
    checkpoint = call(
        export,
        model=weights,
        plan=plan,
        blocks=blocks,
        routers=None,
        export=config.export.as_written(),
    )
    return Products(plan, checkpoint)


def quantize_and_measure(config: RunConfig, model: ModelRef, call: Call) -> Products:
    """A point of a comparison: one format for all linears, measured beside the original, not exported."""
    tokens = _tokens(config, model, call)
    kept = call(baseline, **baseline_inputs(config, model))
    seen = tokens if needs_calibration(config) else None
    plan, weights, blocks = _rounded(config, model, seen, call)
    scores = call(
        compare,
        model=weights,
        plan=plan,
        blocks=blocks,
        tokens=tokens,
        baseline=kept,
        **compare_settings(config),
        **({"original": model} if config.rotation.kind != "none" else {}),
        execution=config.execution,
    )
    return Products(plan, None, scores)


def _rounded(config: RunConfig, model: ModelRef, tokens: Any, call: Call) -> tuple[Any, Any, Any]:
    """A plan that needs no tables, the weights that it is for, and their quantized blocks."""
    plan = call(
        allocate,
        model=model,
        allocation=config.allocation,
        quantization=config.quantization.by_block(),
        export=config.export,
        alpha=None,
        sensitivity=None,
    )
    weights = model if config.rotation.kind == "none" else _rotated(config, model, call)
    blocks = _quantized(config, weights, plan, tokens, call)
    if config.quantization.tune == "model":
        blocks = _tuned(config, weights, blocks, tokens, call) or blocks
    return plan, weights, blocks


def needs_calibration(config: RunConfig) -> bool:
    """Whether the short way, which measures nothing, looks at calibration text."""
    return config.quantization.looks_at_inputs


def _tokens(config: RunConfig, model: ModelRef, call: Call) -> Any:
    text = config.calibration
    drawn = call(calibration, **calibration_inputs(model, text))
    if text.generated:
        drawn = call(generate, **generate_inputs(model, text, drawn, config.execution))
    else:
        drawn = call.skip(generate, "calibration.generated is 0", tokens=drawn) or drawn
    if text.balance == 1:
        return call.skip(balance, "calibration.balance is 1", tokens=drawn) or drawn
    return call(balance, **balance_inputs(model, text, drawn, config.execution))


def _rotated(config: RunConfig, model: ModelRef, call: Call) -> Any:
    return call(rotate, model=model, rotation=config.rotation)


def _quantized(config: RunConfig, weights: Any, plan: Any, tokens: Any, call: Call) -> Any:
    return call(
        quantize,
        model=weights,
        plan=plan,
        tokens=tokens,
        quantization=config.quantization.by_block(),
        execution=config.execution,
    )


def _tuned(config: RunConfig, weights: Any, blocks: Any, tokens: Any, call: Call) -> Any:
    return call(
        tune,
        model=weights,
        blocks=blocks,
        tokens=tokens,
        quantization=config.quantization,
        execution=config.execution,
    )
