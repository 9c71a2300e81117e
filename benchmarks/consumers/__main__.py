"""Give checkpoints to the consumers' own loaders, each in an environment of its own, and see whether our check told the truth.

    python -m benchmarks.consumers                      all of it: an environment of 5 GB for vLLM, then half an hour
    python -m benchmarks.consumers --only vllm          one of vllm, gptqmodel, transformers, foreign
    python -m benchmarks.consumers --plans '*-phi3'     only plans of these names; give --out, or the page is theirs alone

What our check refuses must be refused, or loaded wrongly, by the consumer; what it accepts must load. Ends with 1
where that is not so. Environments and checkpoints are kept in the cache folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from benchmarks.consumers.asking import ask
from benchmarks.consumers.catalogue import READERS
from benchmarks.consumers.checkpoints import make
from benchmarks.consumers.exact_plans import GPTQMODEL, TRANSFORMERS
from benchmarks.consumers.foreign import read_all
from benchmarks.consumers.page import foreign_page, page
from benchmarks.consumers.vllm_plans import BROKEN, DRAWN, HEADS, OTHER_MODELS, SOUND
from benchmarks.rivals.environments import python_of

_CASES = {
    "vllm": BROKEN + SOUND + OTHER_MODELS + HEADS + DRAWN,
    "gptqmodel": GPTQMODEL,
    "transformers": TRANSFORMERS,
}
_FOREIGN = "foreign"
_RESULTS = Path(__file__).parents[1] / "results" / "consumers"


def main() -> int:
    """Ask, write a page for each, and tell whether all agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*READERS, _FOREIGN], default=None)
    parser.add_argument("--plans", nargs="+", default=["*"], metavar="GLOB")
    parser.add_argument("--cache", type=Path, default=Path(".rivals"), metavar="DIR")
    parser.add_argument("--out", type=Path, default=_RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # matrices are small: threads would only wait for each other
    cache = options.cache.resolve()
    chosen = options.only or [*READERS, _FOREIGN]
    sound = True
    for name in (name for name in READERS if name in chosen):
        reader = READERS[name]
        python = python_of(reader, cache)
        wanted = [c for c in _CASES[name] if any(fnmatchcase(c.name, g) for g in options.plans)]
        if not wanted:
            parser.error(f"--plans {' '.join(options.plans)} matches no plan of {name}")
        made = [make(case, cache / "consumers") for case in wanted]
        asked = ask(reader, python, made, cache / "consumers" / f"{name}.log")
        _show(options.out / f"{name}.md", page(reader, _version(python, name), asked))
        sound &= all(one.sound for one in asked)
    if _FOREIGN in chosen:
        foreign = read_all(cache)
        _show(options.out / f"{_FOREIGN}.md", foreign_page(foreign))
        sound &= all(read.largest == 0 for read in foreign)
    return 0 if sound else 1


def _show(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)


def _version(python: Path, package: str) -> str:
    asked = f"from importlib.metadata import version; print(version({package!r}))"
    found = subprocess.run([str(python), "-c", asked], capture_output=True, text=True, check=True)
    return found.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
