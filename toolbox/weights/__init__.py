"""Weight files: safetensors with metadata, and putting tensors into a model."""

from __future__ import annotations

from toolbox.weights.atomic import replacing
from toolbox.weights.files import kind_of_file, load_model, not_weights, save_model
from toolbox.weights.loading import check_fits, load_weights

__all__ = ["check_fits", "kind_of_file", "load_model", "load_weights", "not_weights", "replacing", "save_model"]
