"""The card of a compressed model, README.md of its folder: what it is, what it cost, and how to load and serve it.

Its facts lie beside it in alphaquant.json, so that a card can be written again under another name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from alphaquant.config import ModelConfig
from alphaquant.errors import ModelError
from alphaquant.export.folder import PROGRAM, write_json
from alphaquant.models.resolve import FACTS, read_config
from alphaquant.models.stock import WITHOUT_HF, Need, transformers_needs

if TYPE_CHECKING:
    import pandas as pd

_FIGURE = "plan.png"
_KEPT_FIELDS = ("license", "license_name", "license_link", "language")
"""What a card takes over from the original's."""
_SHOWN = {
    "perplexity": "perplexity, held-out text",
    "kl_mean": "KL to the original, nats per token",
    "top1_agreement": "same top token",
}


@dataclass(frozen=True)
class Facts:
    """What a card tells; plain values."""

    base_model: str
    """Hub id, or the name of a folder."""
    on_hub: bool
    """Whether `base_model` is a hub id."""
    bits_per_weight: float
    """Stored bits per weight of the decoder's linears, scales included."""
    shares: Mapping[str, float]
    """Share of the decoder's weights by scheme, such as int4-g128."""
    scores: Sequence[Mapping[str, Any]] = ()
    """Rows of `scores.parquet`: task, metric, value, model."""
    header: Mapping[str, Any] = field(default_factory=dict)
    """License and language of the original, as its card has them."""


def facts_of(
    folder: Path, source: ModelConfig, plan: pd.DataFrame, scores: pd.DataFrame | None
) -> Facts:
    """The facts of the model in `folder`, which `source` found, compressed by `plan` (plan.parquet).

    `scores` are the rows of scores.parquet, if it was scored.
    """
    on_hub = source.path is not None and not Path(source.path).expanduser().is_dir()
    sizes = (plan["rows"] * plan["cols"]).astype("float64")
    shares = sizes.groupby(_schemes(plan)).sum().sort_values(ascending=False) / sizes.sum()
    columns = ["task", "metric", "value", "model"]
    rows: list[Any] = [] if scores is None else scores[columns].to_dict("records")
    return Facts(
        base_model=str(source.path) if on_hub else folder.name,
        on_hub=on_hub,
        bits_per_weight=float((plan["bits_per_weight"] * sizes).sum() / sizes.sum()),
        shares={str(name): float(share) for name, share in shares.items()},
        scores=rows,
        header=_header_of(folder / "README.md"),
    )


def write_card(
    folder: Path,
    facts: Facts,
    *,
    figure: bytes | None = None,
    run: Mapping[str, Any] | None = None,
    name: str | None = None,
    consumers: Sequence[str] = (),
) -> None:
    """Write README.md, alphaquant.json and, from `figure` (`plan_figure`), plan.png into a checkpoint folder.

    `run` is what else alphaquant.json says; the rest is that of `model_card`.
    """
    if figure is not None:
        (folder / _FIGURE).write_bytes(figure)
    write_json(folder / FACTS, {**(run or {}), "card": asdict(facts)})
    text = model_card(folder, facts, name=name, consumers=consumers)
    (folder / "README.md").write_text(text, encoding="utf-8")


def read_facts(folder: Path) -> Facts:
    """The facts of a folder that has a card of ours. Raises ModelError for one that has none."""
    try:
        card = json.loads((folder / FACTS).read_text(encoding="utf-8"))["card"]
        return Facts(**card)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder} has no card of AlphaQuant ({FACTS} is missing or damaged). Give the folder `checkpoint` of a "
            "run, or one that AlphaQuantModel.save wrote"
        ) from error


