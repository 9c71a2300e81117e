"""AWQ: scale the input channels that are large before rounding to nearest, so that they lose less.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv 2306.00978).
Channel i of an input is divided by s_i = mean|x_i|^α and its weights are multiplied by it; the division is taken up by
what makes the input (see `alphaquant.models.foldable`). α is searched for every group of linears with a common input
by the output error tr((W - Q)H(W - Q)ᵀ), then the scales of the rounding, which is the paper's search for clipping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from alphaquant.algorithms.stacks import AtOnce, Stack, stacked_weight, stacks
from alphaquant.clock import timed
from alphaquant.config import QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import quantize_weight
from alphaquant.linalg.hessian import HessianAccumulator, output_error
from alphaquant.models.checkpoint import Checkpoint, finite
from alphaquant.models.foldable import Fold, NoFold, folds
from alphaquant.models.linear import LinearSpec
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporter

_STEPS = 20  # values of α from 0, which scales nothing, to 0.95


@dataclass
class ScaledBlock:
    """A block that computes what the checkpoint's does from scaled weights and norms."""

    checkpoint: Checkpoint
    columns: dict[str, Tensor] = field(default_factory=dict)
    """What a linear's weights are multiplied by, by input `[in]`."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """What a linear's or norm's outputs are divided by `[out]`."""
    alphas: dict[str, float] = field(default_factory=dict)
    """The exponent found, by what makes the scaled inputs."""

    def weight(self, name: str) -> Tensor:
        """A linear's weight `[out, in]` or a norm's `[channels]`, scaled, in fp32 or wider."""
        stored = finite(self.checkpoint.weight(name), name).cpu()
        weight = stored.double() if stored.dtype == torch.float64 else stored.float()
        if (rows := self.rows.get(name)) is not None:
            weight = weight / rows.view(-1, *[1] * (weight.dim() - 1)).to(weight)
        if (columns := self.columns.get(name)) is not None:
            weight = weight * columns.to(weight)
        return weight

    def stack(self, stack: Stack) -> Stack:
        """The stack with the Hessians of the scaled inputs."""
        scales = [self.columns.get(spec.name) for spec in stack.specs]
        if all(scale is None for scale in scales):
            return stack
        one = torch.ones(stack.hessian.shape[-1])
        by = torch.stack([one if s is None else s for s in scales]).to(stack.hessian)
        return replace(stack, hessian=stack.hessian / by[..., :, None] / by[..., None, :])

    def moved(self, plan: QuantPlan) -> dict[str, Tensor]:
        """Scaled norms, and linears that the plan keeps, by name in the checkpoint's dtype."""
        return {
            name: self.weight(name).to(self.checkpoint.dtype(f"{name}.weight"))
            for name in dict.fromkeys([*self.rows, *self.columns])
            if name not in plan.schemes or plan.schemes[name].format == "bf16"
        }


@timed("channel scales")
def scale_block(
    checkpoint: Checkpoint,
    index: int,
    plan: QuantPlan,
    observed: Mapping[str, HessianAccumulator],
    config: QuantizationConfig,
    device: torch.device,
    at_once: AtOnce | None = None,
) -> ScaledBlock:
    """Find the scales of block `index` from the Hessians of its inputs, by input key.

    `at_once` says how many experts of a shape are looked at together.
    """
    block = ScaledBlock(checkpoint)
    shapes = {name: entry.shape for name, entry in checkpoint.entries.items()}
    specs = checkpoint.block_specs(index)
    left: dict[str, None] = {}
    for fold in folds(checkpoint.architecture, checkpoint.raw_config, shapes, specs):
        rounded = [
            spec
            for spec in (fold.readers if isinstance(fold, Fold) else ())
            if plan.schemes[spec.name].format != "bf16"
        ]
        if isinstance(fold, NoFold):
            left[f"{', '.join(fold.roles)}: {fold.reason}"] = None
        elif rounded:
            _search(block, fold, rounded, plan, observed, config, device, at_once)
    if left:
        reporter().note(f"awq: block {index} leaves inputs unscaled ({'; '.join(left)})")
    return block


