"""The kernels in C, by the compiler of this machine: they do what torch does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from alphaquant import in_c
from alphaquant.algorithms import column_tile, column_walk, columns_in_c, descent, descent_in_c
from alphaquant.algorithms import refine as refine_module
from alphaquant.algorithms.column_tile import Rounding
from alphaquant.algorithms.descent import Block
from alphaquant.algorithms.refine import refine
from alphaquant.algorithms.rtn import rtn
from alphaquant.formats import kernels, search, search_in_c
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.table import FORMATS, NumberFormat
from alphaquant.formats.weight import find_scales, quantize_weight
from alphaquant.linalg.hessian import inverse_factor, output_error
from alphaquant.models.device import torch_threads
from alphaquant.progress import reporting_to
from tests.algorithms.kernel_cases import *  # noqa: F403
from tests.algorithms.kernel_cases import CPU, VARIANTS, Choose, WalkTile
from tests.algorithms.test_gptq import problem
from tests.notes import Notes

try:
    in_c._compiler()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture
def walk() -> WalkTile:
    return columns_in_c.walk_tile


@pytest.fixture
def wide_walk() -> WalkTile:
    return columns_in_c.walk_tile


@pytest.fixture
def choose() -> Choose:
    return search_in_c.best_candidates


@pytest.mark.parametrize("out", [1, 63, 64, 200, 2500])
def test_rows_are_those_of_the_whole_however_many_threads_take_them(out: int) -> None:
    generator = torch.Generator().manual_seed(4)
    local = torch.randn(2, 30, out, generator=generator)
    coupling = torch.randn(2, 30, 30, generator=generator) / 8
    scale = torch.rand(2, 3, out, generator=generator) + 0.1
    group = torch.arange(30).expand(2, 30) // 10
    found = []
    for threads in (1, 3):
        with torch_threads(threads):
            rounding = Rounding(FORMATS["int4"], scale, None, group, torch.ones(2, 30))
            values, steps, left = (torch.empty_like(local) for _ in range(3))
            left.copy_(local)
            columns_in_c.walk_tile(left, coupling, rounding, values, steps)
            found.append((values, steps, left))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    few = slice(0, min(out, 5))
    rounding = Rounding(FORMATS["int4"], scale[..., few], None, group, torch.ones(2, 30))
    part, steps = torch.empty(2, 30, few.stop), torch.empty(2, 30, few.stop)
    columns_in_c.walk_tile(local[..., few].contiguous(), coupling, rounding, part, steps)
    assert torch.equal(part, found[0][0][..., few])


def test_of_groups_whose_errors_vanish_the_first_scale_is_taken() -> None:
    fmt = FORMATS["nvfp4"]
    groups = torch.tensor([0.5, -1.0, 3.0, 6.0] * 4).view(1, 1, 16) * 2.0**-133
    scales = (torch.tensor([0.5, 1.0, 2.0]) * 2.0**-133)[:, None, None]
    assert search_in_c.best_candidates(groups, None, scales, None, fmt).item() == 0


@pytest.fixture
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No kernel has been tried or compiled; the folder where compiled ones are kept."""
    monkeypatch.setenv("ALPHAQUANT_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "_tried", set())
    monkeypatch.setattr(kernels, "_broken", set())
    in_c.library.cache_clear()
    yield tmp_path / f"compiled-{os.getuid()}"
    in_c.library.cache_clear()


def _serves() -> bool:
    rounding = _rounding("int4")
    return column_walk._serves(columns_in_c.walk_tile, torch.zeros(1, 4, 4), rounding)


def _rounding(name: str) -> Rounding:
    group = torch.zeros(1, 4, dtype=torch.int64)
    return Rounding(FORMATS[name], torch.ones(1, 1, 4), None, group, torch.ones(1, 4))


def test_what_was_compiled_is_kept_for_the_next_process(
    anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _serves()
    (kept,) = anew.iterdir()
    in_c.library.cache_clear()
    monkeypatch.setattr(in_c, "_compile", None)  # nobody compiles any more
    in_c.library(columns_in_c._SOURCE, **columns_in_c.MACROS)
    assert [kept] == list(anew.iterdir())


def test_what_others_could_have_written_is_not_run(
    anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _serves()
    (kept,) = anew.iterdir()
    kept.chmod(0o777)
    in_c.library.cache_clear()
    compiled: list[Any] = []
    compiles = in_c._compile
    monkeypatch.setattr(in_c, "_compile", lambda *given: compiled.append(1) or compiles(*given))
    in_c.library(columns_in_c._SOURCE, **columns_in_c.MACROS)
    assert compiled


def test_where_nothing_can_be_kept_it_is_compiled_each_time(
    anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anew.write_text("a file, not a folder")
    assert _serves()


@pytest.mark.parametrize(
    ("compiler", "said"),
    [("no-such-compiler", "no C compiler (no-such-compiler)"), ("false", "cannot compile")],
)
def test_where_it_cannot_be_compiled_the_user_is_told_once_and_torch_does_it(
    compiler: str, said: str, anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    notes = Notes()
    with reporting_to(notes):
        assert not _serves()
        assert not _serves()
        walker, _ = column_walk._walker(torch.zeros(1, 4, 4), _rounding("int4"))
    assert walker is column_tile.walk_tile
    (note,) = notes.said
    assert said in note
    assert "GPU" not in note


def test_a_compiler_that_knows_no_such_cpu_compiles_for_any(
    anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_c, "_CPU_FLAGS", (("-march=no-such-cpu",),))
    assert _serves()


def test_a_kernel_is_held_against_torch_before_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(column_walk, "_agrees", lambda *variant: not asked.append(variant))
    monkeypatch.setattr(kernels, "_tried", set())
    local = torch.zeros(1, 4, 4)
    walk = columns_in_c.walk_tile
    for name in ("int4", "int4", "nf4", "bf16"):
        assert column_walk._serves(walk, local, _rounding(name)) == (name != "bf16")
    assert [variant[2].name for variant in asked] == ["int4", "nf4"]
    # columns that lie apart in memory are torch's
    assert not column_walk._serves(walk, torch.zeros(1, 5, 4).mT, _rounding("int4"))


@pytest.mark.parametrize(
    ("fmt", "asymmetric"), VARIANTS, ids=[f"{f.name}-{a}" for f, a in VARIANTS]
)
def test_every_walk_would_be_trusted(fmt: NumberFormat, asymmetric: bool) -> None:
    for moving in (False, True):
        assert column_walk._agrees(columns_in_c.walk_tile, CPU, fmt, asymmetric, moving)


def test_a_child_of_a_fork_has_threads_of_its_own() -> None:
    code = """
import os
import torch
from alphaquant.in_c import spread

torch.set_num_threads(3)
done = []
spread(lambda *part: done.append(part), None, 9, 1)
assert len(done) == 3
child = os.fork()
if child == 0:
    spread(lambda *part: done.append(part), None, 9, 1)
    os._exit(len(done))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 6
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("text", ["int2-g64", "int4-g48-asym", "fp6-g32", "nf4"])
@pytest.mark.parametrize("weighted", [False, True])
def test_searched_scales_are_refitted_as_torch_does(
    text: str, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(2, 33, 200, generator=generator)
    importance = torch.rand(2, 200, generator=generator) if weighted else None
    scheme = Scheme.parse(text)
    asked: list[int] = []
    refitted = search_in_c.refitted
    monkeypatch.setattr(search_in_c, "refitted", lambda *given: asked.append(1) or refitted(*given))
    found = find_scales(weight, scheme, search="mse", importance=importance)
    assert bool(asked) == (scheme.number_format.scale_type == "bfloat16")
    monkeypatch.setattr(search, "refitted", lambda *_: None)
    expected = find_scales(weight, scheme, search="mse", importance=importance)
    assert float((found.scale == expected.scale).float().mean()) > 0.99


def test_groups_of_nothing_but_zeros_keep_their_scale() -> None:
    groups = torch.zeros(1, 3, 2, 16)
    scales = torch.tensor([1.0, -0.5]).expand(1, 3, 2)
    assert torch.equal(search_in_c.refitted(groups, None, scales, None, FORMATS["int4"], 2), scales)


@pytest.mark.parametrize(
    ("fmt", "asymmetric"), VARIANTS, ids=[f"{f.name}-{a}" for f, a in VARIANTS]
)
def test_refinement_would_be_trusted(fmt: NumberFormat, asymmetric: bool) -> None:
    assert refine_module._agrees(fmt, asymmetric)


@pytest.mark.parametrize(
    "text",
    [
        "int3-g64",
        "int4-g48-asym",
        "int4-perchannel",
        "int8-g16",
        "fp6-g32",
        "mxfp4",
        "nvfp4",
        "nf4",
    ],
)
@pytest.mark.parametrize(("sweeps", "refit"), [(2, True), (1, False), (0, True)])
def test_refinement_in_c_loses_as_little_as_in_torch(
    text: str, sweeps: int, refit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, hessian = problem(rows=70, cols=299, batch=(2,))
    scheme, factor = Scheme.parse(text), inverse_factor(hessian)
    start = rtn(weight, scheme)
    found = []
    asked: list[int] = []
    descend = descent_in_c.descend
    monkeypatch.setattr(
        descent_in_c, "descend", lambda *block, **what: asked.append(1) or descend(*block, **what)
    )
    for serves in (refine_module._serves_in_c, lambda _: False):
        wide = sweeps == 0 and text.endswith("perchannel")  # whose refit is torch's
        assert bool(asked) == (bool(found) and not wide)
        monkeypatch.setattr(refine_module, "_serves_in_c", serves)
        refined, wanted = refine(weight, factor.damped, start, sweeps=sweeps, refit=refit)
        assert wanted is not None
        found.append((refined, wanted, output_error(weight - refined.dequantize(), factor.damped)))
    (ours, our_wish, our_loss), (theirs, their_wish, their_loss) = found
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-3, atol=0)
    assert float((ours.codes == theirs.codes).float().mean()) > 0.99
    assert float((ours.scales.scale == theirs.scales.scale).float().mean()) > 0.98
    near = (our_wish - their_wish).abs() <= 1e-3 * their_wish.abs() + 1e-3
    assert float(near.float().mean()) > 0.9


def _whole(*size: int, limit: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit + 1, size, generator=generator).float()


def _descended(
    by: Any, square: torch.Tensor, rows: slice = slice(None), **what: bool
) -> dict[str, torch.Tensor]:
    """Where a block of whole numbers ends, or some of its rows."""
    block = Block(
        FORMATS["int4"],
        *(16, square, torch.full((3, 32), 0.5), _whole(3, 32, 700, limit=6, seed=6)[..., rows]),
        *(torch.tensor([1.0, 2.0, 0.5]), torch.full((3, 2, 700), 0.5)[..., rows].clone(), None),
        *(_whole(3, 32, 700, limit=6, seed=7 + at)[..., rows].clone() for at in range(2)),
    )
    by.descend(block, **what)
    return {name: getattr(block, name) for name in ("scale", "values", "left")}


@pytest.mark.parametrize("moves", [False, True])
def test_a_descent_where_sums_are_exact_is_that_of_torch(moves: bool) -> None:
    square = torch.diag_embed(torch.full((3, 32), 2.0))
    if moves:  # whole numbers and their halves stay exact however they are coupled
        beside = _whole(3, 32, 32, limit=1, seed=9).triu(1)
        square = square + beside + beside.mT
    found = [
        _descended(by, square, refits=not moves, moves=moves) for by in (descent_in_c, descent)
    ]
    for name, ours in found[0].items():
        assert torch.equal(ours, found[1][name]), name


def test_a_descent_does_not_depend_on_threads_or_on_the_rows_beside() -> None:
    root = torch.randn(3, 40, 32, generator=torch.Generator().manual_seed(8))
    square = root.mT @ root / 40
    found = []
    for threads in (1, 3):
        with torch_threads(threads):
            found.append(_descended(descent_in_c, square, refits=True, moves=True))
    few = _descended(descent_in_c, square, slice(100, 105), refits=True, moves=True)
    for name, one in found[0].items():
        assert torch.equal(one, found[1][name])
        assert torch.equal(one[..., 100:105], few[name])


def test_nobody_writes_any_more_when_somebody_has_stopped_it() -> None:
    done: list[bool] = []

    def work(_: object, start: Any, stop: Any) -> None:
        if start.value == 0:
            raise KeyboardInterrupt
        time.sleep(0.2)
        done.append(True)

    begun = time.perf_counter()
    with torch_threads(3), pytest.raises(KeyboardInterrupt):
        in_c.spread(work, None, 3, 1)
    count = len(done)
    time.sleep(0.5)
    assert len(done) == count
    assert count == 0 or time.perf_counter() - begun > 0.2


def test_many_may_ask_at_once() -> None:
    seen: list[int] = []

    def work(_: object, start: Any, stop: Any) -> None:
        seen.extend(range(start.value, stop.value))

    def ask(_: int) -> None:
        with torch_threads(4):
            in_c.spread(work, None, 100, 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(40)))
    assert sorted(seen) == sorted(40 * list(range(100)))


def test_a_kept_file_that_cannot_be_loaded_is_made_again(anew: Path) -> None:
    assert _serves()
    (kept,) = anew.iterdir()
    good = kept.read_bytes()
    kept.unlink()  # the loaded one stays as it is
    kept.write_bytes(b"damaged")
    kept.chmod(0o700)
    in_c.library.cache_clear()
    kernels._tried.clear()
    assert _serves()
    assert kept.read_bytes()[:4] == good[:4]


def test_the_default_dtype_of_a_program_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    expected = quantize_weight(weight, Scheme.parse("int4-g32"), search="mse")
    monkeypatch.setattr(kernels, "_tried", set())
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = quantize_weight(weight, Scheme.parse("int4-g32"), search="mse")
        assert torch.equal(found.codes, expected.codes)
        assert found.dequantize().dtype == torch.float32
        assert column_walk._agrees(columns_in_c.walk_tile, CPU, FORMATS["nf4"], False, True)
        assert refine_module._agrees(FORMATS["int4"], True)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_c_would_misread_is_refused() -> None:
    group, inverse = torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 4)
    local, scale = torch.zeros(2, 4, 5), torch.ones(2, 1, 5)
    rounding = Rounding(FORMATS["int4"], scale, None, group, inverse)
    with pytest.raises(ValueError, match="2 matrices of 4 columns"):
        columns_in_c.walk_tile(local, torch.zeros(4, 4), rounding, local, local)
    with pytest.raises(ValueError, match=r"float64.*float32"):
        columns_in_c.walk_tile(local.double(), torch.zeros(2, 4, 4), rounding, local, local)


def test_more_columns_than_a_tile_has_are_refused() -> None:
    wide = torch.zeros(1, 129, 4)
    group, inverse = torch.zeros(1, 129, dtype=torch.int64), torch.ones(1, 129)
    rounding = Rounding(FORMATS["int4"], torch.ones(1, 1, 4), None, group, inverse)
    with pytest.raises(ValueError, match="129"):
        columns_in_c.walk_tile(wide, torch.zeros(1, 129, 129), rounding, wide, wide)
    block = Block(
        *(FORMATS["int4"], 129, torch.zeros(1, 129, 129), inverse, wide, torch.ones(1)),
        *(torch.ones(1, 1, 4), None, wide, wide),
    )
    with pytest.raises(ValueError, match="129"):
        descent_in_c.descend(block, refits=True, moves=True)
