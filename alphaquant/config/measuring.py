"""Config sections evaluation, comparison and experiment: what is measured, and beside what."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from alphaquant.config.quantization import Method
from alphaquant.config.section import FormatName, Section, offer_list
from alphaquant.formats.table import FORMATS

_NAMES = tuple(FORMATS)


class EvaluationConfig(Section):
    """What is measured on the checkpoint and the original."""

    perplexity: bool = True
    """Perplexity and token-level fidelity on held-out text."""
    dataset: str = "builtin"
    """Held-out text: builtin, wikitext2, c4, a hub dataset, or a .txt, .jsonl or .parquet file."""
    tasks: tuple[str, ...] = ("builtin_rolling", "builtin_cloze")
    """lm-eval task names or paths of task YAML files."""
    limit: int | None = Field(None, ge=1)
    """Windows and documents per task; empty means all."""
    sequence_length: int = Field(2048, ge=2)
    """Tokens per window; shortened to the model's context when that is smaller."""


class ComparisonConfig(Section):
    """Other plans for the same model, quantized and measured beside the run's own."""

    uniform: Annotated[tuple[FormatName, ...], offer_list(_NAMES)] = ()
    """Formats that every linear gets in turn."""
    methods: tuple[Method, ...] = ("gptq",)
    """Rounding methods of the uniform plans; nf4 stands beside formats of 4 bits."""
    random: int = Field(0, ge=0)
    """Plans drawn at random that store as many bits as the run's own."""
    seed: int = Field(0, ge=0)
    """Seed of the random plans."""


class ExperimentConfig(Section):
    """Ways to spend the same bits, for the experiment on what alpha is worth; a single run does not look at it."""

    seeds: int = Field(3, ge=1, le=100)
    """Calibration seeds, counted up from calibration.seed; every arm is quantized with each."""
    draws: int = Field(20, ge=1)
    """Plans of every arm that chance has a part in, spread over the seeds."""
    gammas: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)
    """Strengths of alpha to choose from, by predicted loss on the calibration text."""
    front: tuple[float, ...] = (2.5, 3.0, 3.5, 4.25)
    """Bits per weight of the mixed plans on the Pareto front."""
    uniform: Annotated[tuple[FormatName, ...], offer_list(_NAMES)] = (
        "int2",
        "int3",
        "int4",
        "mxfp4",
        "int6",
    )
    """Formats on the Pareto front that every linear gets."""
    rivals: tuple[str, ...] = ()
    """Checkpoints of the same model by other software on the Pareto front: FOLDER@BITS, bits per weight as stored."""
    oracle: bool = True
    """Quantize one group of linears at a time and measure the whole model: for small models only (15 s per seed for the demo's 208 linears)."""

    @field_validator("gammas", "front")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if wrong := [number for number in value if not 0 < number <= 1000]:
            raise ValueError(f"{wrong[0]} is not a positive number")
        return value

    @field_validator("gammas")
    @classmethod
    def _some(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("the list is empty; name at least one strength, such as 1")
        return value

    @field_validator("rivals")
    @classmethod
    def _with_bits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            folder, _, bits = text.rpartition("@")
            try:
                sound = bool(folder) and 0 < float(bits) <= 32
            except ValueError:
                sound = False
            if not sound:
                raise ValueError(
                    f"{text!r} is not FOLDER@BITS, such as out/llama-gptq@4.125 (stored bits per weight)"
                )
        return value