def _search(
    block: ScaledBlock,
    fold: Fold,
    rounded: Sequence[LinearSpec],
    plan: QuantPlan,
    observed: Mapping[str, HessianAccumulator],
    config: QuantizationConfig,
    device: torch.device,
    at_once: AtOnce | None,
) -> None:
    """Give the fold's linears the scales under which the `rounded` among them lose least."""
    magnitude = _magnitude(fold, [observed[spec.input_key] for spec in rounded])
    scales = [_scale(magnitude, step / _STEPS) for step in range(_STEPS)]
    losses = [0.0] * _STEPS
    for stack in stacks(rounded, observed, config.expert_shrinkage, plan.schemes, at_once):
        # part by part: all of a block's weights and Hessians in fp32 are more than the block
        scheme = plan.schemes[stack.specs[0].name]
        part = _Part.of(block.checkpoint, stack, scheme, observed, device)
        for step, scale in enumerate(scales):
            losses[step] += part.loss(_for_readers(scale, fold).to(device))
        del stack, part
    chosen = min(range(_STEPS), key=losses.__getitem__)
    block.alphas[fold.source] = chosen / _STEPS
    if not chosen:
        return
    best = _storable(block.checkpoint, fold, scales[chosen].cpu())
    block.rows[fold.source] = best
    block.columns |= {spec.name: _for_readers(best, fold) for spec in fold.readers}


@dataclass(frozen=True)
class _Part:
    """Linears of one shape and scheme that read the fold's channels, and how much their errors count."""

    weight: Tensor  # [n, out, in]
    hessian: Tensor  # [n, in, in]
    mass: Tensor  # [n]
    scheme: Scheme

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        stack: Stack,
        scheme: Scheme,
        observed: Mapping[str, HessianAccumulator],
        device: torch.device,
    ) -> _Part:
        weight = stacked_weight(checkpoint, stack, device)
        mass = torch.tensor([observed[spec.input_key].mass for spec in stack.specs], device=device)
        return cls(weight, stack.hessian, mass, scheme)

    def loss(self, columns: Tensor) -> float:
        """Summed squared error of the outputs when inputs are scaled and weights rounded to nearest."""
        rounded = quantize_weight(self.weight * columns, self.scheme).dequantize() / columns
        return float((output_error(self.weight - rounded, self.hessian) * self.mass).sum())


def _magnitude(fold: Fold, seen: Sequence[HessianAccumulator]) -> Tensor:
    """Mean |x| of each channel that the source makes, over the tokens of all readers."""
    apart = {id(accumulator): accumulator for accumulator in seen}.values()
    total = torch.stack([accumulator.magnitudes for accumulator in apart]).sum(0)
    mean = total / max(sum(accumulator.mass for accumulator in apart), 1.0)
    return mean.view(-1, fold.copies, fold.width).mean(1).flatten()


def _scale(magnitude: Tensor, alpha: float) -> Tensor:
    """|x|^α around 1, as the paper's code has it; a channel that no input reaches stays as it is."""
    scale = torch.where(magnitude > 0, magnitude, 1.0) ** alpha
    alive = scale[magnitude > 0]
    if not alive.numel():
        return torch.ones_like(magnitude)
    middle = (alive.max() * alive.min()).sqrt()
    return torch.where(magnitude > 0, scale / middle, 1.0)


def _for_readers(scale: Tensor, fold: Fold) -> Tensor:
    """Scales of what the source makes, as the readers' inputs lie `[in]`."""
    return scale.view(-1, 1, fold.width).expand(-1, fold.copies, -1).flatten()


def _storable(checkpoint: Checkpoint, fold: Fold, scale: Tensor) -> Tensor:
    """Scales that a norm takes up exactly in its dtype: the quotient of what it is and of what it becomes."""
    stored = checkpoint.weight(fold.source).cpu()
    if stored.dim() != 1:
        return scale
    becomes = (stored.double() / scale).to(stored.dtype).double()
    exact = stored.double() / becomes
    return torch.where(torch.isfinite(exact) & (becomes != 0), exact, 1.0)
