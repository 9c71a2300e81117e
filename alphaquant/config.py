"""Everything a run can be told: one pydantic model that the CLI, YAML files and the Prefect form share.

Imports no torch. Sections are values: a stage receives only the sections it depends on.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from alphaquant.config_section import Section, offer, offer_list
from alphaquant.formats.carriers import can_store, unasked
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.support import all_load
from alphaquant.formats.table import FORMATS

Method: TypeAlias = Literal["gptq", "awq", "adaround", "nf4", "rtn"]
"""How a weight becomes codes; each is a file in `alphaquant/algorithms/`."""
UNCALIBRATED: frozenset[Method] = frozenset({"nf4", "rtn"})
"""Methods that look at nothing but the weight."""
DEFAULT_MENU = ("int2", "int3", "int4", "int6", "int8", "mxfp4", "mxfp6", "mxfp8", "bf16")
_NAMES = tuple(FORMATS)


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
    architecture: Literal["auto", "generic"] = "auto"
    """auto: where things are, by model_type. generic: linears by their names on disk, for decoders under model.layers of any other type; never rotated."""


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
    balance: int = Field(1, ge=1)
    """Windows to choose from for each one that is used, so that experts of a mixture see about equally many tokens; 1: no choice."""


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
    """Glob over linear names, such as model.layers.0.*, or a regular expression after re:"""
    wq: str | None = Field(None, title="Weight format (wq)")
    """Such as int4, mxfp8 or int4-g64-asym."""
    aq: str | None = Field(None, title="Activation format (aq)")
    """Format that inputs are rounded to as the model runs, such as int8 or mxfp8: simulated in evaluation, asked for by compressed-tensors checkpoints."""
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

    wq: Annotated[str, offer(_NAMES)] = Field("mxfp4", title="Weight format (wq)")
    """A name, or a name with group and zero point such as int4-g64-asym."""
    aq: str | None = Field(None, title="Activation format (aq)")
    """Format that inputs are rounded to as the model runs, such as int8 or mxfp8: simulated in evaluation, asked for by compressed-tensors checkpoints."""
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
    """budget: least predicted loss for the bits. alpha: the same from spectra alone. ratio: fixed shares in the order of alpha. uniform: the default for all. manual: overrides, then the default."""
    target_bits: float = Field(4.25, gt=0, le=16)
    """Policies budget and alpha: stored bits per weight over the decoder's linears, never exceeded; lm_head does not count."""
    formats: Annotated[tuple[str, ...], offer_list(_NAMES)] = DEFAULT_MENU
    """Formats that budget and alpha may choose from: names, or names with group and zero point such as int4-g64-asym. Left as it is, those of it that export.format can store and export.consumers load, if there are any."""
    protect: Literal["high_alpha", "low_alpha", "measured"] = "high_alpha"
    """Which end of alpha is taken as sensitive; measured follows the model's own rank correlation."""
    granularity: Literal["linear", "expert", "fused"] | None = None
    """What shares one format; empty means fused for budget and alpha, linear for the others."""
    gamma: float = Field(1.0, ge=0)
    """Strength of alpha in policy alpha: loss is weighted by (alpha / median) to this power."""
    alpha_rule: Literal["null", "alphaq"] = "null"
    """Policy alpha. null: alpha over its value for a random matrix of the shape, with each format's error and all weights counted. alphaq: AlphaQ's formula, raw alpha, 4 to the power of -bits, every linear counted alike; its own direction is protect=low_alpha."""
    alpha_prior: bool = False
    """Policy budget: let alpha correct the measured losses as far as it foretells them on this model."""
    mxfp4_ratio: float = Field(0.3, ge=0, le=1)
    """Policy ratio: share of the least sensitive linears that get mxfp4."""
    bf16_ratio: float = Field(0.0, ge=0, le=1)
    """Policy ratio: share of the most sensitive linears that stay bf16."""
    skip_attention: bool | None = None
    """Keep attention linears bf16; empty means yes for ratio, no for the others."""
    skip_router: bool = True
    """Keep routers bf16."""
    lm_head: str | None = None
    """Format of the output projection, such as int8-g128, beside target_bits; empty keeps it as it is stored. A head tied to the embedding becomes a matrix of its own."""
    overrides: tuple[Override, ...] = ()
    """Rules for named linears; the last match wins."""
    default: DefaultScheme = DefaultScheme()
    """Scheme of uniform and manual plans."""

    @field_validator("lm_head")
    @classmethod
    def _known_format(cls, value: str | None) -> str | None:
        return _checked_format(value)

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

    method: Method = "gptq"
    """gptq: error-compensating rounding on calibration inputs. awq: channels with large inputs scaled up, then to nearest. adaround: learns of every weight whether it is rounded up or down. nf4: to nearest in QLoRA's codebook; the format is nf4. rtn: round to nearest."""
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
    """none: scales from the largest weight. mse: of least squared error. hessian: that, weighted by the square root of input energy."""
    refit: bool = True
    """After GPTQ, move every scale to where its codes fit best."""
    sweeps: int = Field(2, ge=0)
    """Times that every code is looked at again after GPTQ."""
    correction: Literal["none", "inputs"] = "none"
    """inputs: GPTQ also makes up for what inputs have lost before; kept where a block comes closer to the original's on held-out windows."""
    correction_prior: float = Field(0.5, ge=0)
    """Doubt in a correction, in tokens per input channel: one from few tokens is applied in part."""
    learned_rounding_steps: int = Field(500, ge=1)
    """Steps in which adaround learns."""
    expert_shrinkage: float = Field(1.0, ge=0)
    """Pull of an expert's Hessian towards its block's, in multiples of the input width."""
    routing_weight: Literal["none", "p", "p2"] = "p"
    """How much a token counts in an expert's Hessian. none: once. p, p2: by the weight that the router gave the expert, or by its square, which is what an error costs in the block's output."""
    tune: Literal["none", "block", "model"] = "none"
    """block: after GPTQ, move codes and scales until each block answers as the original's does; slower, better. model: then move scales and norms once more until the whole model predicts as the original; the model must fit into memory, and rival plans and the experiment are tuned by block."""
    tune_ahead: bool = False
    """Judge a tuned block also by what the original's next block makes of its output, and the last one by the predictions; half as much time again."""
    tune_steps: int = Field(100, ge=1)
    """Steps of tuning per block."""
    tune_batch_size: int = Field(4, ge=1)
    """Windows per step of tuning."""
    tune_rate: float = Field(5e-3, gt=0)
    """Largest move of a code's latent per step, in steps of the grid."""
    tune_scale_rate: float = Field(5e-3, ge=0)
    """Largest relative move of a scale per step."""
    tune_model_steps: int = Field(60, ge=1)
    """Steps of tuning the whole model; it ends sooner when held-out windows stop improving."""
    tune_model_rate: float = Field(3e-3, gt=0)
    """Largest relative move of a scale per step of tuning the whole model; norms move by a quarter of it."""

    def by_block(self) -> QuantizationConfig:
        """The same without what concerns the whole model alone."""
        whole = {"tune_model_steps", "tune_model_rate"}
        defaults = {name: type(self).model_fields[name].default for name in whole}
        tune = "none" if self.tune == "none" else "block"
        return self.model_copy(update=defaults | {"tune": tune})

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
    """Rotation of outliers before quantization.

    Takes about 25 seconds of one core per billion weights, and the model's size once more in the store.
    """

    kind: Literal["none", "hadamard"] = "none"
    """none: weights keep their own basis. hadamard: the residual stream is turned by signs times a Hadamard matrix, and norms are folded, all inside the weights: nothing is added at inference."""
    block: int | None = Field(None, ge=2)
    """Channels that are mixed with each other, such as 32 for mx formats or 16 for nvfp4; empty means all."""
    heads: bool | None = None
    """Turn the values inside each attention head too; empty means yes where that is exact."""
    seed: int = Field(0, ge=0)
    """Seed of the random signs."""
    candidates: int = Field(1, ge=1)
    """Seeds that are tried, counted from seed; the one that leaves the smallest largest weights is used."""


