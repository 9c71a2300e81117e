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

from alphaquant.algorithms.quantized_block import load_errors
from alphaquant.config import EvaluationConfig, ModelConfig
from alphaquant.errors import ConfigError, ModelError, UserError
from alphaquant.evaluation.evaluate import evaluate_checkpoint
from alphaquant.export.dense import export_dense
from alphaquant.export.hub import push_to_hub
from alphaquant.export.model_card import facts_of, plan_figure, write_card
from alphaquant.export.packed import export_packed
from alphaquant.models.checkpoint import Checkpoint, check_vocabulary
from alphaquant.models.device import compute_device
from alphaquant.models.loading import load, load_tokenizer
from alphaquant.models.resolve import FACTS, model_folder, read_config
from alphaquant.models.rows import architecture_of
from alphaquant.plan import QuantPlan
from alphaquant.quantize_config import QuantizeConfig
from alphaquant.quantized import Quantized, quantized_in
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
        self._made: Quantized | None = None
        self._loaded: Any = None
        self._saved: Path | None = None
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
    def plan(self) -> QuantPlan | None:
        """A scheme for every linear, once quantized."""
        return self._made.plan if self._made else None

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of the decoder's linears, scales included."""
        return self._quantized().plan.bits_per_weight

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
        original = self._original()
        run = (self.quantize_config or QuantizeConfig()).run_config()
        text: dict[str, Any] = {"seed": seed}
        if generated is not None:
            text["generated"] = generated
        run = run.model_copy(update={"calibration": run.calibration.model_copy(update=text)})
        length = min(sequence_length, original.context_length)
        tokens = given_windows(calibration, original.tokenizer, samples, length, seed)
        check_vocabulary(original, tokens)
        device, root = compute_device(self._device), self._scratch / uuid.uuid4().hex[:8]
        root.mkdir()
        try:
            made = quantized_in(root, original, tokens, run, device=device, batch_size=batch_size)
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise
        if self._made:
            shutil.rmtree(self._made.folder, ignore_errors=True)
        self._made, self.scores, self._loaded, self._saved = made, None, None, None
        import pandas as pd

        return pd.concat([load_errors(block) for block in made.blocks], ignore_index=True)

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
        self._quantized()
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
            folder = self._dense() if self._made else self.folder
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
        made = self._quantized()
        out = Path(folder).expanduser()
        with whole(out, _check_target, "Free some space or name another folder.") as draft:
            if format == "dense":
                export_dense(made.weights, made.blocks, {}, draft)
            else:
                export_packed(made.weights, made.blocks, {}, draft, format)
            table = made.plan.table()
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

    def _quantized(self) -> Quantized:
        if self._made is None:
            raise ModelError("the model is not quantized yet; call quantize first")
        return self._made

    def _dense(self) -> Path:
        """The quantized values as a plain folder, made when first asked for."""
        made = self._quantized()
        folder = made.folder / "dense"
        if not folder.exists():
            draft = folder.with_name("draft")
            draft.mkdir(exist_ok=True)
            export_dense(made.weights, made.blocks, {}, draft)
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
