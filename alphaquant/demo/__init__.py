"""The demo: a small mixture-of-experts model that ships with AlphaQuant, and how it was made."""

from __future__ import annotations

from pathlib import Path

DEMO_LENGTH = 256
"""Tokens per window in the demo model's training and in the demo run."""


def demo_model_path() -> Path:
    """Folder of the demo checkpoint."""
    return Path(__file__).with_name("model")


def demo_config_path() -> Path:
    """The run config that `alphaquant run` uses when it is given neither config nor model."""
    return Path(__file__).with_name("demo.yaml")
