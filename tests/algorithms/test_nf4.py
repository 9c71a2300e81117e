"""NF4 against what bitsandbytes does with a block, and the one format that the method takes."""

from __future__ import annotations

import pytest
import torch

from alphaquant.algorithms.nf4 import nf4
from alphaquant.config.file import parse_config
from alphaquant.errors import ConfigError
from alphaquant.formats.grid import to_codes
from alphaquant.formats.table import FORMATS
from tests.formats.test_table import NF4


def test_blocks_of_64_are_coded_as_bitsandbytes_codes_them() -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    blocks = weight.view(16, 4, 64)
    found = nf4(weight)
    # its scales keep fp32, ours eight bits: 3 % at most, and codes follow the scale that is stored
    largest = blocks.abs().amax(-1)
    torch.testing.assert_close(found.scales.effective, largest, rtol=2**-4, atol=0)
    distance = (blocks / found.scales.effective[..., None])[..., None] - torch.tensor(NF4)
    assert torch.equal(found.codes.view(16, 4, 64).long(), distance.abs().argmin(-1))


def test_ties_go_down_as_in_bitsandbytes() -> None:
    middle = (torch.tensor(NF4[1:]) + torch.tensor(NF4[:-1])) / 2
    just_above = middle + 1e-6
    assert to_codes(just_above, FORMATS["nf4"]).tolist() == list(range(1, 16))
    assert to_codes(middle - 1e-6, FORMATS["nf4"]).tolist() == list(range(15))


def test_the_error_of_normal_weights_is_below_that_of_even_steps_at_equal_bits() -> None:
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    error = (nf4(weight).dequantize() - weight).square().mean()
    assert 0.006 < float(error) < 0.0105


@pytest.mark.parametrize(
    ("allocation", "named"),
    [
        ({"policy": "uniform", "default": {"wq": "int3"}}, "int3"),
        ({"policy": "uniform", "default": {"wq": "int4"}}, "int4"),
        ({"policy": "budget"}, "int2"),
        ({"policy": "ratio"}, "mxfp4"),
        ({"policy": "manual", "default": {"wq": "nf4"},
          "overrides": [{"pattern": "*", "wq": "int8"}]}, "int8"),
    ],
)  # fmt: skip
def test_other_formats_are_refused_with_what_to_do(
    allocation: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({"quantization": {"method": "nf4"}, "allocation": allocation})
    message = str(error.value)
    assert named in message
    assert "allocation.default.wq=nf4" in message
    assert "found {" not in message


def test_nf4_is_not_packed() -> None:
    with pytest.raises(ConfigError, match=r"exported as values.*export\.format=dense"):
        parse_config(
            {
                "quantization": {"method": "nf4"},
                "allocation": {"policy": "uniform", "default": {"wq": "nf4"}},
                "export": {"format": "compressed-tensors"},
            }
        )


def test_nf4_and_kept_linears_go_together() -> None:
    config = parse_config(
        {
            "quantization": {"method": "nf4"},
            "allocation": {
                "policy": "uniform",
                "default": {"wq": "nf4"},
                "overrides": [{"pattern": "*.o_proj", "skip": True}],
            },
        }
    )
    assert config.quantization.method == "nf4"
