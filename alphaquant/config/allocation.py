"""Config section allocation: which linear gets which format."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from alphaquant.config.section import FormatName, GroupSize, Section, offer, offer_list
from alphaquant.formats.table import FORMATS

DEFAULT_MENU = ("int2", "int3", "int4", "int6", "int8", "mxfp4", "mxfp6", "mxfp8", "bf16")
_NAMES = tuple(FORMATS)


class Override(Section):
    """One rule of a plan: linears whose name matches get this format."""

    pattern: str
    """Glob over linear names, such as model.layers.0.*, or a regular expression after re:"""
    wq: FormatName | None = Field(None, title="Weight format (wq)")
    """Such as int4, mxfp8 or int4-g64-asym."""
    aq: FormatName | None = Field(None, title="Activation format (aq)")
    """Format that inputs are rounded to as the model runs, such as int8 or mxfp8: simulated in evaluation, asked for by compressed-tensors checkpoints."""
    group_size: GroupSize | None = None
    """Weights that share one scale; -1 for one scale per output channel."""
    skip: bool = False
    """Keep the weight as it is (bf16)."""


class DefaultScheme(Section):
    """The format of every linear that no override names."""

    wq: Annotated[FormatName, offer(_NAMES)] = Field("mxfp4", title="Weight format (wq)")
    """A name, or a name with group and zero point such as int4-g64-asym."""
    aq: FormatName | None = Field(None, title="Activation format (aq)")
    """Format that inputs are rounded to as the model runs, such as int8 or mxfp8: simulated in evaluation, asked for by compressed-tensors checkpoints."""
    group_size: GroupSize | None = None
    """Weights per scale; empty means quantization.group_size."""


class AllocationConfig(Section):
    """How the bits are spent."""

    policy: Literal["budget", "ratio", "alpha", "uniform", "manual"] = "budget"
    """budget: least predicted loss for the bits. alpha: the same from spectra alone. ratio: fixed shares in the order of alpha. uniform: the default for all. manual: overrides, then the default."""
    target_bits: float = Field(4.25, gt=0, le=16)
    """Policies budget and alpha: stored bits per weight over the decoder's linears, never exceeded; lm_head does not count."""
    formats: Annotated[tuple[FormatName, ...], offer_list(_NAMES)] = DEFAULT_MENU
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
    lm_head: FormatName | None = None
    """Format of the output projection, such as int8-g128, beside target_bits; empty keeps it as it is stored. A head tied to the embedding becomes a matrix of its own."""
    overrides: tuple[Override, ...] = ()
    """Rules for named linears; the last match wins."""
    default: DefaultScheme = DefaultScheme()
    """Scheme of uniform and manual plans."""

    @field_validator("formats")
    @classmethod
    def _known_formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("the list is empty; name at least one format, such as int4")
        return value

    @model_validator(mode="after")
    def _ratios(self) -> AllocationConfig:
        if self.mxfp4_ratio + self.bf16_ratio > 1:
            raise ValueError(
                f"mxfp4_ratio {self.mxfp4_ratio} + bf16_ratio {self.bf16_ratio} is more than 1"
            )
        return self
