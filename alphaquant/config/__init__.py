"""Everything a run can be told: one pydantic model that the CLI, YAML files and the Prefect form share.

Imports no torch. Sections are values: a stage receives only the sections it depends on.
"""

from alphaquant.config.allocation import DEFAULT_MENU, AllocationConfig, DefaultScheme, Override
from alphaquant.config.measuring import ComparisonConfig, EvaluationConfig, ExperimentConfig
from alphaquant.config.quantization import (
    UNCALIBRATED,
    Method,
    QuantizationConfig,
    RotationConfig,
    RouterConfig,
)
from alphaquant.config.run import (
    AlphaConfig,
    CalibrationConfig,
    ExecutionConfig,
    ExportConfig,
    ModelConfig,
    RunConfig,
)

__all__ = [
    "DEFAULT_MENU",
    "UNCALIBRATED",
    "AllocationConfig",
    "AlphaConfig",
    "CalibrationConfig",
    "ComparisonConfig",
    "DefaultScheme",
    "EvaluationConfig",
    "ExecutionConfig",
    "ExperimentConfig",
    "ExportConfig",
    "Method",
    "ModelConfig",
    "Override",
    "QuantizationConfig",
    "RotationConfig",
    "RouterConfig",
    "RunConfig",
]
