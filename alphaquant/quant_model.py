"""AlphaQuantModel: load, quantize, evaluate, save and push in five calls, for scripts that know GPTQModel.

Behind it is the code that runs use; `alphaquant run` does the same with a store, resumption and a report.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_groups import menu
from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.algorithms.quantized_block import load_errors
from alphaquant.algorithms.sensitivity import sensitivity_table
from alphaquant.config import EvaluationConfig, ModelConfig
from alphaquant.errors import ConfigError, ModelError, UserError
from alphaquant.evaluation.evaluate import evaluate_checkpoint
from alphaquant.evaluation.generated import with_written
from alphaquant.evaluation.room import Room
from alphaquant.export.dense import export_dense
from alphaquant.export.hub import push_to_hub
from alphaquant.export.model_card import facts_of, plan_figure, write_card
from alphaquant.export.packed import export_packed
from alphaquant.export.rotated import write_rotated
from alphaquant.models.checkpoint import Checkpoint, check_vocabulary
from alphaquant.models.device import compute_device
from alphaquant.models.loading import load, load_tokenizer
from alphaquant.models.resolve import FACTS, model_folder, read_config
from alphaquant.models.rows import architecture_of
from alphaquant.plan import QuantPlan
from alphaquant.quantize_config import QuantizeConfig
from alphaquant.store.files import read_json
from alphaquant.store.whole import whole
from alphaquant.text.given import Calibration, given_windows

if TYPE_CHECKING:
    import pandas as pd

SaveFormat = Literal["compressed-tensors", "gptq", "quark", "dense"]
_FORMATS: tuple[SaveFormat, ...] = ("compressed-tensors", "gptq", "quark", "dense")


class AlphaQuantModel:
    """A model on its way to a compressed checkpoint, one decoder block in memory at a time."""

    def __init__(
        self, folder: Path, source: ModelConfig, config: QuantizeConfig | None, device: str
    ) -> None:
        """Use `load`."""
        self.folder, self.quantize_config = folder, config
        self._source, self._device = source, device
        self._scratch = Path(tempfile.mkdtemp(prefix="alphaquant-"))
        weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        self._blocks: list[Path] = []
        self._weights: Checkpoint | None = None  # what was quantized: the original, rotated or not
        self._root: Path | None = None  # of the blocks, and of the rotated weights
        self._loaded: Any = None
        self._saved: Path | None = None
        self.plan: QuantPlan | None = None
        """A scheme for every linear, once quantized."""
        self.scores: pd.DataFrame | None = None
        """The rows of `scores.parquet`, once evaluated."""

    @classmethod
    def load(
        cls,
        path: Path | str,
        quantize_config: QuantizeConfig | None = None,
        *,
        device: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
        architecture: Literal["auto", "generic"] = "auto",
    ) -> AlphaQuantModel:
        """Open a folder or hub id: an original to quantize, or any checkpoint that `alphaquant.load` reads.

        Weights are read when they are needed. `architecture` is generic for a type without a row of its own. Raises ModelError for a model that is missing or not supported.
        """
        source = ModelConfig(
            path=str(path),
            revision=revision,
            trust_remote_code=trust_remote_code,
            architecture=architecture,
        )
        compute_device(device)
        return cls(model_folder(source), source, quantize_config, device)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(self.folder, trust_remote_code=self._source.trust_remote_code)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of the decoder's linears, scales included."""
        return self._planned().bits_per_weight

    def quantize(
        self,
        calibration: Calibration = "builtin",
        *,
        samples: int = 128,
        sequence_length: int = 2048,
        seed: int = 0,
        generated: float | None = None,
        batch_size: int = 8,
    ) -> pd.DataFrame:
        """Quantize every block; returns one row per linear with its errors, the columns of `errors.parquet`.

        Blocks, and a rotated copy of the weights where they are turned, stay in the system's folder for temporary files
        until the object goes.

        Args:
            calibration: A name as in `calibration.dataset` (builtin, wikitext2, c4, a hub dataset, a .txt, .jsonl or
                .parquet file); a list of texts; or token windows: tensors, lists of ids, or `{"input_ids": ...}`.
                Windows of unequal length are joined and cut to `sequence_length`.
            samples: Token windows drawn from a text.
            sequence_length: Tokens per window, no more than the model's context.
            seed: Seed of the choice of windows, and of what the model writes.
            generated: Share of the windows that the model writes itself, as `calibration.generated` has it; None: as the
                recipe has it, 0 without one.
            batch_size: Windows per forward pass.

        Raises:
            ConfigError: `generated` is no share, or the whole model, which it takes, does not fit into memory.
            DataError: Calibration is empty or too short.
            PlanError: A pattern of `dynamic` matches no linear, or `target_bits` is below the smallest plan.
            ModelError: The model is quantized already, or a rotation would change it.
        """
        checkpoint = self._original()
        run = (self.quantize_config or QuantizeConfig()).run_config()
        rounding, device = run.quantization, compute_device(self._device)
        length = min(sequence_length, checkpoint.context_length)
        tokens = given_windows(calibration, checkpoint.tokenizer, samples, length, seed)
        check_vocabulary(checkpoint, tokens)
        root = self._scratch / uuid.uuid4().hex[:8]
        root.mkdir()
        try:
            weights, plan = checkpoint, None
            if run.rotation.kind != "none":
                write_rotated(checkpoint, run.rotation, root / "rotated")
                weights = Checkpoint(root / "rotated")
            if run.allocation.policy != "budget":  # wrong patterns are told before the model writes
                plan = allocate(weights.plannable, run.allocation, rounding, None, None)
            share = run.calibration.generated if generated is None else generated
            looked_at = plan is None or rounding.looks_at_inputs
            if share and looked_at:
                tokens = with_written(checkpoint, tokens, share, seed, Room(device, batch_size))
            if plan is None:
                losses = sensitivity_table(
                    weights,
                    tokens,
                    menu(run.allocation, rounding),
                    damping=rounding.damping,
                    scale_search=rounding.scale_search,
                    expert_shrinkage=rounding.expert_shrinkage,
                    routing_weight=rounding.routing_weight,
                    device=device,
                    batch_size=batch_size,
                )
                plan = allocate(weights.plannable, run.allocation, rounding, None, losses)
            self._blocks = quantize_blocks(
                weights,
                plan,
                tokens,
                rounding,
                device=device,
                batch_size=batch_size,
                blocks=FreshBlocks(root),
            )
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
        self.plan, self._weights, self._root = plan, weights, root
        self.scores = self._loaded = self._saved = None
        import pandas as pd

        return pd.concat([load_errors(block) for block in self._blocks], ignore_index=True)

    def evaluate(
        self,
        dataset: str = "builtin",
        *,
        tasks: Sequence[str] = (),
        limit: int | None = None,
        sequence_length: int = 2048,
        batch_size: int = 8,
    ) -> pd.DataFrame:
        """Perplexity of both models, divergence from the original, and lm-eval `tasks`: rows of `scores.parquet`."""
        config = EvaluationConfig(
            dataset=dataset, tasks=tuple(tasks), limit=limit, sequence_length=sequence_length
        )
        self._planned()
        self.scores = evaluate_checkpoint(
            self._original(),
            self._dense(),
            config,
            device=compute_device(self._device),
            batch_size=batch_size,
        )
        return self.scores

    @property
    def model(self) -> Any:
        """The transformers model: quantized once `quantize` was called, as loaded before."""
        if self._loaded is None:
            folder = self._dense() if self._blocks else self.folder
            self._loaded = load(
                folder,
                device=self._device,
                trust_remote_code=self._source.trust_remote_code,
                architecture=self._source.architecture,
            )
        return self._loaded

    def generate(self, prompt: str | Tensor, **options: Any) -> Any:
        """Continue a text, which gives a text, or token ids `[batch, length]`, which gives ids; options go to transformers."""
        if isinstance(prompt, Tensor):
            return self.model.generate(prompt.to(self.model.device), **options)
        tokenizer = self.tokenizer
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(self.model.device)
        return tokenizer.decode(self.model.generate(ids, **options)[0], skip_special_tokens=True)

    def save(
        self,
        folder: Path | str,
        format: SaveFormat = "compressed-tensors",
        *,
        consumers: Sequence[str] = (),
    ) -> Path:
        """Write the checkpoint with tokenizer and card; returns the folder, which appears whole or not at all.

        `consumers` are serving stacks whose checks the checkpoint passed, for the card. Raises UserError for a
        folder that exists and is not ours, FormatError naming a linear that `format` cannot store.
        """
        if format not in _FORMATS:
            raise ConfigError(
                f"save: format {format!r} is not known; allowed: {', '.join(_FORMATS)}"
            )
        plan, weights = self._planned(), self._quantizable()
        out = Path(folder).expanduser()
        with whole(out, _check_target, "Free some space or name another folder.") as draft:
            if format == "dense":
                export_dense(weights, self._blocks, {}, draft)
            else:
                export_packed(weights, self._blocks, {}, draft, format)
            table = plan.table()
            facts = facts_of(self.folder, self._source, table, self.scores)
            run = {"run_id": uuid.uuid4().hex[:12], "bits_per_weight": facts.bits_per_weight}
            write_card(
                draft,
                facts,
                figure=plan_figure(table),
                run=run,
                name=out.name,
                consumers=consumers,
            )
        self._saved = out
        return out

    def push_to_hub(
        self,
        repo_id: str,
        *,
        format: SaveFormat = "compressed-tensors",
        private: bool = False,
        token: str | None = None,
        consumers: Sequence[str] = (),
    ) -> str:
        """Upload the folder that was saved last, or one in `format` where none was; returns the repository's address."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = self._saved or self.save(Path(scratch) / repo_id.rpartition("/")[2], format)
            self._saved = None if folder.is_relative_to(scratch) else folder
            return push_to_hub(folder, repo_id, private=private, token=token, consumers=consumers)

    def _original(self) -> Checkpoint:
        source, raw = self._source, read_config(self.folder)
        row = architecture_of(raw, source.architecture, trust_remote_code=source.trust_remote_code)
        if not row.reads(raw):
            raise ModelError(
                f"{self.folder} is already quantized. Start from the original weights; a quantized model can be "
                "loaded and generate"
            )
        return Checkpoint(self.folder, source.trust_remote_code, source.architecture)

    def _quantizable(self) -> Checkpoint:
        """The weights that the blocks were made of."""
        assert self._weights is not None, "they are set with the plan"
        return self._weights

    def _planned(self) -> QuantPlan:
        if self.plan is None:
            raise ModelError("the model is not quantized yet; call quantize first")
        return self.plan

    def _dense(self) -> Path:
        """The quantized values as a plain folder, made when first asked for."""
        folder = self._blocks[0].with_name("dense")
        if not folder.exists():
            draft = folder.with_name("draft")
            draft.mkdir(exist_ok=True)
            export_dense(self._quantizable(), self._blocks, {}, draft)
            draft.rename(folder)
        return folder


def _check_target(out: Path) -> None:
    """Raise UserError unless `out` is new, empty, or a checkpoint that AlphaQuant saved."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    found = read_json(out / FACTS) if out.is_dir() else None
    if not (isinstance(found, dict) and "run_id" in found):
        raise UserError(
            f"{out} exists and was not saved by AlphaQuant (it holds no {FACTS}). Name another folder, or remove it."
        )
