"""The kernels in C, by the compiler of this machine: they do what torch does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
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
from alphaquant.formats.weight import find_scales
from alphaquant.linalg.hessian import inverse_factor, output_error
from alphaquant.models.device import torch_threads
from alphaquant.progress import reporting_to
from tests.algorithms.kernel_cases import *  # noqa: F403
from tests.algorithms.kernel_cases import CPU, VARIANTS, Choose, WalkTile
from tests.algorithms.test_gptq import problem
from tests.notes import Notes

if not any(map(shutil.which, ("cc", "gcc", "clang"))):
    pytest.skip("needs a C compiler", allow_module_level=True)


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
    yield tmp_path / "compiled"
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
    in_c.library(columns_in_c._SOURCE)
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
    in_c.library(columns_in_c._SOURCE)
    assert compiled


def test_where_nothing_can_be_kept_it_is_compiled_each_time(
    anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anew.parent.joinpath("compiled").write_text("a file, not a folder")
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
    for serves in (refine_module._serves_in_c, lambda _: False):
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


@pytest.mark.parametrize("moves", [False, True])
def test_a_descent_where_sums_are_exact_is_that_of_torch(moves: bool) -> None:
    generator = torch.Generator().manual_seed(6)

    def whole(*size: int, limit: int) -> torch.Tensor:
        return torch.randint(-limit, limit + 1, size, generator=generator).float()

    found = []
    start = {name: whole(3, 32, 70, limit=6) for name in ("slope", "values", "left")}
    square = torch.diag_embed(torch.full((3, 32), 2.0))
    for by in (descent_in_c, descent):
        block = Block(
            FORMATS["int4"],
            *(16, square, torch.full((3, 32), 0.5), start["slope"].clone()),
            *(torch.tensor([1.0, 2.0, 0.5]), torch.full((3, 2, 70), 0.5), None),
            *(start["values"].clone(), start["left"].clone()),
        )
        by.descend(block, refits=not moves, moves=moves)
        found.append(block)
    for name in ("scale", "values", "left"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name)), name


def test_a_descent_does_not_depend_on_threads_or_on_the_rows_beside() -> None:
    weight, hessian = problem(rows=600, cols=139)
    factor, start = inverse_factor(hessian), rtn(weight, Scheme.parse("int4-g32"))
    found = []
    for threads in (1, 3):
        with torch_threads(threads):
            found.append(refine(weight, factor.damped, start, sweeps=2)[0])
    assert torch.equal(found[0].codes, found[1].codes)
    assert torch.equal(found[0].scales.scale, found[1].scales.scale)


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
