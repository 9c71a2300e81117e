"""Keys and values of tokens to come get their place at once: transformers' cache copies all of them for every token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A cache layer of up to `room` tokens, which goes on from `keys` and `values` `[windows, heads, tokens, width]`.

    For writing on alone: whoever reorders or selects windows is not followed.
    """

    def __init__(self, keys: Tensor, values: Tensor, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._tokens = 0
        self._places = tuple(x.new_empty(*x.shape[:-2], room, x.shape[-1]) for x in (keys, values))
        self.update(keys, values)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add tokens; returns the keys and values of all that there are."""
        begin, self._tokens = self._tokens, self._tokens + key_states.shape[-2]
        for place, new in zip(self._places, (key_states, value_states), strict=True):
            place[..., begin : self._tokens, :] = new
        self.keys, self.values = (place[..., : self._tokens, :] for place in self._places)
        return self.keys, self.values


def make_room(cache: Any, tokens: int) -> None:
    """Let the layers of a model's `cache` that would grow have room for so many tokens; others stay what they are."""
    layers = getattr(cache, "layers", [])
    for at, layer in enumerate(layers):
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            layers[at] = RoomyLayer(layer.keys, layer.values, tokens)
