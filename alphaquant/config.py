"""Everything a run can be told: one pydantic model that the CLI, YAML files and the Prefect form share.

Imports no torch. Sections are values: a stage receives only the sections it depends on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from alphaquant.errors import ConfigError, nearest
from alphaquant.formats.scheme import Scheme

DEFAULT_MENU = ("int2", "int3", "int4", "int6", "int8", "mxfp4", "mxfp6", "mxfp8", "bf16")


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


def _checked_format(value: str | None) -> str | None:
    if value is not None:
        Scheme.parse(value)
    return value


def _checked_group(value: int | None) -> int | None:
    if value == 0:
        raise ValueError("0 is not a group size; use a positive number, or -1 for per channel")
    return value


class ModelConfig(Section):
    """Which model to compress."""

    path: str | None = None
    """Folder or hub id; empty means the demo model that ships with AlphaQuant."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Allow Python code that comes with the model to run."""


class CalibrationConfig(Section):
    """The text that shows which inputs matter."""

    dataset: str = "builtin"
    """builtin, wikitext2, c4, a hub dataset, or a .txt, .jsonl or .parquet file."""
    samples: int = Field(128, ge=1)
    """Number of token windows."""
    sequence_length: int = Field(2048, ge=2)
    """Tokens per window; shortened to the model's context when that is smaller."""
    seed: int = Field(0, ge=0)
    """Seed of the choice of windows."""


class AlphaConfig(Section):
    """How the tail exponent of each spectrum is estimated."""

    estimator: Literal["hill", "farms"] = "hill"
    """hill: the whole spectrum. farms: spectra of fixed-size submatrices, free of shape bias."""
    tail_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the eigenvalues that counts as the tail."""
    seed: int = Field(0, ge=0)
    """Seed of the submatrices that farms draws."""


class Override(Section):
    """One rule of a plan: linears whose name matches get this format."""

    pattern: str
    """Glob over linear names, or a regular expression after `re:`."""
    wq: str | None = None
    """Weight format, such as int4 or mxfp8."""
    aq: str | None = None
    """Activation format simulated in evaluation."""
    group_size: int | None = Field(None, ge=-1)
    """Weights that share one scale; -1 for one scale per output channel."""
    skip: bool = False
    """Keep the weight as it is (bf16)."""

    @field_validator("wq", "aq")
    @classmethod
    def _known_format(cls, value: str | None) -> str | None:
        return _checked_format(value)

    @field_validator("group_size")
    @classmethod
    def _not_zero(cls, value: int | None) -> int | None:
        return _checked_group(value)


class DefaultScheme(Section):
    """The format of every linear that no override names."""

    wq: str = "mxfp4"
    """Weight format."""
    aq: str | None = None
    """Activation format simulated in evaluation."""
    group_size: int | None = Field(None, ge=-1)
    """Weights per scale; empty means quantization.group_size."""

    @field_validator("wq", "aq")
    @classmethod
    def _known_format(cls, value: str | None) -> str | None:
        return _checked_format(value)

    @field_validator("group_size")
    @classmethod
    def _not_zero(cls, value: int | None) -> int | None:
        return _checked_group(value)


class AllocationConfig(Section):
    """How the bits are spent."""

    policy: Literal["budget", "ratio", "alpha", "uniform", "manual"] = "budget"
    """budget: least predicted loss. alpha: calibration-free. ratio: shares by alpha. uniform. manual."""
    target_bits: float = Field(4.25, gt=0, le=16)
    """Policies budget and alpha: stored bits per weight over the decoder's linears, never exceeded."""
    formats: tuple[str, ...] = DEFAULT_MENU
    """Formats that budget and alpha may choose from."""
    protect: Literal["high_alpha", "low_alpha", "measured"] = "high_alpha"
    """Which end of alpha is taken as sensitive; measured follows the model's own rank correlation."""
    granularity: Literal["linear", "expert", "fused"] | None = None
    """What shares one format; empty means fused for budget and alpha, linear for the others."""
    gamma: float = Field(1.0, ge=0)
    """Strength of alpha in policy alpha: loss is weighted by (alpha / median) to this power."""
    mxfp4_ratio: float = Field(0.3, ge=0, le=1)
    """Policy ratio: share of the least sensitive linears that get mxfp4."""
    bf16_ratio: float = Field(0.0, ge=0, le=1)
    """Policy ratio: share of the most sensitive linears that stay bf16."""
    skip_attention: bool | None = None
    """Keep attention linears bf16; empty means yes for ratio, no for the others."""
    skip_router: bool = True
    """Keep routers bf16."""
    overrides: tuple[Override, ...] = ()
    """Rules for named linears; the last match wins."""
    default: DefaultScheme = DefaultScheme()
    """Scheme of uniform and manual plans."""

    @field_validator("formats")
    @classmethod
    def _known_formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("the list is empty; name at least one format, such as int4")
        for name in value:
            Scheme.parse(name)
        return value

    @model_validator(mode="after")
    def _ratios(self) -> AllocationConfig:
        if self.mxfp4_ratio + self.bf16_ratio > 1:
            raise ValueError(
                f"mxfp4_ratio {self.mxfp4_ratio} + bf16_ratio {self.bf16_ratio} is more than 1"
            )
        return self


