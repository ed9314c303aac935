"""A trained model from a run folder or its model file, with what it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from toolbox import __version__
from toolbox.errors import CheckpointError
from toolbox.models.backbones.weights import without_pretrained
from toolbox.models.builder import build_detector
from toolbox.schema import Config, config_from_text, load_config
from toolbox.structures import Skeleton
from toolbox.weights import load_model, load_weights


@dataclass(frozen=True)
class LoadedDetector:
    """A trained detector.

    Attributes:
        model: on the CPU, in evaluation mode.
        config: what it was trained with.
        classes: name of each label.
        category_ids: the training data's own id of each label.
        skeleton: joints of keypoint heads, or None.
        channels: of the images; 3 is RGB.
    """

    model: nn.Module
    config: Config
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    skeleton: Skeleton | None
    channels: int = 3


def model_metadata(
    config: Config, classes: Sequence[str], category_ids: Sequence[int], skeleton: Skeleton | None, channels: int = 3
) -> dict[str, str]:
    """What is stored in a model file beside the weights, as text."""
    return {
        "config": config.to_yaml(),
        "classes": json.dumps(list(classes)),
        "category_ids": json.dumps(list(category_ids)),
        "skeleton": json.dumps(None if skeleton is None else asdict(skeleton)),
        "channels": json.dumps(channels),
        "toolbox": __version__,
    }


def load_detector(path: str | Path, overrides: Sequence[str] = ()) -> LoadedDetector:
    """Build the detector of a run and load its weights.

    Args:
        path: a run folder, or a `.safetensors` file that a run wrote.
        overrides: `key=value`, e.g. `test.detections=300`.

    Raises:
        CheckpointError: there is no trained model, it is damaged, or it does not fit its config.
        ConfigError: an override is wrong, or the config needs a plugin that is not there.
    """
    path = Path(path)
    if path.suffix in (".yaml", ".yml"):
        raise CheckpointError(f"{path}: a config has no weights; give a run folder or model.safetensors")
    file = path / "model.safetensors" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise CheckpointError(f"{path}: holds no model.safetensors; a run writes it with its first checkpoint")
    state, metadata = load_model(file)
    stored = path / "config.yaml"
    if path.is_dir() and stored.exists():
        config = load_config(stored, overrides)
    else:
        config = config_from_text(_entry(metadata, "config", file), f"{file} (config)", overrides)
    classes = tuple(json.loads(_entry(metadata, "classes", file)))
    category_ids = tuple(json.loads(_entry(metadata, "category_ids", file)))
    skeleton = read_skeleton(metadata.get("skeleton", "null"))
    channels = int(json.loads(metadata.get("channels", "3")))
    with without_pretrained():
        model = build_detector(config, classes=classes, skeleton=skeleton, channels=channels)
    load_weights(model, state, str(file))
    return LoadedDetector(model.eval(), config, classes, category_ids, skeleton, channels)


def read_skeleton(text: str) -> Skeleton | None:
    """The skeleton that `model_metadata` wrote."""
    fields = json.loads(text)
    if fields is None:
        return None
    return Skeleton(
        names=tuple(fields["names"]),
        pairs=tuple((a, b) for a, b in fields["pairs"]),
        limbs=tuple((a, b) for a, b in fields["limbs"]),
        sigmas=tuple(fields["sigmas"]),
    )


def _entry(metadata: Mapping[str, str], name: str, file: Path) -> str:
    if name not in metadata:
        raise CheckpointError(
            f"{file}: has no '{name}' in its metadata, so it was not written by a run of this toolbox; "
            "give the run's folder, or build the model from a config and load the weights into it"
        )
    return metadata[name]
