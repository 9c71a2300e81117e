"""QuantPlan: a Scheme for every linear, as one Parquet row each and in the seed's config form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from alphaquant.errors import PlanError
from alphaquant.formats.scheme import Scheme
from alphaquant.models.linear import HEAD, LinearSpec

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class QuantPlan:
    """Schemes (and simulated activation formats) by linear name, in the order of `specs`."""

    specs: Sequence[LinearSpec]
    schemes: Mapping[str, Scheme]
    activations: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = {spec.name for spec in self.specs}
        if names != set(self.schemes):
            odd = sorted(names ^ set(self.schemes))[0]
            raise PlanError(
                f"a plan needs one scheme for every linear; {odd} has none or is unknown"
            )

    @property
    def quantized(self) -> list[LinearSpec]:
        """The linears that are not kept."""
        return [spec for spec in self.specs if self.schemes[spec.name].format != "bf16"]

    def bits_of(self, spec: LinearSpec) -> float:
        """Stored bits per weight of one linear, scales and zeros included."""
        return self.schemes[spec.name].bits_per_weight(spec.cols, rows=spec.rows)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight over every linear of the plan."""
        return self._mean_bits(self.specs)

    @property
    def decoder_bits(self) -> float:
        """Stored bits per weight over the decoder's linears, which is what budgets count."""
        return self._mean_bits([spec for spec in self.specs if spec.block is not None])

    def _mean_bits(self, specs: Sequence[LinearSpec]) -> float:
        total = sum(self.bits_of(spec) * spec.size for spec in specs)
        return total / sum(spec.size for spec in specs)

    def table(self) -> pd.DataFrame:
        """One row per linear; the columns of `plan.parquet`."""
        import pandas as pd

        rows = []
        for spec in self.specs:
            scheme = self.schemes[spec.name]
            rows.append(
                {
                    "linear": spec.name,
                    "role": spec.role,
                    "block": spec.block,
                    "expert": spec.expert,
                    "rows": spec.rows,
                    "cols": spec.cols,
                    "format": scheme.format,
                    "group_size": scheme.group_size,
                    "symmetric": scheme.symmetric,
                    "bits_per_weight": self.bits_of(spec),
                    "activation": self.activations.get(spec.name),
                }
            )
        frame = pd.DataFrame(rows)
        for column in ("block", "expert", "group_size"):
            frame[column] = frame[column].astype("Int64")
        frame["activation"] = frame["activation"].astype("string")
        return frame

    def save(self, folder: Path) -> None:
        """Write `plan.parquet` and `plan.json` (the seed's form: default and overrides)."""
        self.table().to_parquet(folder / "plan.parquet", index=False)
        text = json.dumps(self.as_seed_config(), indent=1)
        (folder / "plan.json").write_text(text + "\n", encoding="utf-8")

    def as_seed_config(self) -> dict[str, object]:
        """`{"default": {...}, "overrides": [{"pattern", ...}]}`: the most common scheme is the default."""
        forms = {spec.name: self.seed_form(spec.name) for spec in self.specs}
        texts = [json.dumps(form, sort_keys=True) for name, form in forms.items() if name != HEAD]
        default = json.loads(max(sorted(set(texts)), key=texts.count))
        # routers and the head are kept by default, so quantized ones have to be named
        named = {spec.name for spec in self.specs if spec.role in ("router", "lm_head")}
        overrides = [
            {"pattern": name} | ({"skip": True} if form == {"wq": "bf16", "aq": None} else form)
            for name, form in forms.items()
            if form != default or name in named
        ]
        return {"default": default, "overrides": overrides}

    def seed_form(self, name: str) -> dict[str, object]:
        """One linear's scheme as the seed writes it: wq, aq and, where it is free, group_size."""
        scheme = self.schemes[name]
        wq = scheme.format if scheme.symmetric else f"{scheme.format}-asym"
        # where others have an activation format, "none" has to be said, or the default would apply
        none = "bf16" if self.activations else None
        form: dict[str, object] = {"wq": wq, "aq": self.activations.get(name, none)}
        if scheme.number_format.group_size is None and scheme.format != "bf16":
            form["group_size"] = scheme.group_size or -1
        return form

    @classmethod
    def load(cls, folder: Path, specs: Sequence[LinearSpec]) -> QuantPlan:
        """Read `plan.parquet`; linears of `specs` that the plan leaves out (a kept lm_head) are dropped."""
        import pandas as pd

        frame = pd.read_parquet(folder / "plan.parquet")
        schemes: dict[str, Scheme] = {}
        activations: dict[str, str] = {}
        for row in frame.to_dict("records"):
            group = None if pd.isna(row["group_size"]) else int(row["group_size"])
            schemes[row["linear"]] = Scheme(str(row["format"]), group, bool(row["symmetric"]))
            if isinstance(row["activation"], str):
                activations[row["linear"]] = row["activation"]
        return cls([spec for spec in specs if spec.name in schemes], schemes, activations)
