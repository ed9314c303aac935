"""Optimizers, parameter groups and learning-rate schedules."""

from toolbox.engine.optim.groups import build_optimizer, parameter_groups
from toolbox.engine.optim.optimizers import SGD, Adam, AdamW
from toolbox.engine.optim.schedules import Constant, Cosine, MultiStep, Poly

__all__ = ["SGD", "Adam", "AdamW", "Constant", "Cosine", "MultiStep", "Poly", "build_optimizer", "parameter_groups"]
