"""R-CNN toolbox: Faster R-CNN and Mask R-CNN from one YAML.

The names below are loaded on first use, so that `import toolbox` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load_config": "toolbox.schema",
    "build_detector": "toolbox.models.builder",
    "Predictor": "toolbox.inference",
}
_MODULES = (
    *("ops", "masks", "models", "data", "engine", "inference", "weights", "visualize"),
    *("registry", "structures", "errors"),
)

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"toolbox.{name}")
    raise AttributeError(f"module 'toolbox' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
