"""A trained model from a run folder or its model file, with what it was trained on."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from toolbox import __version__
from toolbox.errors import CheckpointError, ConfigError, Problem, ToolboxError
from toolbox.models.backbones.weights import without_pretrained
from toolbox.models.builder import build_detector
from toolbox.plan import Plan
from toolbox.plugin_records import Search, check_installed, read_records, records_of, write_records
from toolbox.schema import Config, config_from_text, load_config
from toolbox.structures import Skeleton
from toolbox.weights import load_model, load_weights
from toolbox.yaml_nodes import Findings, parse


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
        "plugins": write_records(records_of(config.plugins, components_of(config.plan))),
        "versions": json.dumps(versions()),
    }


def versions() -> dict[str, str]:
    """Of what a model's results depend on."""
    return {
        "toolbox": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }


def components_of(value: Any) -> set[str]:
    """Names of the registered components that a plan is made of."""
    if isinstance(value, Plan):
        own = {value.cls.__name__} if value.family else set()
        return own.union(*map(components_of, value.given.values()))
    if isinstance(value, Mapping):
        return set().union(*map(components_of, value.values()))
    return set().union(*map(components_of, value)) if isinstance(value, list | tuple) else set()


def load_detector(
    path: str | Path, overrides: Sequence[str] = (), *, plugins: Sequence[str | Path] = ()
) -> LoadedDetector:
    """Build the detector of a run and load its weights.

    Args:
        path: a run folder, or a `.safetensors` file that a run wrote.
        overrides: `key=value`, e.g. `test.detections=300`.
        plugins: files and modules to load beside the run's own; a file takes the place of the run's of that name.

    Raises:
        CheckpointError: there is no trained model, it is damaged, it does not fit its config, or it needs a plugin that
            is not there.
        ConfigError: an override is wrong.
    """
    path = Path(path)
    if path.suffix in (".yaml", ".yml"):
        raise CheckpointError(f"{path}: a config has no weights; give a run folder or model.safetensors")
    file = path / "model.safetensors" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise CheckpointError(f"{path}: holds no model.safetensors; a run writes it with its first checkpoint")
    state, metadata = load_model(file)
    try:
        return _build(path, file, state, metadata, overrides, [str(plugin) for plugin in plugins])
    except ToolboxError as error:
        raise _with_versions(error, metadata, file) from error
    except Exception as error:
        if note := _other_version(metadata):
            error.add_note(f"{file}: {note}")
        raise


def _build(
    path: Path,
    file: Path,
    state: dict[str, Tensor],
    metadata: Mapping[str, str],
    overrides: Sequence[str],
    plugins: Sequence[str],
) -> LoadedDetector:
    stored = path / "config.yaml"
    in_folder = path.is_dir() and stored.exists()
    text = stored.read_text(encoding="utf-8") if in_folder else _entry(metadata, "config", file)
    overrides = [*_found_plugins(text, file, metadata, overrides, plugins), *overrides]
    config = load_config(stored, overrides) if in_folder else config_from_text(text, f"{file} (config)", overrides)
    classes = tuple(json.loads(_entry(metadata, "classes", file)))
    category_ids = tuple(json.loads(_entry(metadata, "category_ids", file)))
    skeleton = read_skeleton(metadata.get("skeleton", "null"))
    channels = int(json.loads(metadata.get("channels", "3")))
    with without_pretrained():
        model = build_detector(config, classes=classes, skeleton=skeleton, channels=channels)
    load_weights(model, state, str(file))
    return LoadedDetector(model.eval(), config, classes, category_ids, skeleton, channels)


def _found_plugins(
    text: str, file: Path, metadata: Mapping[str, str], overrides: Sequence[str], plugins: Sequence[str]
) -> list[str]:
    """An override with the places where the config's plugins are now; none where they are where they were."""
    if any(override.startswith("plugins=") for override in overrides):
        return []
    records = read_records(metadata.get("plugins", "[]"))
    config = parse(text, str(file), Findings())  # what is wrong with it is found when it is checked
    node = config.value.get("plugins")
    listed = [item.value for item in node.value if isinstance(item.value, str)] if node and node.is_list else []
    try:
        found = Search(file.parent, plugins).entries(listed, records)
        if not plugins:  # else they may bring it; a component that is missing is named when the config is checked
            check_installed(records)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return [] if found == listed else [f"plugins={json.dumps(found)}"]


def _with_versions(error: ToolboxError, metadata: Mapping[str, str], file: Path) -> ToolboxError:
    """The error, and whether another version of the toolbox wrote the file, which may be the cause."""
    note = _other_version(metadata)
    if note is None:
        return error
    if isinstance(error, ConfigError):
        return ConfigError([*error.problems, Problem(str(file), "", note)])
    return type(error)(f"{error}\n{file}: {note}")


def _other_version(metadata: Mapping[str, str]) -> str | None:
    written = metadata.get("toolbox")
    if written is None or written == __version__:
        return None
    then = json.loads(metadata.get("versions", "{}"))
    others = [f"{name} {then[name]}" for name, now in versions().items() if name in then and then[name] != now]
    with_those = ", ".join([f"toolbox {written}", *(other for other in others if not other.startswith("toolbox "))])
    return (
        f"it was written by {with_those}, and this is toolbox {__version__}; if that is the cause, "
        f"pip install 'rcnn-toolbox=={written}' reads it"
    )


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
