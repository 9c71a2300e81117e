"""Rivals: other plans for the same model, so that a report can tell what the chosen one is worth.

Each rival is quantized from the same calibration windows and measured on the same held-out windows, before
any router training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_random import random_plan
from alphaquant.algorithms.memory_plan import least_for
from alphaquant.config import (
    AllocationConfig,
    ComparisonConfig,
    DefaultScheme,
    Method,
    Override,
    QuantizationConfig,
)
from alphaquant.errors import PlanError
from alphaquant.evaluation.bootstrap import bootstrap_score, resample_weights, weighted_mean
from alphaquant.evaluation.predictions import Predictions
from alphaquant.evaluation.quantized import quantized_for_now
from alphaquant.evaluation.room import Room
from alphaquant.evaluation.ruler import BlockRuler, Ruler, ruler_for
from alphaquant.evaluation.scores import HELDOUT, Score
from alphaquant.formats.scheme import Scheme
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import HEAD
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporter, track

OWN_PLAN = "own plan, routers untrained"
ROTATED = "rotated, not quantized"


def rival_scores(
    checkpoint: Checkpoint,
    own: QuantPlan,
    own_blocks: Sequence[Path],
    tokens: Tensor,  # [samples, length] calibration
    windows: Tensor,  # [windows, length] held out
    original: Predictions,
    allocation: AllocationConfig,
    quantization: QuantizationConfig,
    comparison: ComparisonConfig,
    room: Room,
    *,
    rotated: bool,
) -> list[Score]:
    """`bits_per_weight` of each rival, and of the own plan likewise, and what separates it from the original:

    `kl_mean`, `perplexity`, `perplexity_ratio`, `top1_agreement`.

    Raises ConfigError where a rival or a measurement does not fit into `room`. `original` is what the original predicts on `windows`. Where `checkpoint` is its `rotated` form, that one's own
    scores are measured too.
    """
    rivals = list(_rivals(checkpoint, own, allocation, quantization, comparison))
    methods = [rounding for _, _, rounding in rivals]
    beside = least_for(room.memory_limit, checkpoint, tokens, methods, room.device)
    ruler = ruler_for(checkpoint, windows, room, original, beside)
    scores = _distances(ruler, ROTATED) if rotated else []
    scores += _measured(ruler, OWN_PLAN, own, own_blocks)
    for label, plan, rounding in track(rivals, "rival plan", len(rivals)):
        with quantized_for_now(checkpoint, plan, tokens, rounding, room) as blocks:
            scores += _measured(ruler, label, plan, blocks)
    return scores


def _rivals(
    checkpoint: Checkpoint,
    own: QuantPlan,
    allocation: AllocationConfig,
    quantization: QuantizationConfig,
    comparison: ComparisonConfig,
) -> Iterator[tuple[str, QuantPlan, QuantizationConfig]]:
    # a head that the own plan quantizes, by allocation.lm_head or by name, is the same in every rival
    head = [Override(pattern=HEAD, **own.seed_form(HEAD))] if HEAD in own.schemes else []
    for text, method in _uniform(comparison):
        # every value from the given section or spelled out: defaults of the config are in no key
        uniform = allocation.model_copy(
            update={
                "policy": "uniform",
                "default": DefaultScheme(wq=text, aq=None, group_size=None),
                "lm_head": None,
                "overrides": tuple(head),
                "skip_attention": False,
            }
        )
        plan = allocate(checkpoint.plannable, uniform, quantization)
        update: dict[str, Any] = {"method": method}
        if method != "gptq":  # the others as they were published, whatever the run does on top
            update["tune"] = "none"
        yield f"uniform {text}, {method}", plan, quantization.model_copy(update=update)
    equal_bits = allocation.model_copy(update={"target_bits": own.decoder_bits})
    for number in range(1, comparison.random + 1):
        seed = comparison.seed + number
        try:
            plan = random_plan(checkpoint.plannable, equal_bits, quantization, seed, tolerance=0.01)
        except PlanError as error:
            reporter().note(f"comparison: no random plans ({error})")
            return
        yield f"random plan {number}", plan, quantization


def _uniform(comparison: ComparisonConfig) -> Iterator[tuple[str, Method]]:
    """Formats and methods; nf4 brings its own format, once, where one of its bits is asked for."""
    for text in comparison.uniform:
        for method in comparison.methods:
            if method != "nf4":
                yield text, method
    four_bits = any(Scheme.parse(text).number_format.bits == 4 for text in comparison.uniform)
    if "nf4" in comparison.methods and four_bits:
        yield "nf4", "nf4"


def _measured(
    ruler: Ruler | BlockRuler, label: str, plan: QuantPlan, blocks: Sequence[Path]
) -> list[Score]:
    """Put quantized blocks into the ruler and compare."""
    ruler.put_blocks(blocks)
    bits = Score(HELDOUT, "bits_per_weight", plan.bits_per_weight, model=label)
    return [*_distances(ruler, label), bits]


def _distances(ruler: Ruler | BlockRuler, label: str) -> list[Score]:
    """How far the ruler's model as it is lies from the original; intervals resample windows."""
    found = ruler.measure()
    loss, change = weighted_mean(found.loss), weighted_mean(found.loss - found.loss_original)
    statistics: dict[str, Callable[[Tensor], Tensor]] = {
        "kl_mean": weighted_mean(found.kl),
        "perplexity": lambda weights: loss(weights).exp(),
        "perplexity_ratio": lambda weights: change(weights).exp(),
        "top1_agreement": weighted_mean(found.agrees),
    }
    weights = resample_weights(len(found.kl))
    return [
        bootstrap_score(statistic, weights, task=HELDOUT, metric=metric, model=label)
        for metric, statistic in statistics.items()
    ]
