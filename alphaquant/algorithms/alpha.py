"""Alpha: the Hill exponent of every linear's spectrum, beside its value for a Gaussian of that shape.

Two moments of the weights stand next to it, which other data-free rules rank by.

On a CPU each worker thread loads a weight, solves its spectrum on one core and drops it, so that reading
overlaps solving and at most one weight per worker is in memory. On a GPU those of one shape are solved together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor

from alphaquant.clock import in_threads, timed
from alphaquant.config import AlphaConfig
from alphaquant.errors import ConfigError, ModelError
from alphaquant.linalg.farms import farms_alpha
from alphaquant.linalg.hill import MIN_TAIL, HillFit, hill_alpha
from alphaquant.linalg.null import alpha_null
from alphaquant.linalg.recorded import reductions
from alphaquant.linalg.spectrum import spectrum
from alphaquant.models.device import available_cores, free_memory, room_for
from alphaquant.models.linear import LinearSpec
from alphaquant.models.read_ahead import in_order
from alphaquant.progress import reporter, track
from alphaquant.sizes import size_text

if TYPE_CHECKING:
    import pandas as pd

_NUMBER, _SQUARE = 24, 8
"""Bytes a weight, the stored one included, and a number of the Gram matrix, of a spectrum in fp64: measured, and more than FARMS takes."""
_SHARE = 8
"""One part in so many of a GPU's memory is for what is solved together, by the same count."""


Nulls: TypeAlias = Mapping[tuple[int, int], Future[tuple[float, float]]]
"""Mean and spread of alpha for Gaussian matrices of a shape, as they are known."""


class WeightSource(Protocol):
    """Where weights come from: a Checkpoint."""

    @property
    def specs(self) -> Sequence[LinearSpec]:
        """The linears to look at."""

    def weight(self, linear: str, /) -> Tensor:
        """A weight `[out, in]` by its linear's name; called from several threads."""


def alpha_table(
    checkpoint: WeightSource,
    config: AlphaConfig,
    workers: int | None = None,
    *,
    device: torch.device | None = None,
    tail_size: int | None = None,
    memory_limit: int | None = None,
) -> pd.DataFrame:
    """One row per linear: place, shape, alpha, its tail, its null value and z, log variance, kurtosis.

    alpha, z and ks are nan and tail_size is 0 where a spectrum has no tail to fit: a single row or
    column, rank below 2, equal eigenvalues. log_variance (natural logarithm) and kurtosis (3 for a
    Gaussian) are nan for a constant weight. `small` marks routers and matrices whose tail had to be padded to MIN_TAIL eigenvalues.
    `tail_size` replaces the share `config.tail_fraction` by a fixed number of eigenvalues. `workers`
    threads (all cores when None) change nothing in the result, and are fewer where more would take the process above
    `memory_limit` bytes. A GPU as `device` solves Hill's spectra, in fp32 with sums in an order of its own, and holds
    as much of them at once as that limit and its memory allow; FARMS' many small ones stay on the CPU. Raises ModelError that names a weight with NaN or infinite values, ConfigError where not even
    one worker stays below the limit.
    """
    import pandas as pd

    threads, workers = torch.get_num_threads(), workers or available_cores()
    gpu = None
    if device is not None and device.type == "cuda" and config.estimator == "hill":
        gpu = device
    if memory_limit is not None and gpu is None:
        workers = _workers_within(memory_limit, checkpoint.specs, workers)
    try:
        # beside a GPU threads draw nulls alone, and who waits for those says so
        begin = partial(_begin_thread, in_threads(workers) if gpu is None else lambda: None)
        with ThreadPoolExecutor(workers, "alpha", begin) as pool:
            # ahead of all rows, so that none waits for what has no worker; each shape once, as threads would draw it twice
            shapes = dict.fromkeys(_shape(spec, config) for spec in checkpoint.specs)
            nulls = {shape: pool.submit(_null, shape, config, tail_size) for shape in shapes}
            solved: Iterable[dict[str, Any]]
            if gpu is None:
                solved = pool.map(
                    partial(_row, checkpoint, config, tail_size, nulls), checkpoint.specs
                )
            else:
                solved = _rows_on_gpu(checkpoint, config, tail_size, nulls, gpu, memory_limit)
            found = {row["linear"]: row for row in track(solved, "alpha", len(checkpoint.specs))}
            rows = [found[spec.name] for spec in checkpoint.specs]
    finally:
        torch.set_num_threads(threads)
    return pd.DataFrame(rows).astype({"block": "Int64", "expert": "Int64"})


def _workers_within(limit: int, specs: Sequence[LinearSpec], workers: int) -> int:
    """So many of the workers as stay below the limit with the largest weights at one time; fewer than asked for are told."""
    room = room_for(limit, torch.device("cpu"))
    together = list(accumulate(sorted(map(_bytes, specs), reverse=True)[:workers]))
    fitting = sum(taken <= room for taken in together)
    if together and not fitting:
        raise ConfigError(
            f"execution.memory_limit is {size_text(limit)}, which leaves {size_text(max(room, 0))}, and alpha of the largest "
            f"linear may take {size_text(together[0], least=True)}. Raise the limit."
        )
    if fitting < len(together):
        reporter().note(
            f"alpha: {fitting} instead of {workers} workers, as {size_text(room)} of the memory limit are left and "
            f"{fitting + 1} of them may take {size_text(together[fitting])}"
        )
    return fitting


def _begin_thread(heard: Callable[[], None]) -> None:
    # one torch thread per worker: the pool already fills the cores, and sums keep their order
    torch.set_num_threads(1)
    heard()


