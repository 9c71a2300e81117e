"""What each step has to do at the least, by formula, from linears, tokens and schemes.

With a weight `[r, c]`, T tokens that reach it and G groups of linears that read one input:

    forward             2 r c T
    Hessian             2 c² T for every distinct input
    factor              c³/3 for every distinct input, and as much for its inverse
    scale search        8 r c for every scale that is tried: divide, round, clamp, multiply, subtract, square, weigh, add
    columns             r c²: every column's error goes to those behind it
    refinement          2 r c² for every sweep, and for the refit behind them
    errors              r c² for each of three forms dᵀHd, whose H is symmetric
    what is lacking     2 c² T for every distinct input, or 2 r c T where outputs join the stream
    backward            4 r c T: forward once more, and gradients of activations, not of weights
    spectrum            2 s² l for the Gram matrix of the shorter side s, 4/3 s³ to make it tridiagonal

Attention's own products, norms and activations are left out, and so is whatever an implementation does twice: these are
floors. Bytes count once: a weight is read in the precision that it is stored in, and results are written once. Experts get
their share of the tokens, as an even router would send them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from alphaquant.clock import Step
from alphaquant.config import AlphaConfig, QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.search import tries
from alphaquant.linalg.farms import WINDOW, block_corners
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.footprint import routed_experts
from alphaquant.models.joins import WRITERS
from alphaquant.models.linear import LinearSpec
from alphaquant.work import Work

_FP32 = 4  # bytes
_TRY = 8  # FLOP per weight and scale


@dataclass(frozen=True)
class Tokens:
    """Tokens that pass a model on a device, and how many of them reach an expert."""

    count: int
    share: float = 1.0
    """Experts that a token is sent to, of all in its block."""
    half: bool = False
    """Whether forward passes and Hessians multiply bf16."""

    @classmethod
    def of(cls, model: Checkpoint, count: int, *, half: bool) -> Tokens:
        """So many tokens of a model; one of an unknown kind sends each to one expert."""
        experts = 1 + max((s.expert for s in model.specs if s.expert is not None), default=0)
        return cls(count, min(1.0, routed_experts(model) / experts), half)

    def reaching(self, spec: LinearSpec) -> float:
        """Tokens that a linear sees."""
        return self.count * (self.share if spec.expert is not None else 1.0)

    def product(self, flop: float, moved: float = 0.0) -> Work:
        """FLOP in the precision that forward passes have."""
        return Work(tensor_flop=flop, moved=moved) if self.half else Work(flop=flop, moved=moved)


def stored_bytes(model: Checkpoint, prefix: str = "") -> Work:
    """Reading every tensor whose name begins so, once."""
    size = sum(
        prod(entry.shape) * int(re.findall(r"\d+", entry.dtype)[0]) / 8
        for name, entry in model.entries.items()
        if name.startswith(prefix) and entry.dtype != "BOOL"
    )
    return Work(moved=size, read=size)


def block_bytes(model: Checkpoint, index: int) -> Work:
    """Reading a block's tensors once."""
    return stored_bytes(model, f"{model.architecture.blocks}.{index}.")


def forward(specs: Iterable[LinearSpec], tokens: Tokens, times: float = 2.0) -> Work:
    """`times` r c T; weights are read and activations read and written once."""
    width = 2 if tokens.half else _FP32
    total = Work()
    for spec in specs:
        reached = tokens.reaching(spec)
        moved = width * (spec.size + reached * (spec.rows + spec.cols))
        total += tokens.product(times * spec.size * reached, moved)
    return total


def hessians(specs: Iterable[LinearSpec], tokens: Tokens) -> Work:
    """2 c² T for every distinct input."""
    width = 2 if tokens.half else _FP32
    total = Work()
    for spec in {spec.input_key: spec for spec in specs}.values():
        reached = tokens.reaching(spec)
        moved = _FP32 * spec.cols**2 + width * reached * spec.cols
        total += tokens.product(2 * spec.cols**2 * reached, moved)
    return total


def factor(specs: Iterable[LinearSpec], thirds: int) -> Work:
    """So many times c³/3 for every distinct input; each reads and writes a matrix."""
    distinct = {spec.input_key: spec.cols for spec in specs}.values()
    flop = sum(thirds * cols**3 / 3 for cols in distinct)
    return Work(flop=flop, moved=sum(2 * thirds * _FP32 * cols**2 for cols in distinct))


def search(specs: Iterable[LinearSpec], schemes: Mapping[str, Scheme], asked: str) -> Work:
    """8 r c for every scale that is tried; without a search the rule's scale alone."""
    total = Work()
    for spec in specs:
        scales = 1 if asked == "none" else tries(schemes[spec.name])
        total += Work(flop=_TRY * scales * spec.size, moved=_FP32 * spec.size)
    return total


