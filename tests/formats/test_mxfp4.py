from __future__ import annotations

import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from alphaquant.formats.mxfp4 import decode_mxfp4

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # table 5 of the specification


def test_each_element_and_scale_is_that_of_the_specification() -> None:
    codes = torch.arange(32) % 16
    blocks = (codes[::2] | codes[1::2] << 4).to(torch.uint8)[None, None]  # [1, 1, 16]
    signed = E2M1 + [-value for value in E2M1]
    for exponent in (-127, -1, 0, 3, 125):  # beyond, the largest element overflows fp32
        scales = torch.tensor([[exponent + 127]], dtype=torch.uint8)
        expected = (torch.tensor(signed * 2, dtype=torch.float64) * 2.0**exponent).bfloat16()
        assert torch.equal(decode_mxfp4(blocks, scales)[0], expected)


def test_a_scale_that_is_no_number_makes_its_group_so() -> None:
    blocks = torch.full((1, 2, 16), 0x22, dtype=torch.uint8)
    values = decode_mxfp4(blocks, torch.tensor([[255, 127]], dtype=torch.uint8))
    assert values[0, :32].isnan().all()
    assert (values[0, 32:] == 1).all()


def test_transformers_decodes_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (3, 10, 4)  # experts, out, groups
    blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(90, 150, shape, generator=generator, dtype=torch.uint8)
    theirs = convert_moe_packed_tensors(blocks, scales)  # [experts, in, out]
    assert torch.equal(decode_mxfp4(blocks, scales), theirs.transpose(1, 2))
