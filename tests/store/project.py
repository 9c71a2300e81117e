"""A toy project of three stages in a package of its own, whose sources a test can edit between runs."""

from __future__ import annotations

import importlib
import sys
import textwrap
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.fingerprint import code_fingerprint
from alphaquant.store.planning import plan_stage
from alphaquant.store.stage import Stage, StageResult, run_stage
from alphaquant.upkeep.accept import Acceptance, find_acceptance, save_acceptance

SOURCES = {
    "__init__": "",
    "alpha": """
        def body(out, store, *, model):
            (out / "alpha.txt").write_text(str(len(model.read())))
    """,
    "rounding": '''
        """How numbers are rounded."""

        from PACKAGE.grids import origin

        def rounded(value, bits):
            # half the bits
            return value * bits // 2 + origin()
    ''',
    "grids": """
        def origin():
            from PACKAGE.steps import first

            return first()
    """,
    "steps": """
        def first():
            return 0 * 1
    """,
    "quantize": """
        def body(out, store, *, alpha, bits, execution):
            from PACKAGE.rounding import rounded

            value = int((store.path(alpha) / "alpha.txt").read_text())
            (out / "codes.txt").write_text(str(rounded(value, bits)))
    """,
    "evaluate": """
        def body(out, store, *, quantized, tasks):
            text = (store.path(quantized) / "codes.txt").read_text()
            (out / "scores.txt").write_text(f"{text} on {', '.join(tasks)}")
    """,
}


@dataclass(frozen=True)
class Model:
    """A model file; its content enters keys, its place does not."""

    path: Path

    def read(self) -> str:
        """The weights."""
        return self.path.read_text()

    def cache_identity(self) -> dict[str, str]:
        """What enters a key."""
        return {"digest": self.read()}


class Project:
    """Three stages in a row: alpha, quantize, evaluate."""

    def __init__(self, root: Path, store: ArtifactStore) -> None:
        self.root = root
        self.store = store
        self.package = f"toy_{uuid.uuid4().hex[:8]}"
        self.model = Model(root / "weights.txt")
        self.model.path.write_text("weights")
        (root / self.package).mkdir()
        for name, text in SOURCES.items():
            self.source(name).write_text(
                textwrap.dedent(text).lstrip().replace("PACKAGE", self.package)
            )

    def source(self, module: str) -> Path:
        """File of a module."""
        return self.root / self.package / f"{module}.py"

    def edit(self, module: str, old: str, new: str) -> None:
        """Change a module as a developer would, seen by the next run."""
        text = self.source(module).read_text()
        assert old in text
        self.source(module).write_text(text.replace(old, new))

    def stage(self, name: str) -> Stage:
        """A stage with today's code."""
        module = f"{self.package}.{name}"
        return Stage(name, importlib.import_module(module).body, module)

    def run(
        self,
        *,
        bits: int = 4,
        tasks: tuple[str, ...] = ("piqa",),
        device: str = "cpu",
        force: tuple[str, ...] = (),
    ) -> dict[str, StageResult]:
        """Run the stages as a fresh process would; returns what happened to each."""
        results: dict[str, StageResult] = {}

        def call(name: str, **inputs: Any) -> Any:
            results[name] = run_stage(self.stage(name), self.store, inputs, force=name in force)
            return results[name].ref

        with self.fresh_code():
            alpha = call("alpha", model=self.model)
            quantized = call("quantize", alpha=alpha, bits=bits, execution={"device": device})
            call("evaluate", quantized=quantized, tasks=tasks)
        return results

    def accept(self, *names: str, bits: int = 4) -> dict[str, Acceptance]:
        """Accept stages as the command does, for the inputs that `run` would give them."""
        found: dict[str, Acceptance] = {}

        def call(name: str, **inputs: Any) -> Any:
            if name not in names:
                return plan_stage(self.stage(name), self.store, inputs).out
            found[name] = find_acceptance(self.stage(name), self.store, inputs)
            return found[name].out

        with self.fresh_code():
            alpha = call("alpha", model=self.model)
            quantized = call("quantize", alpha=alpha, bits=bits, execution={"device": "cpu"})
            call("evaluate", quantized=quantized, tasks=("piqa",))
        for acceptance in found.values():
            save_acceptance(self.store, acceptance)
        return found

    @contextmanager
    def fresh_code(self) -> Iterator[None]:
        """Import the sources anew inside, forget them outside."""
        sys.path.insert(0, str(self.root))
        importlib.invalidate_caches()
        code_fingerprint.cache_clear()
        try:
            yield
        finally:
            sys.path.remove(str(self.root))
            for name in [name for name in sys.modules if name.startswith(self.package)]:
                del sys.modules[name]


def ran(results: dict[str, StageResult]) -> list[str]:
    """Names of the stages that were computed."""
    return [name for name, result in results.items() if result.state == "ran"]
