"""Schemes: reading, writing, refusing, and counting bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alphaquant
from alphaquant.errors import FormatError
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.table import FORMATS


@st.composite
def schemes(draw: st.DrawFn) -> Scheme:
    fmt = FORMATS[draw(st.sampled_from(sorted(FORMATS)))]
    group = draw(st.none() | st.integers(1, 4096)) if fmt.kind in ("int", "float") else None
    return Scheme(fmt.name, group, draw(st.booleans()) if fmt.is_integer else True)


@given(schemes())
@settings(deadline=None)
def test_the_text_of_a_scheme_reads_back_as_the_scheme(scheme: Scheme) -> None:
    assert Scheme.parse(str(scheme)) == scheme
    assert len({scheme, Scheme.parse(str(scheme))}) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int4", Scheme("int4", 128)),
        ("int4-g64-asym", Scheme("int4", 64, symmetric=False)),
        ("INT4-asym-g64 ", Scheme("int4", 64, symmetric=False)),
        ("fp8-perchannel", Scheme("fp8", None)),
        ("mxfp6", Scheme("mxfp6", 32)),
        ("mxfp6-g32", Scheme("mxfp6")),
        ("nvfp4-sym", Scheme("nvfp4", 16)),
        ("bf16", Scheme("bf16", None)),
    ],
)
def test_parse_reads_suffixes_in_any_order(text: str, expected: Scheme) -> None:
    assert Scheme.parse(text) == expected


def test_parse_takes_what_the_text_leaves_out_from_its_arguments() -> None:
    assert Scheme.parse("int3", group_size=32, symmetric=False) == Scheme("int3", 32, False)
    assert Scheme.parse("int3-g8-sym", group_size=32, symmetric=False) == Scheme("int3", 8)
    assert Scheme.parse("int3", group_size=-1) == Scheme.parse("int3", group_size=None)
    assert Scheme.parse("mxfp4", group_size=64, symmetric=False) == Scheme("mxfp4")
    assert Scheme.parse("bf16", group_size=64, symmetric=False) == Scheme("bf16")
    assert Scheme.parse("fp8", group_size=64, symmetric=False) == Scheme("fp8", 64)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("int5", "int4"),
        ("int4-g0", "positive"),
        ("int4-128", "-gN"),
        ("int4-g64-g128", "group twice"),
        ("int4-asym-sym", "symmetry twice"),
        ("fp4-asym", "int formats"),
        ("mxfp4-g64", "32"),
        ("mxfp4-perchannel", "perchannel"),
        ("nvfp4-g32", "16"),
        ("bf16-g128", "no scales"),
    ],
)
def test_an_impossible_scheme_is_refused_and_the_message_says_what_is_allowed(
    text: str, named: str
) -> None:
    with pytest.raises(FormatError, match=named):
        Scheme.parse(text)


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("int4-g128", 4.125),
        ("int4-g128-asym", 4.125 + 4 / 128),
        ("int3-g64", 3.25),
        ("int8-perchannel", 8 + 16 / 4096),
        ("fp8-g128", 8.125),
        ("mxfp4", 4.25),
        ("mxfp6", 6.25),
        ("mxfp8", 8.25),
        ("nvfp4", 4.5),
        ("bf16", 16.0),
    ],
)
def test_bits_per_weight_count_scales_and_zero_points(text: str, bits: float) -> None:
    assert Scheme.parse(text).bits_per_weight(4096) == bits


def test_the_scale_of_an_nvfp4_matrix_is_spread_over_its_weights() -> None:
    assert Scheme("nvfp4").bits_per_weight(64, rows=8) == 4.5 + 32 / 512
    assert Scheme("mxfp4").bits_per_weight(64, rows=8) == 4.25


def test_a_group_that_does_not_divide_the_row_leaves_a_shorter_last_one() -> None:
    scheme = Scheme("int4", 64)
    assert (scheme.groups(200), scheme.group_width(200)) == (4, 64)
    assert scheme.bits_per_weight(200) == 4 + 4 * 16 / 200


def test_a_group_larger_than_the_row_is_one_group() -> None:
    scheme = Scheme("int4", 128)
    assert (scheme.groups(48), scheme.group_width(48)) == (1, 48)
    assert scheme.bits_per_weight(48) == Scheme("int4", None).bits_per_weight(48)


def test_configs_and_schemes_load_without_torch() -> None:
    code = (
        "import sys, alphaquant.config, alphaquant.formats.scheme, alphaquant.formats.table\n"
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    root = Path(alphaquant.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
