"""Who takes part: every rival with its own defaults and the best settings that its documents name.

Everybody gets the same calibration tokens, so that settings which only enlarge the sample are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alphaquant.config.recipes import assignments_of
from benchmarks.rivals.formats import FORMATS

HERE = Path(__file__).parent
OWN = "alphaquant"
_INTEGERS = ("int4", "int3", "int2")
_ALL = tuple(FORMATS)
_CORRECTED = {"quantization.correction": "stream"}
_GENERATED = {"calibration.generated": "0.5"}
_WHOLE = _CORRECTED | {"quantization.tune": "model"}
ORDERED = {"quantization.act_order": "true", "quantization.static_groups": "true"}


@dataclass(frozen=True, slots=True)
class Rival:
    """A package in an environment of its own, driven by a script that imports nothing of ours."""

    name: str
    title: str
    bare: tuple[str, ...] = ()
    """Pins installed without what they ask for: it would replace the torch that everybody shares."""

    @property
    def requirements(self) -> Path:
        """Pins of the environment."""
        return HERE / "requirements" / f"{self.name}.txt"

    @property
    def driver(self) -> Path:
        """The script that quantizes."""
        return HERE / "drivers" / f"with_{self.name}.py"


RIVALS = {
    rival.name: rival
    for rival in (
        Rival("gptqmodel", "GPTQModel", bare=("gptqmodel==7.7.0",)),
        Rival("llmcompressor", "llm-compressor"),
        Rival("autoround", "AutoRound"),
    )
}


@dataclass(frozen=True, slots=True)
class Contestant:
    """One program with one set of options."""

    rival: str
    """A key of RIVALS, or OWN."""
    setting: str
    words: str
    """What the setting is, for the table's legend."""
    options: dict[str, Any] = field(default_factory=dict)
    """The driver's settings; for OWN, config keys."""
    formats: tuple[str, ...] = _ALL
    slow: bool = False
    """Only when asked for by name: hours on a CPU."""

    @property
    def title(self) -> str:
        """As tables show it."""
        return "AlphaQuant" if self.rival == OWN else RIVALS[self.rival].title

    @property
    def key(self) -> str:
        """As the command line and folders name it: `autoround:default`."""
        return f"{self.rival}:{self.setting}"

    @property
    def policy(self) -> str:
        """AlphaQuant's way to choose formats."""
        return str(self.options.get("allocation.policy", "uniform"))

    @property
    def mixed(self) -> bool:
        """Whether linears may differ in their formats."""
        return self.policy != "uniform"

    @property
    def rotated(self) -> bool:
        """Whether the values are in another basis than the original's."""
        return self.options.get("rotation.kind", "none") != "none"


CONTESTANTS = (
    Contestant(
        "gptqmodel",
        "default",
        "GPTQ, group-aware activation order, damping .05, scales from the largest weight",
        formats=_INTEGERS,
    ),
    Contestant(
        "gptqmodel",
        "mse",
        "the same with its scale search (`mse=2.4`)",
        {"mse": 2.4},
        formats=_INTEGERS,
    ),
    Contestant(
        "gptqmodel",
        "norms",
        "the scale search, then its tuning of norms towards the original's predictions (400 steps)",
        {"mse": 2.4, "tune_norms": True},
        formats=_INTEGERS,
    ),
    Contestant(
        "llmcompressor",
        "default",
        "GPTQ, static activation order, damping .01, scales from the largest weight",
    ),
    Contestant(
        "llmcompressor",
        "mse",
        "the same with its scale search (`observer: memoryless_mse`)",
        {"observer": "memoryless_mse"},
    ),
    Contestant(
        "llmcompressor",
        "imatrix",
        "the same with its scale search weighted by activations (`observer: imatrix_mse`)",
        {"observer": "imatrix_mse"},
    ),
    Contestant(
        "autoround", "light", "50 iterations, learning rate .005", {"iters": 50, "lr": 5e-3}
    ),
    Contestant("autoround", "default", "200 iterations of sign-gradient tuning per block"),
    Contestant(
        "autoround",
        "best",
        "1000 iterations and `enable_alg_ext`",
        {"iters": 1000, "enable_alg_ext": True},
        slow=True,
    ),
    Contestant(OWN, "rtn", "round to nearest, scale search", {"quantization.method": "rtn"}),
    Contestant(
        OWN, "default", "`alphaquant quantize` with its defaults: scale search, no activation order"
    ),
    Contestant(
        OWN,
        "ordered",
        "its defaults in static activation order, as `alphaquant run` does by default",
        ORDERED,
    ),
    Contestant(
        OWN,
        "absmax",
        "neither scale search nor activation order (`quantization.scale_search=none`)",
        {"quantization.scale_search": "none"},
    ),
    Contestant(
        OWN,
        "rotated",
        "in static activation order, rotated first",
        ORDERED | {"rotation.kind": "hadamard"},
    ),
    Contestant(
        OWN,
        "corrected",
        "in static activation order, made up for what quantized linears before did (`correction=stream`)",
        ORDERED | _CORRECTED,
    ),
    Contestant(
        OWN,
        "tuned",
        "rotated, and blocks tuned after GPTQ with default steps",
        ORDERED | {"rotation.kind": "hadamard", "quantization.tune": "block"},
    ),
    Contestant(
        OWN,
        "both",
        "rotated and corrected, and blocks tuned after GPTQ with default steps",
        ORDERED | _CORRECTED | {"rotation.kind": "hadamard", "quantization.tune": "block"},
    ),
    Contestant(
        OWN,
        "generated",
        "corrected, half of the calibration windows written by the model (`calibration.generated=0.5`)",
        ORDERED | _CORRECTED | _GENERATED,
    ),
    Contestant(
        OWN,
        "balanced",
        "its recipe of that name: rotated and corrected, half of the calibration windows written by the model",
        ORDERED | assignments_of("balanced"),
    ),
    Contestant(
        OWN,
        "best",
        "its recipe of that name: the same, and blocks tuned behind it",
        ORDERED | assignments_of("best"),
    ),
    Contestant(
        OWN,
        "whole",
        "corrected, blocks tuned, then scales and norms of the whole model (`tune=model`), not rotated",
        ORDERED | _WHOLE,
    ),
    Contestant(
        OWN,
        "full",
        "rotated, corrected, blocks tuned, then scales and norms of the whole model (`tune=model`)",
        ORDERED | _WHOLE | {"rotation.kind": "hadamard"},
    ),
    Contestant(
        OWN,
        "budget",
        "mixed formats of the same bits per weight, chosen by predicted loss",
        {"allocation.policy": "budget"},
    ),
    Contestant(
        OWN,
        "mixed",
        "formats as `budget` chooses them, rotated and corrected, and blocks tuned",
        _CORRECTED
        | {
            "allocation.policy": "budget",
            "rotation.kind": "hadamard",
            "quantization.tune": "block",
        },
    ),
    Contestant(
        OWN,
        "alpha",
        "mixed formats of the same bits per weight, chosen from spectra as AlphaQ does",
        {"allocation.policy": "alpha"},
    ),
)


def chosen(names: list[str] | None, own: list[Contestant]) -> list[Contestant]:
    """Contestants by `rival` or `rival:setting`; without names, all that are not slow, and `own`.

    Raises KeyError with the unknown name.
    """
    everyone = [*CONTESTANTS, *own]
    if names is None:
        return [one for one in everyone if not one.slow]
    for name in names:
        if not any(name in (one.rival, one.key) for one in everyone):
            raise KeyError(name)
    return [
        one
        for one in everyone
        if any(name == one.key or (name == one.rival and not one.slow) for name in names)
    ]
