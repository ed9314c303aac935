"""Trained models on images."""

from __future__ import annotations

from toolbox.inference.predictor import Predictor

__all__ = ["Predictor"]
