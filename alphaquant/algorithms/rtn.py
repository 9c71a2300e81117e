"""Round to nearest: the baseline that looks at nothing but the weight."""

from __future__ import annotations

from torch import Tensor

from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import QuantizedWeight, quantize_weight


def rtn(
    weight: Tensor, scheme: Scheme, scale_search: str = "none", name: str = ""
) -> QuantizedWeight:
    """Quantize `[..., out, in]`. Without calibration, a `hessian` search is a plain `mse` search.

    Raises ModelError naming the weight when it holds NaN or infinity.
    """
    return quantize_weight(
        weight, scheme, search="none" if scale_search == "none" else "mse", name=name
    )