class QuantizationConfig(Section):
    """How weights are rounded."""

    method: Literal["gptq", "rtn"] = "gptq"
    """gptq: error-compensating rounding on calibration inputs. rtn: round to nearest."""
    group_size: int = Field(128, ge=-1)
    """Weights that share one scale (int and fp formats); -1 for one scale per output channel."""
    symmetric: bool = True
    """Integer grids around zero; false adds a zero point per group."""
    block_size: int = Field(128, ge=1)
    """Columns that GPTQ rounds before it updates the rest."""
    damping: float = Field(0.01, ge=0, le=1)
    """Share of the Hessian's mean diagonal added to it; raised until a Cholesky factor exists."""
    act_order: bool = True
    """Round the columns with the largest inputs first."""
    static_groups: bool = True
    """Fix every group's scale before the first column is rounded."""
    scale_search: Literal["none", "mse", "hessian"] = "hessian"
    """Scales from the largest weight, the least squared error, or that weighted by input energy."""
    expert_shrinkage: float = Field(1.0, ge=0)
    """Pull of an expert's Hessian towards its block's, in multiples of the input width."""

    @field_validator("scale_search", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return (
            {True: "hessian", False: "none"}.get(value, value) if isinstance(value, bool) else value
        )

    @field_validator("group_size")
    @classmethod
    def _not_zero(cls, value: int | None) -> int | None:
        return _checked_group(value)


class RotationConfig(Section):
    """Rotation of outliers before quantization."""

    kind: Literal["none"] = "none"
    """none: weights are quantized in their own basis."""


class RouterConfig(Section):
    """Repair of the routers after quantization."""

    method: Literal["none", "kl", "ce"] = "none"
    """kl: match the original's next-token distribution. ce: next-token loss on the calibration text."""
    epochs: int = Field(4, ge=1)
    """Passes over the calibration windows."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate of AdamW on fp32 router weights."""
    batch_size: int = Field(8, ge=1)
    """Windows per training step."""
    patience: int = Field(4, ge=1)
    """Held-out checks without a better KL before training stops."""
    seed: int = Field(0, ge=0)
    """Seed of the held-out split and of the order of windows."""


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

    uniform: tuple[str, ...] = ()
    """Formats that every linear gets in turn."""
    methods: tuple[Literal["gptq", "rtn"], ...] = ("gptq",)
    """Rounding methods of the uniform plans."""
    random: int = Field(0, ge=0)
    """Plans drawn at random that store as many bits as the run's own."""
    seed: int = Field(0, ge=0)
    """Seed of the random plans."""

    @field_validator("uniform")
    @classmethod
    def _known_formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            Scheme.parse(name)
        return value


class ExportConfig(Section):
    """The checkpoint's form."""

    format: Literal["dense"] = "dense"
    """dense: bf16 values that any consumer loads."""
    consumers: tuple[str, ...] = ()
    """Serving stacks the checkpoint must load in."""

    @field_validator("consumers")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in value if name != "transformers"]:
            raise ValueError(
                f"{unknown[0]!r} is not a consumer of dense checkpoints; allowed: transformers"
            )
        return value


class ExecutionConfig(Section):
    """Where it runs. Part of no cache key."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    where: Literal["here"] = "here"
    """here: in this process."""
    batch_size: int = Field(8, ge=1)
    """Windows per forward pass."""
    workers: int | None = Field(None, ge=1)
    """CPU threads for spectra; empty means one per core."""


class RunConfig(Section):
    """A whole run."""

    model: ModelConfig = ModelConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    alpha: AlphaConfig = AlphaConfig()
    allocation: AllocationConfig = AllocationConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    rotation: RotationConfig = RotationConfig()
    router: RouterConfig = RouterConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    comparison: ComparisonConfig = ComparisonConfig()
    export: ExportConfig = ExportConfig()
    execution: ExecutionConfig = ExecutionConfig()


def load_config(path: Path | None = None, assignments: list[str] | None = None) -> RunConfig:
    """Read a YAML file (or nothing), apply `section.key=value` assignments, check the whole.

    Raises ConfigError that names the key, what was found and what is allowed.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path} holds {type(data).__name__}; a config is sections of keys")
    for assignment in assignments or []:
        _assign(data, assignment)
    return parse_config(data)


def parse_config(data: dict[str, Any]) -> RunConfig:
    """Check a plain mapping; the first problem becomes one readable message."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def _assign(data: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals or "." not in key:
        raise ConfigError(
            f"--set {assignment!r} is not section.key=value, such as allocation.target_bits=4"
        )
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {assignment!r}: {text!r} is not a value: {error}") from error
    *parents, leaf = key.strip().split(".")
    section = data
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {assignment!r}: {parent} is a value, not a section")
    section[leaf] = value


def _explain(error: ValidationError) -> str:
    # an unknown key explains a missing one, not the other way round
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    where = [str(part) for part in first["loc"]]
    name = ".".join(where)
    if first["type"] == "extra_forbidden":
        allowed = _fields_at(where[:-1])
        return (
            f"unknown config key {name!r}; nearest: {nearest(where[-1], allowed)}; "
            f"allowed here: {', '.join(sorted(allowed))}"
        )
    return f"config key {name!r}: {first['msg'].removeprefix('Value error, ')} (found {first['input']!r})"


def _fields_at(path: list[str]) -> list[str]:
    section: Any = RunConfig
    for part in path:
        if part.isdigit():
            continue
        annotation = section.model_fields[part].annotation
        section = next(
            (
                t
                for t in (annotation, *getattr(annotation, "__args__", ()))
                if hasattr(t, "model_fields")
            ),
            section,
        )
    return list(section.model_fields)
