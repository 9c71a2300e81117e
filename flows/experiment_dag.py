"""The experiment: which stages tell what alpha is worth on a model, and what each is given.

Calibration, alpha and sensitivity are those of a run, so that both share them. Every arm is two stages per
calibration seed: its plans, and the trial that quantizes and measures them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from alphaquant.algorithms.arms import ARM_NAMES, ARMS, draws_of
from alphaquant.config import RunConfig
from alphaquant.models.resolve import ModelRef
from alphaquant.store.stage import Stage
from flows.stage_inputs import (
    balance_inputs,
    baseline_inputs,
    calibration_inputs,
    generate_inputs,
    sensitivity_settings,
)
from tasks.alpha import alpha
from tasks.arm import arm
from tasks.balance import balance
from tasks.baseline import baseline
from tasks.calibration import calibration
from tasks.conclude import conclude
from tasks.evaluate import evaluate
from tasks.generate import generate
from tasks.oracle import oracle
from tasks.rotate import rotate
from tasks.sensitivity import sensitivity
from tasks.trial import trial

STAGES: dict[str, Stage] = {stage.name: stage for stage in (oracle, arm, trial, conclude)}
"""Stages that only experiments have."""
FRONT = ("fisher", "low", "high")
"""Arms that the Pareto front shows at several bits."""


@dataclass(frozen=True)
class Step:
    """One call of a stage under a name of its own."""

    label: str
    stage: Stage
    inputs: dict[str, Any]


class Calls(Protocol):
    """How steps are done."""

    def step(self, step: Step) -> Any:
        """Do one; returns its artifact, None where it does not apply."""

    def all(self, steps: Sequence[Step]) -> list[Any]:
        """Do steps that do not need each other."""


@dataclass(frozen=True)
class _Seed:
    """What one calibration seed gives."""

    number: int
    tokens: Any
    losses: Any
    oracle: Any


def experiment(
    config: RunConfig, model: ModelRef, calls: Calls, rivals: Mapping[str, ModelRef]
) -> Any:
    """Do the whole experiment; returns the conclusion's artifact."""
    here, options, rounding = config.execution, config.experiment, config.quantization.by_block()
    guides = {
        name: calls.step(
            Step(
                f"alpha {name}",
                alpha,
                {
                    "model": model,
                    "alpha": config.alpha.model_copy(update={"estimator": name}),
                    "execution": here,
                },
            )
        )
        for name in ("hill", "farms")
    }
    kept = calls.step(Step("baseline", baseline, baseline_inputs(config, model)))
    turned = None
    if config.rotation.kind != "none":
        turned = calls.step(Step("rotate", rotate, {"model": model, "rotation": config.rotation}))
    weights = turned or model  # what is rounded; alpha and scores belong to the original
    seeds = [_seed(config, model, weights, calls, number) for number in range(options.seeds)]

    def plans(name: str, seed: _Seed, label: str, bits: float | None = None) -> Step:
        allocation = config.allocation
        if bits is not None:
            allocation = allocation.model_copy(update={"target_bits": bits})
        inputs = {
            "model": model,
            "arm": name,
            "allocation": allocation,
            "quantization": rounding,
            **guides,
            "sensitivity": seed.losses,
            "oracle": seed.oracle if name == "oracle" else None,
            "gammas": options.gammas,
            "draws": draws_of(ARMS[name], options.draws, options.seeds, seed.number)
            if name in ARMS
            else 1,
            "seed": seed.number,
        }
        return Step(f"arm {label}", arm, inputs)

    wanted: dict[str, tuple[Step, _Seed]] = {}
    for seed in seeds:
        for name in ARM_NAMES:
            if name != "oracle" or seed.oracle is not None:
                label = f"{name}, seed {seed.number}"
                wanted[label] = (plans(name, seed, label), seed)
    first = seeds[0]
    for scheme in options.uniform:
        wanted[f"front {scheme}"] = (plans(scheme, first, f"front {scheme}"), first)
    for bits in options.front:
        for curve in FRONT:
            label = f"front {curve} at {bits:g}"
            wanted[label] = (plans(curve, first, label, bits), first)
    planned = {label: calls.step(step) for label, (step, _) in wanted.items()}
    trials = calls.all(
        [
            Step(
                f"trial {label}",
                trial,
                {
                    "model": weights,
                    "plans": planned[label],
                    "tokens": seed.tokens,
                    "baseline": kept,
                    "quantization": rounding,
                    "execution": here,
                    **({"original": model} if turned else {}),
                },
            )
            for label, (_, seed) in wanted.items()
        ]
    )
    scored = calls.all([_rival(config, model, kept, text, place) for text, place in rivals.items()])
    return calls.step(
        Step(
            "conclude",
            conclude,
            {
                "model": model,
                "name": model.name,
                "config": config.model_dump(mode="json", exclude={"model", "execution"}),
                "baseline": kept,
                "alphas": guides,
                "losses": [seed.losses for seed in seeds],
                "oracles": [seed.oracle for seed in seeds if seed.oracle is not None],
                "arms": planned,
                "trials": dict(zip(wanted, trials, strict=True)),
                "rivals": dict(zip(rivals, scored, strict=True)),
            },
        )
    )


def _seed(config: RunConfig, model: ModelRef, weights: Any, calls: Calls, number: int) -> _Seed:
    here, rounding = config.execution, config.quantization.by_block()
    text = config.calibration.model_copy(update={"seed": config.calibration.seed + number})
    drawn = Step(f"calibration, seed {number}", calibration, calibration_inputs(model, text))
    tokens = calls.step(drawn)
    if text.generated:
        writing = generate_inputs(model, text, tokens, here)
        tokens = calls.step(Step(f"generate, seed {number}", generate, writing))
    if text.balance > 1:
        choice = balance_inputs(model, text, tokens, here)
        tokens = calls.step(Step(f"balance, seed {number}", balance, choice))
    losses = calls.step(
        Step(
            f"sensitivity, seed {number}",
            sensitivity,
            {
                "model": weights,
                "tokens": tokens,
                **sensitivity_settings(config),
                "execution": here,
            },
        )
    )
    alone = None
    if config.experiment.oracle:
        alone = calls.step(
            Step(
                f"oracle, seed {number}",
                oracle,
                {
                    "model": weights,
                    "tokens": tokens,
                    "sensitivity": losses,
                    "allocation": config.allocation,
                    "quantization": rounding,
                    "execution": here,
                },
            )
        )
    return _Seed(number, tokens, losses, alone)


def _rival(config: RunConfig, model: ModelRef, kept: Any, text: str, place: ModelRef) -> Step:
    """Score another software's checkpoint on the same windows."""
    evaluation = config.evaluation.model_copy(update={"perplexity": True, "tasks": ()})
    return Step(
        f"evaluate {text}",
        evaluate,
        {
            "model": model,
            "checkpoint": place,
            "plan": None,
            "evaluation": evaluation,
            "files": {},
            "baseline": kept,
            "answers": None,
            "execution": config.execution,
        },
    )