def _shape(spec: LinearSpec, config: AlphaConfig) -> tuple[int, int]:
    """What the null depends on: a spectrum is that of the transpose, FARMS' windows lie along rows and columns."""
    if config.estimator == "farms":
        return spec.rows, spec.cols
    return min(spec.rows, spec.cols), max(spec.rows, spec.cols)


@timed("null")
def _null(
    shape: tuple[int, int], config: AlphaConfig, tail_size: int | None
) -> tuple[float, float]:
    return alpha_null(*shape, config.tail_fraction, config.estimator, config.seed, tail_size)


def _row(
    checkpoint: WeightSource,
    config: AlphaConfig,
    tail_size: int | None,
    nulls: Nulls,
    spec: LinearSpec,
) -> dict[str, Any]:
    weight = checkpoint.weight(spec.name)
    log_variance = _log_variance(weight, spec.name)
    fit = _fit(weight, config, tail_size)
    return _described(spec, config, nulls, fit, log_variance, _kurtosis(weight, log_variance))


def _rows_on_gpu(
    checkpoint: WeightSource,
    config: AlphaConfig,
    tail_size: int | None,
    nulls: Nulls,
    device: torch.device,
    memory_limit: int | None,
) -> Iterator[dict[str, Any]]:
    """The rows, those of one shape after another; what the GPU has no room for is solved on the CPU."""
    whole = torch.cuda.get_device_properties(device).total_memory
    room = (free_memory(device) or whole) // 2
    if memory_limit is not None:
        room = min(room, room_for(memory_limit, device))
    side = 0
    try:
        for specs in _together(checkpoint.specs, min(room, whole // _SHARE)):
            if _bytes(specs[0]) > room:
                yield from (_row(checkpoint, config, tail_size, nulls, spec) for spec in specs)
                continue
            if side != (side := min(specs[0].rows, specs[0].cols)):
                reductions.forget()
            with timed("load weights"):
                read = in_order(checkpoint.weight, [spec.name for spec in specs], device)
                weights = [weight.to(device) for weight in read]
            logs = [_log_variance(w, spec.name) for spec, w in zip(specs, weights, strict=True)]
            with timed("spectrum"):
                together = torch.stack([weight.float() for weight in weights])
                values = spectrum(
                    together, tail_fraction=config.tail_fraction, tail_size=tail_size
                ).cpu()
                del together
            for spec, weight, log, tail in zip(specs, weights, logs, values, strict=True):
                fit = hill_alpha(tail, config.tail_fraction, tail_size)
                yield _described(spec, config, nulls, fit, log, _kurtosis(weight, log))
    finally:
        reductions.forget()


def _together(specs: Sequence[LinearSpec], room: int) -> Iterator[list[LinearSpec]]:
    """Linears of one shape, as many as there is room for."""
    shapes: dict[tuple[int, int], list[LinearSpec]] = {}
    for spec in specs:
        shapes.setdefault((spec.rows, spec.cols), []).append(spec)
    for alike in shapes.values():
        most = max(1, room // _bytes(alike[0]))
        for start in range(0, len(alike), most):
            yield alike[start : start + most]


def _bytes(spec: LinearSpec) -> int:
    return _NUMBER * spec.size + _SQUARE * min(spec.rows, spec.cols) ** 2


def _described(
    spec: LinearSpec,
    config: AlphaConfig,
    nulls: Nulls,
    fit: HillFit,
    log_variance: float,
    kurtosis: float,
) -> dict[str, Any]:
    with timed("null"):
        null, spread = nulls[_shape(spec, config)].result()
    return {
        "linear": spec.name,
        "role": spec.role,
        "block": spec.block,
        "expert": spec.expert,
        "rows": spec.rows,
        "cols": spec.cols,
        "alpha": fit.alpha,
        "tail_size": fit.tail_size,
        "alpha_null": null,
        "z": (fit.alpha - null) / spread,
        "ks": fit.ks,
        "xmin": fit.xmin,
        "small": _is_small(spec, config.tail_fraction),
        "log_variance": log_variance,
        "kurtosis": kurtosis,
    }


@timed("spectrum")
def _fit(weight: Tensor, config: AlphaConfig, tail_size: int | None) -> HillFit:
    if config.estimator == "farms":
        return farms_alpha(weight, config.tail_fraction, config.seed, tail_size=tail_size)
    values = spectrum(weight, tail_fraction=config.tail_fraction, tail_size=tail_size)
    return hill_alpha(values, config.tail_fraction, tail_size)


@timed("moments")
def _log_variance(weight: Tensor, name: str) -> float:
    norm = torch.linalg.vector_norm(weight, dtype=torch.float64).item()
    if not math.isfinite(norm):
        raise ModelError(
            f"weight {name} holds NaN or infinite values; the checkpoint is damaged or its training "
            "diverged. Download it again or repair that weight."
        )
    square = norm**2 / weight.numel()
    variance: float = square - weight.mean(dtype=torch.float64).item() ** 2
    # What rounding leaves of a constant is no variance.
    return math.log(variance) if variance > 1e-12 * square else math.nan


@timed("moments")
def _kurtosis(weight: Tensor, log_variance: float) -> float:
    """Fourth central moment over the squared variance."""
    if math.isnan(log_variance):
        return math.nan
    values = weight.to(torch.float32, copy=True)  # the one copy of what may be the largest matrix
    values -= weight.mean(dtype=torch.float64).float()
    # in units of the standard deviation, so that fourth powers stay in the range of fp32
    values *= math.exp(-log_variance / 2)
    return float(values.square_().square_().mean(dtype=torch.float64))


def _is_small(spec: LinearSpec, tail_fraction: float) -> bool:
    return spec.role == "router" or tail_fraction * min(spec.rows, spec.cols) < MIN_TAIL
