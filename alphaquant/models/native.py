"""Model types that transformers does not know and that this package brings, without code from a model's folder."""

from __future__ import annotations

TAUGHT = ("deepseek",)


def teach_transformers(model_type: str) -> None:
    """Let transformers' Auto classes load `model_type`; nothing happens for a type that they know."""
    if model_type == "deepseek":
        from alphaquant.models.deepseek import register

        register()