def quadratic(specs: Iterable[LinearSpec], times: float) -> Work:
    """`times` r c², for what goes through a linear's Hessian."""
    total = Work()
    for spec in specs:
        moved = _FP32 * (2 * spec.size + spec.cols**2)
        total += Work(flop=times * spec.size * spec.cols, moved=moved)
    return total


def quantized_block(
    model: Checkpoint,
    index: int,
    specs: Sequence[LinearSpec],
    schemes: Mapping[str, Scheme],
    tokens: Tokens,
    windows: int,
    config: QuantizationConfig,
) -> dict[Step, Work]:
    """Block `index`, of `specs`, quantized by `schemes` behind `tokens` in so many windows.

    Its hidden states are advanced from the block before, which is taken to be alike.
    """
    rounded = [spec for spec in specs if schemes[spec.name].format != "bf16"]
    if not rounded:
        return {}
    bits = sum(schemes[s.name].bits_per_weight(s.cols, rows=s.rows) * s.size for s in rounded)
    found: dict[Step, Work] = {
        "load weights": block_bytes(model, index),
        "scale search": search(rounded, schemes, config.scale_search),
        "errors": quadratic(rounded, 3),
        "write": Work(written=bits / 8),
    }
    inverse = config.method == "gptq"
    found["factor"] = factor(rounded, 1 + inverse)
    if config.method == "gptq":
        found["columns"] = quadratic(rounded, 1)
        found["refinement"] = quadratic(rounded, 2 * (config.sweeps + config.refit))
    if not tokens.count:
        return found
    one = forward(specs, tokens)
    # nothing that the linears see depends on the outputs of the last ones
    last = forward([s for s in specs if s.role == "down"], tokens)
    inner = forward([s for s in specs if s.role != "down"], tokens)
    found["forward and Hessians"] = inner + hessians(specs, tokens)
    if config.corrects:
        found["forward and Hessians"] += _lacking(specs, tokens)
    if index:
        # the rest of a block whose linears are solved in order has been computed by who looked at it
        found["forward"] = last if config.takes_shortcuts else one
    if config.corrects or config.tune != "none":
        found["original's blocks"] = one
    if config.tune != "none":
        # forward, and gradients of activations and of weights; ahead, the next block without the last
        passes = 3 + 2 * config.tune_ahead
        share = config.tune_steps * min(config.tune_batch_size, windows) / windows
        found["tuning"] = one * (passes * share)
    return found


def _lacking(specs: Sequence[LinearSpec], tokens: Tokens) -> Work:
    """What correction gathers besides: what outputs lack that join the stream, and inputs elsewhere."""
    joining = [spec for spec in specs if spec.role in WRITERS]
    others = [spec for spec in specs if spec.role not in WRITERS]
    return hessians(others, tokens) + forward(joining, tokens)


def sensitivity(
    model: Checkpoint,
    tokens: Tokens,
    backward: Tokens,
    schemes: Sequence[Scheme],
    scale_search: str,
) -> dict[Step, Work]:
    """Predicted losses in every format; `backward` are the tokens whose gradients are taken."""
    specs = [spec for spec in model.specs if spec.block is not None]
    total, inside = Work(), Work()
    for scheme in schemes:
        total += search(specs, {spec.name: scheme for spec in specs}, scale_search)
    for index in range(model.blocks):
        inside += block_bytes(model, index)
    head = [spec for spec in model.plannable if spec.role == "lm_head"]
    return {
        "load weights": stored_bytes(model) + inside,  # blocks once more for the way back
        "forward and Hessians": forward(specs, tokens) + hessians(specs, tokens),
        "factor": factor(specs, 1),
        "scale search": total,
        "errors": quadratic(specs, 1),
        "backward": forward([*specs, *head], backward, 4),
    }


def spectra(model: Checkpoint, config: AlphaConfig) -> dict[Step, Work]:
    """Eigenvalues of every linear, of the whole matrix or of FARMS' windows."""
    flop = size = 0.0
    for spec in model.specs:
        short, long = sorted((spec.rows, spec.cols))
        count = 1
        if config.estimator == "farms":
            count = len(block_corners(spec.rows, spec.cols, config.seed))
            short = long = min(WINDOW, short)
        flop += count * (2 * short**2 * long + 4 / 3 * short**3)
        size += spec.size
    return {
        "load weights": stored_bytes(model),
        "spectrum": Work(flop=flop, moved=_FP32 * size),
        "moments": Work(flop=8 * size, moved=_FP32 * size),
    }


def predicted(model: Checkpoint, tokens: Tokens) -> dict[Step, Work]:
    """A model over tokens, its head included."""
    return {"load weights": stored_bytes(model), "forward": forward(model.plannable, tokens)}
