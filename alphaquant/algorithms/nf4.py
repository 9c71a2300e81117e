"""NF4: round to nearest in a codebook of normal quantiles, the storage of QLoRA.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (arXiv 2305.14314): every 64 weights are divided by
their largest magnitude, whose own 8 bits are the second quantization. Here that is an E4M3 scale under one power of
two of the matrix, 4.125 bits per weight; the paper's fp32 constant for 256 scales makes it 4.127.
"""

from __future__ import annotations

from torch import Tensor

from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight, quantize_weight

NF4 = Scheme("nf4")


def nf4(weight: Tensor, scheme: Scheme = NF4, name: str = "") -> QuantizedWeight:
    """Quantize `[..., out, in]` under its largest magnitudes, as published: no scale search.

    The scheme is another one only where `allocation.lm_head` gives the head one of its own. Raises ModelError
    naming the weight when it holds NaN or infinity.
    """
    return quantize_weight(weight, scheme, name=name)
