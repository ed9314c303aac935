"""Trained detectors of other projects as model files of the toolbox, and back."""

from toolbox.weights.exchange.classes import ClassTable, read_classes
from toolbox.weights.exchange.exporting import export_torchvision
from toolbox.weights.exchange.importing import import_torchvision, import_weights

__all__ = ["ClassTable", "export_torchvision", "import_torchvision", "import_weights", "read_classes"]
