"""What the last linear of a module reads: kept, so that passes behind the pass that made it need not run the module again.

Attention's answer is its output projection of what is kept, whatever becomes of that projection and of all behind it, as long as
queries, keys and values stay what they are; an MLP's is its down projection. That is found by trying: a block's code is asked, not
its name.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from alphaquant.models.block import BlockModel
from alphaquant.models.device import free_memory
from alphaquant.models.experts import experts_cut_short
from alphaquant.models.hooks import given, hooked, remember
from alphaquant.models.joins import TOKENS, rounding
from alphaquant.models.linear import ATTENDING_ROLES, ROLES, LinearSpec, Role
from alphaquant.models.tensor_file import TensorFile, Waiting
from alphaquant.progress import reporter

_INSIDE: dict[Role, frozenset[Role]] = {
    "o": ATTENDING_ROLES,
    "down": frozenset({"gate", "up", "gate_up"}),
}
"""What a module may run before its last linear. Of another, nobody knows when it is solved."""
_BEFORE: dict[Role, frozenset[Role]] = {
    "o": ATTENDING_ROLES,
    "down": frozenset(ROLES) - {"down"},
}
"""What of a block has to be settled when what the last linear reads is kept."""


_SPARE = 8
"""One part in so many of the room there is may go to what is kept of an MLP on a CPU."""


@dataclass
class Shortcut:
    """What the last linear of one module of a block reads of all windows, once somebody has kept it."""

    module: str
    """What need not run, by its path in the block."""
    projection: str
    """Its last linear, likewise."""
    role: Role
    """Of the last linear."""
    others: int | None
    """How many things the module returns besides, which nobody reads; None where it returns a tensor alone."""
    windows: int
    width: int
    """Channels of what is kept."""
    unread: Sequence[str] = ()
    """Parts of the block, such as a norm, whose output this module alone reads; they need not run either."""
    file: TensorFile | None = None
    """Where it waits, if not in memory."""
    _kept: dict[int, Tensor | Waiting] = field(init=False, default_factory=dict, repr=False)
    _room: Tensor | None = field(init=False, default=None, repr=False)
    _missing: int = field(init=False, repr=False)
    _lost: bool = field(init=False, default=False, repr=False)

    def __post_init__(self) -> None:
        self._missing = self.windows

    @property
    def whole(self) -> bool:
        """Whether all windows were kept."""
        return not self._missing and not self._lost

    def settled(self, specs: Sequence[LinearSpec]) -> bool:
        """Whether all that comes before the last linear is settled where these linears of the block are looked at."""
        return all(spec.role not in _BEFORE[self.role] for spec in specs)

    def inside(self, at: str | None) -> bool:
        """Whether a module by its path in the block is run by this one alone."""
        return at is not None and at.startswith(f"{self.module}.")

    def keep(self, part: slice, read: Tensor) -> None:
        """Keep what the last linear reads `[windows, length, width]` of a part of the windows.

        Where it reads that in pieces, or the disk is full, there is no shortcut.
        """
        whole = len(read) == part.stop - part.start and part.start not in self._kept
        try:
            if whole and not self._lost:
                self._kept[part.start] = self._put(part, read)
                self._missing -= len(read)
                return
        except OSError as error:
            reporter().note(f"what {self.module} hands on is not kept: {error}")
        self._lost, self._room = True, None
        self._kept.clear()

    def _put(self, part: slice, read: Tensor) -> Tensor | Waiting:
        """One tensor holds all that is in memory: parts that lie between what comes and goes would leave gaps."""
        if self.file is not None:
            return self.file.keep(read)
        if self._room is None:
            self._room = read.new_empty(self.windows, *read.shape[1:])
        self._room[part] = read
        return self._room[part]

    @contextlib.contextmanager
    def keeping(self, block: nn.Module, part: slice) -> Iterator[None]:
        """While open, what a pass of these windows hands to the last linear is kept, should it come to that."""

        def look(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.keep(part, args[0])

        handle = block.get_submodule(self.projection).register_forward_pre_hook(look)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def taken(self, block: nn.Module, part: slice) -> Iterator[None]:
        """While open, the module answers a pass of these windows, in the parts in which they were kept, from that; hooks of its
        last linear run all the same.
        """
        module, kept = block.get_submodule(self.module), self._kept[part.start]
        answer = partial(self._answer, block.get_submodule(self.projection), kept)
        with contextlib.ExitStack() as patches:
            patches.enter_context(patch.object(module, "forward", answer))
            for name in self.unread:
                part_of = block.get_submodule(name)
                patches.enter_context(patch.object(part_of, "forward", _as_it_is))
            yield

    def _answer(self, projection: nn.Module, kept: Tensor | Waiting, *_: Any, **__: Any) -> Any:
        found = projection(kept() if isinstance(kept, Waiting) else kept)
        return found if self.others is None else (found, *[None] * self.others)


def _as_it_is(read: Tensor, *_: Any, **__: Any) -> Tensor:
    return read


@contextlib.contextmanager
def along(
    ways: Sequence[Shortcut], block: nn.Module, part: slice, specs: Sequence[LinearSpec]
) -> Iterator[None]:
    """While open, a pass of these windows that looks at `specs` takes every shortcut that there is, and makes those that there can be."""
    with contextlib.ExitStack() as open_:
        for way in ways:
            if way.settled(specs):
                open_.enter_context((way.taken if way.whole else way.keeping)(block, part))
        yield


def by_shortcuts(
    ways: Sequence[Shortcut], block: nn.Module, run: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """`run` for batches `[windows, length, hidden]` of all windows, one after the other, by those shortcuts that are whole."""
    begin = 0

    def shorter(batch: Tensor) -> Tensor:
        nonlocal begin
        part = slice(begin, begin + len(batch))
        begin = part.stop
        with along([way for way in ways if way.whole], block, part, ()):
            return run(batch)

    return shorter


def shortcuts(
    model: BlockModel,
    block: nn.Module,
    index: int,
    sample: Tensor,
    windows: int,
    roles: Sequence[Role],
    beside: int,
    file: TensorFile | None = None,
) -> list[Shortcut]:
    """What may be kept of so many windows like `sample` `[some, length, hidden]` for last linears of these roles: what half of the free
    memory holds, of which `beside` bytes have to be left, or, in a `file`, of the disk.
    """
    found: list[Shortcut] = []
    if file is not None:
        room: int | None = shutil.disk_usage(file.folder).free // 2
    elif (free := free_memory(model.device)) is not None:
        room = min(free // 2, free - beside)
    else:
        room = None
    for role in roles:
        with experts_cut_short(block):  # hundreds of calls that tell nothing here
            way = shortcut(model, block, index, sample, role)
        if way is None:
            continue
        taken = windows * sample.shape[1] * way.width * model.dtype.itemsize
        if room is not None:
            most = room if role == "o" or model.device.type == "cuda" else room // _SPARE
            if taken > most:
                continue
            room -= taken
        found.append(replace(way, windows=windows, file=file))
    return found


def worth_keeping(device: torch.device, *, limited: bool) -> tuple[Role, ...]:
    """Last linears whose inputs should be kept. On a CPU, whose memory others want too, an MLP's are kept where there is plenty:
    they are as large as 2.7 times the hidden states of a Llama, and save a tenth of the time.
    """
    return ("o", "down") if device.type == "cuda" or not limited else ("o",)


@torch.no_grad()
def shortcut(
    model: BlockModel, block: nn.Module, index: int, hidden: Tensor, role: Role
) -> Shortcut | None:
    """What could be kept of a block that `hidden` `[windows, length, hidden]` reaches; None where its code has other ways.

    Its first tokens are used to look whether what is around the block's linear of a role answers with its output, and all else unread.
    """
    specs = model.checkpoint.block_specs(index)
    names = {module: name for name, module in block.named_modules()}
    paths = {spec: names[model.linear(block, index, spec.name)] for spec in specs}
    outputs = [spec for spec in specs if spec.role == role and spec.expert is None]
    path = paths[outputs[0]].rpartition(".")[0] if len(outputs) == 1 else ""
    inside = [spec for spec in specs if paths[spec].startswith(f"{path}.") and spec not in outputs]
    unknown = any(spec.role == "other" for spec in specs)  # it is solved last, wherever it stands
    # a shared expert is solved with the routed ones, behind nothing of the MLP
    routed = role == "down" and any(spec.expert is not None for spec in specs)
    apart = any(spec.role not in _INSIDE[role] or spec.expert is not None for spec in inside)
    if not path or unknown or routed or apart:
        return None
    sample, answers = hidden[:1, :TOKENS], dict[nn.Module, Any]()
    around, linear = block.get_submodule(path), block.get_submodule(paths[outputs[0]])
    with hooked([linear, around], remember(answers)), given({"read": linear}) as seen:
        expected = model.run(block, index, sample)
    answer, others = answers.get(around), None
    if isinstance(answer, tuple):
        answer, others = answer[0], len(answer) - 1
    if answer is not answers.get(linear) or seen["read"].shape[:2] != sample.shape[:2]:
        return None
    found = Shortcut(path, paths[outputs[0]], role, others, 1, seen["read"].shape[-1])
    found.keep(slice(0, 1), seen["read"])
    with found.taken(block, slice(0, 1)):
        try:
            shorter = model.run(block, index, sample)
        except Exception:  # noqa: BLE001 - it uses what is None here, in whatever way
            return None
        off = torch.linalg.vector_norm((shorter - expected).float())
        added = (expected - sample.to(expected.device)).float()
        if off > rounding(expected.dtype) * torch.linalg.vector_norm(added):
            return None
        unread = []
        for name, child in block.named_children():
            if any(f"{at}.".startswith(f"{name}.") for at in paths.values()):
                continue  # it has linears
            tried = list[bool]()
            with hooked([child], partial(_nothing, tried)):
                alike = torch.equal(model.run(block, index, sample), shorter)
            if alike and all(tried):
                unread.append(name)
    return replace(found, windows=len(hidden), unread=unread)


def _nothing(tried: list[bool], _module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """A forward hook after which whatever is computed with the output is no number; where it is a tensor like what was read."""
    same = bool(args) and isinstance(output, Tensor) and args[0].shape == output.shape
    tried.append(same)
    return torch.full_like(output, torch.nan) if same else output
