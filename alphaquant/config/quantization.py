"""Config sections quantization, rotation and router: what is done to weights."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import Field, field_validator

from alphaquant.config.section import GroupSize, Section

Method: TypeAlias = Literal["gptq", "awq", "adaround", "nf4", "rtn"]
"""How a weight becomes codes; each is a file in `alphaquant/algorithms/`."""
UNCALIBRATED: frozenset[Method] = frozenset({"nf4", "rtn"})
"""Methods that look at nothing but the weight."""


class QuantizationConfig(Section):
    """How weights are rounded."""

    method: Method = "gptq"
    """gptq: error-compensating rounding on calibration inputs. awq: channels with large inputs scaled up, then to nearest. adaround: learns of every weight whether it is rounded up or down. nf4: to nearest in QLoRA's codebook; the format is nf4. rtn: round to nearest."""
    group_size: GroupSize = 128
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
    correction: Literal["none", "stream"] = "none"
    """stream: GPTQ also makes up for what was lost before: of what joins the residual stream for all that is missing there, elsewhere for what inputs have lost; as far as two halves of the windows agree."""
    correction_prior: float = Field(8.0, ge=0)
    """Doubt whether other text asks for the same correction, in tokens per input channel: one from few tokens is applied in part."""
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
    """Steps of tuning per block; twice as many took 6 % off a small Llama's KL at int3, and twice the time."""
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

    @property
    def corrects(self) -> bool:
        """Whether linears make up for what was lost before them; rounding to nearest has nothing to do it with."""
        return self.method == "gptq" and self.correction != "none"

    @property
    def in_order(self) -> bool:
        """Whether a block's linears are solved behind each other, where text is looked at: not where scales are folded into what is
        before them, nor where all of a block is tuned together from plain solutions.
        """
        return self.corrects or (self.method != "awq" and self.tune == "none")

    @property
    def takes_shortcuts(self) -> bool:
        """Whether what a linear reads as it is looked at is what it reads when its block is passed; tuning changes what is before it."""
        return self.in_order and self.tune == "none"

    @property
    def factors_by_energy(self) -> bool:
        """Whether Hessians are factored in the order of their inputs' energy, in which GPTQ walks columns."""
        return self.method == "gptq" and self.act_order

    @property
    def looks_at_inputs(self) -> bool:
        """Whether calibration text is needed; rounding to nearest looks at none, unless it is tuned."""
        return self.method not in UNCALIBRATED or self.tune != "none"

    def by_block(self, *others: Method) -> QuantizationConfig:
        """The same without what concerns the whole model alone, and what neither its method nor `others` look at."""
        unused = {"tune_model_steps", "tune_model_rate"}
        if "adaround" not in (self.method, *others):
            unused.add("learned_rounding_steps")
        defaults = {name: type(self).model_fields[name].default for name in unused}
        tune = "none" if self.tune == "none" else "block"
        return self.model_copy(update=defaults | {"tune": tune})

    @field_validator("scale_search", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return (
            {True: "hessian", False: "none"}.get(value, value) if isinstance(value, bool) else value
        )


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
