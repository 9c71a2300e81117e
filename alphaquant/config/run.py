"""Config of a whole run, and the sections that are no file of their own: model, calibration, alpha, export, execution."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from alphaquant.config.allocation import DEFAULT_MENU, AllocationConfig
from alphaquant.config.measuring import ComparisonConfig, EvaluationConfig, ExperimentConfig
from alphaquant.config.quantization import QuantizationConfig, RotationConfig, RouterConfig
from alphaquant.config.section import Section, Size, bytes_of
from alphaquant.formats.carriers import can_store, unasked
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.support import all_load


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
    """Seed of the choice of windows, and of what the model writes."""
    generated: float = Field(0.0, ge=0, le=1)
    """Share of the windows that the model writes itself, which needs all of it in memory; of those to choose from, with balance. At 1 no window is of the text."""
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

    def as_written(self) -> ExportConfig:
        """The same without what is only checked: it decides no byte of the checkpoint."""
        names = tuple(name for name in self.consumers if name == "gptqmodel")  # wants other names
        return self.model_copy(update={"consumers": names, "tensor_parallel": 1})

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
    """Windows per forward pass; evaluation takes fewer where memory asks for it, calibration on a GPU up to eight times as many where it allows."""
    workers: int | None = Field(None, ge=1)
    """CPU threads for spectra, where no GPU solves them; empty means one per core."""
    memory_limit: Size | None = None
    """Memory that the process may take, such as 4GB or 4GiB; quantize then holds less at once. Empty: no limit."""

    @property
    def memory_bytes(self) -> int | None:
        """The memory limit in bytes."""
        return None if self.memory_limit is None else bytes_of(self.memory_limit)

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