def model_card(
    folder: Path, facts: Facts, *, name: str | None = None, consumers: Sequence[str] = ()
) -> str:
    """The card of the checkpoint in `folder`, as Markdown with a YAML header; needs no network.

    Args:
        folder: The checkpoint. What transformers needs to load it is seen from its files.
        facts: What `facts_of` or `read_facts` gives.
        name: Repository or path that examples use; empty means the folder's name.
        consumers: Serving stacks whose checks this checkpoint passed: vllm, sglang, gptqmodel. Only these are named.
    """
    quantization = read_config(folder).get("quantization_config") or {}
    method = str(quantization.get("quant_method", "dense"))
    shown = name or folder.name
    header = {
        **({"base_model": facts.base_model} if facts.on_hub else {}),
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [PROGRAM, *([method] if method != "dense" else [])],
        **facts.header,
    }
    stored = "plain values of the model's own type" if method == "dense" else f"format {method}"
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {facts.base_model.rpartition('/')[2]} in {facts.bits_per_weight:.2f} bits per weight",
        f"`{facts.base_model}`, compressed by AlphaQuant. The bits are those of the decoder's linears, scales "
        f"included; stored as {stored}.",
        _table(
            ("format", "share of weights"),
            [(f"`{name}`", f"{share:.1%}") for name, share in facts.shares.items()],
        ),
        *([f"![formats by role]({_FIGURE})"] if (folder / _FIGURE).is_file() else []),
        *_score_parts(facts.scores),
        "## Load",
        _loading(shown, transformers_needs(folder)),
        *_serving(shown, consumers),
    ]
    return "\n\n".join(parts) + "\n"


def _score_parts(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    rows: dict[str, dict[str, float]] = {}
    for row in scores:
        label = _SHOWN.get(row["metric"]) if row["task"] == "heldout" else None
        label = label or (f"{row['task']} {row['metric']}" if row["task"] != "heldout" else None)
        if label and row["model"] in ("original", "quantized"):
            rows.setdefault(label, {})[row["model"]] = float(row["value"])
    if not rows:
        return []
    cells = [
        (label, *(f"{found[one]:.4g}" if one in found else "" for one in ("original", "quantized")))
        for label, found in rows.items()
    ]
    return ["## Scores", _table(("", "original", "compressed"), cells)]


def _loading(name: str, need: Need) -> str:
    ours = (
        "```python\nimport alphaquant\n\n"
        f'model = alphaquant.load("{name}")\ntokenizer = alphaquant.load_tokenizer("{name}")\n```'
    )
    if need == "alphaquant.load":
        return f"{ours}\n\nThese are exactly the values that were scored."
    patch = f"import alphaquant.hf  # {WITHOUT_HF}\n" if need == "alphaquant.hf" else ""
    stock = (
        f"```python\n{patch}from transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n```'
    )
    return f"{ours}\n\nor\n\n{stock}\n\nBoth give exactly the values that were scored."


_COMMANDS = {
    "vllm": "vllm serve {name}",
    "sglang": "python -m sglang.launch_server --model-path {name}",
    "gptqmodel": "python -c 'from gptqmodel import GPTQModel; GPTQModel.load(\"{name}\")'",
}


def _serving(name: str, consumers: Sequence[str]) -> list[str]:
    lines = [_COMMANDS[one].format(name=name) for one in consumers if one in _COMMANDS]
    return ["## Serve", "```\n" + "\n".join(lines) + "\n```"] if lines else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def plan_figure(plan: pd.DataFrame) -> bytes:
    """The share of formats by role, from plan.parquet, as PNG."""
    from alphaquant.reporting.figures_bits import format_shares
    from alphaquant.reporting.linears import linear_table
    from alphaquant.reporting.style import drawing, png
    from alphaquant.reporting.tables import ReportInputs, tidy

    with drawing():
        return png(format_shares(linear_table(tidy(ReportInputs(model="", plan=plan)))))


def _schemes(plan: pd.DataFrame) -> Any:
    from alphaquant.reporting.linears import schemes

    return schemes(plan)


def _header_of(card: Path) -> dict[str, Any]:
    """License and language from the YAML header of the original's card, if it has one."""
    try:
        start, header, _ = card.read_text(encoding="utf-8").split("---\n", 2)
        found = {} if start.strip() else yaml.safe_load(header)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    kept = found if isinstance(found, dict) else {}
    return {key: kept[key] for key in _KEPT_FIELDS if key in kept}
