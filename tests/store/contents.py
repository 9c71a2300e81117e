"""Small artifacts, made and harmed."""

from __future__ import annotations

from pathlib import Path

from alphaquant.store.artifacts import ArtifactRef, ArtifactStore


def keep(store: ArtifactStore, contents: dict[str, str], kind: str = "toy") -> ArtifactRef:
    """An artifact of these texts, by file name."""
    with store.draft(kind) as draft:
        for name, text in contents.items():
            (draft.path / name).parent.mkdir(parents=True, exist_ok=True)
            (draft.path / name).write_text(text)
    assert draft.ref is not None
    return draft.ref


def overwrite(path: Path, text: str) -> None:
    """Change a file of an artifact, which is read-only."""
    path.chmod(0o644)
    path.write_text(text)