class RouterConfig(Section):
    """Repair of the routers after quantization."""

    method: Literal["none", "align", "block", "kl", "ce", "align+block", "align+kl"] = "none"
    """none: leave them. align: closed form, no training. block: train each for its block's output, one block in memory. kl: train all together for the original's next-token distribution. ce: for next tokens of the calibration text. With a plus: one after the other."""
    epochs: int = Field(4, ge=1)
    """Passes of training over the calibration windows."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate of training on fp32 router weights."""
    batch_size: int = Field(8, ge=1)
    """Windows per training step."""
    patience: int = Field(4, ge=1)
    """Held-out checks without a gain before training stops."""
    seed: int = Field(0, ge=0)
    """Seed of the order of windows."""


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

    uniform: Annotated[tuple[str, ...], offer_list(_NAMES)] = ()
    """Formats that every linear gets in turn."""
    methods: tuple[Method, ...] = ("gptq",)
    """Rounding methods of the uniform plans; nf4 stands beside formats of 4 bits."""
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
    uniform: Annotated[tuple[str, ...], offer_list(_NAMES)] = (
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

    @field_validator("uniform")
    @classmethod
    def _known_formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            Scheme.parse(name)
        return value

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


class ExportConfig(Section):
    """The checkpoint's form."""

    format: Literal["dense", "compressed-tensors", "gptq", "quark"] = "dense"
    """dense: bf16 values that any consumer loads. compressed-tensors: packed, for vLLM, SGLang and transformers. gptq: packed, for GPTQModel, vLLM and SGLang; symmetric int2, 3, 4 and 8. quark: packed mx formats, which carries mxfp6 to vLLM."""
    consumers: tuple[Literal["transformers", "vllm", "sglang", "gptqmodel"], ...] = ()
    """Serving stacks that the checkpoint must load in; checked before anything is quantized."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that a consumer spreads each linear over."""
    kv_cache: Literal["fp8"] | None = None
    """compressed-tensors: ask consumers to keep keys and values in fp8, with scales of 1; scores do not include what that costs. Empty: as the consumer likes."""

    @model_validator(mode="after")
    def _cache_has_a_place(self) -> ExportConfig:
        if self.kv_cache and self.format != "compressed-tensors":
            raise ValueError(
                f"kv_cache={self.kv_cache} is written by format=compressed-tensors only, found format={self.format}; "
                "consumers have options of their own for it"
            )
        return self


class ExecutionConfig(Section):
    """Where it runs. Part of no cache key."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    where: Literal["here", "pool"] = "here"
    """here: in this process. pool: stages that want a GPU become jobs of the GPU work pool."""
    pool: str = Field("gpu", min_length=1)
    """Name of the GPU work pool's deployment of the flow stage."""
    batch_size: int = Field(8, ge=1)
    """Windows per forward pass."""
    workers: int | None = Field(None, ge=1)
    """CPU threads for spectra; empty means one per core."""

    def halved(self) -> ExecutionConfig | None:
        """The same with half the batch; None when a batch is one window already."""
        if self.batch_size == 1:
            return None
        return self.model_copy(update={"batch_size": self.batch_size // 2})


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
    experiment: ExperimentConfig = ExperimentConfig()
    export: ExportConfig = ExportConfig()
    execution: ExecutionConfig = ExecutionConfig()

    @model_validator(mode="after")
    def _menu_for_export(self) -> RunConfig:
        """A menu that nobody chose offers what the checkpoint can hold and its consumers load; a chosen one is taken at its word."""
        form = self.export.format
        if form != "dense" and self.allocation.formats == DEFAULT_MENU:
            stored = tuple(name for name in DEFAULT_MENU if can_store(form, name))
            menu = tuple(n for n in stored if all_load(self.export.consumers, form, n))
            if menu == ("bf16",):  # the check of consumers says why none of the others will do
                menu = stored
            narrowed = self.allocation.model_copy(update={"formats": menu})
            object.__setattr__(self, "allocation", narrowed)
        return self

    @model_validator(mode="after")
    def _activations_can_be_asked_for(self) -> RunConfig:
        if self.export.format == "dense":
            return self
        plan = self.allocation
        for text in (plan.default.aq, *(rule.aq for rule in plan.overrides)):
            if text is None or Scheme.parse(text).format == "bf16":
                continue
            if reason := unasked(self.export.format, text):
                raise ValueError(f"export.format={self.export.format}: {reason}")
        return self

    @model_validator(mode="after")
    def _nf4_rounds_to_nf4(self) -> RunConfig:
        if self.quantization.method != "nf4":
            return self
        plan = self.allocation
        menus = {"budget": plan.formats, "alpha": plan.formats, "ratio": ("mxfp4",)}
        named = menus.get(plan.policy, (plan.default.wq,))
        if self.export.format != "dense":
            raise ValueError(
                f"quantization.method nf4 is exported as values alone, and export.format is {self.export.format}. "
                "Set export.format=dense."
            )
        for text in (*named, *(rule.wq for rule in plan.overrides if rule.wq)):
            if Scheme.parse(text).format not in ("nf4", "bf16"):
                raise ValueError(
                    f"quantization.method nf4 rounds to nf4 (4 bits) alone, and policy {plan.policy} may give "
                    f"{text}. Set allocation.policy=uniform and allocation.default.wq=nf4, or take another method."
                )
        return self
