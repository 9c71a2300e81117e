from __future__ import annotations

import pytest
import torch

from alphaquant.algorithms.scaled_stack import ScaledStack
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight, quantize_weight

CPU = torch.device("cpu")
SCHEMES = ["int3-g16", "int4-g16-asym", "int4-g20", "fp6-g16", "mxfp4", "nvfp4"]


def weights(text: str, rows: int = 5, cols: int = 48) -> list[QuantizedWeight]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, rows, cols, generator=generator)
    return [quantize_weight(value, Scheme.parse(text), search="mse") for value in values]


def stack(text: str, dtype: torch.dtype = torch.float32) -> ScaledStack:
    return ScaledStack(["a", "b"], weights(text), dtype, CPU)


@pytest.mark.parametrize("text", SCHEMES)
def test_a_stack_begins_with_the_weights_it_was_given(text: str) -> None:
    begun = stack(text)
    seen, stored = dict(begun.weights()), dict(begun.quantized())
    for name, weight in zip("ab", weights(text), strict=True):
        assert torch.equal(seen[name], weight.dequantize())
        assert torch.equal(stored[name].codes, weight.codes)
        assert torch.equal(stored[name].dequantize(), weight.dequantize())


@pytest.mark.parametrize("text", SCHEMES[:4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_forward_pass_sees_is_what_is_stored(text: str, dtype: torch.dtype) -> None:
    moved = stack(text, dtype)
    assert moved.factor is not None
    with torch.no_grad():
        moved.factor += 0.1 * torch.randn(moved.factor.shape)
    seen = dict(moved.weights())
    for name, weight in moved.quantized():
        again = QuantizedWeight.from_tensors(name, weight.tensors(name), weight.scheme)
        assert torch.equal(again.dequantize().to(dtype).float(), seen[name])
        assert not torch.equal(seen[name], dict(stack(text, dtype).weights())[name])


@pytest.mark.parametrize("text", SCHEMES[:4])
def test_the_gradient_of_a_factor_is_that_of_its_groups_values(text: str) -> None:
    begun = stack(text)
    assert begun.factor is not None
    upstream = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1))
    sum(
        (value * up).sum() for (_, value), up in zip(begun.weights(), upstream, strict=True)
    ).backward()
    width = Scheme.parse(text).group_width(48)
    values = torch.stack([weight.dequantize() for weight in weights(text)])
    expected = [part.sum(-1) for part in (values * upstream).split(width, -1)]
    torch.testing.assert_close(begun.factor.grad, torch.stack(expected, -1))


@pytest.mark.parametrize("text", ["mxfp4", "nvfp4"])
def test_scales_that_are_too_coarse_to_move_stay(text: str) -> None:
    assert stack(text).factor is None
