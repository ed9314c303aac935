"""Weight files: safetensors with metadata, putting tensors into a model, and those of other projects.

`import_torchvision` and `export_torchvision` build models, so they are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from toolbox.weights.atomic import replacing
from toolbox.weights.files import kind_of_file, load_model, not_weights, save_model
from toolbox.weights.loading import check_fits, load_weights

_LAZY = ("import_torchvision", "import_weights", "export_torchvision", "read_classes")

__all__ = ["check_fits", "kind_of_file", "load_model", "load_weights", "not_weights", "replacing", "save_model"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module("toolbox.weights.exchange"), name)
    raise AttributeError(f"module 'toolbox.weights' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY])
