"""What a model file says beside its weights: text, every value checked when it is read back."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision

from toolbox import __version__
from toolbox.errors import CheckpointError, counted
from toolbox.plan import Plan
from toolbox.plugin_records import PluginRecord, read_records, records_of, write_records
from toolbox.schema import Config
from toolbox.structures import Skeleton


@dataclass(frozen=True)
class ModelMetadata:
    """What a model was trained on, and with what.

    Attributes:
        config: YAML.
        classes: name of each label.
        category_ids: the training data's own id of each label.
        skeleton: joints of keypoint heads, or None.
        channels: of the images; 3 is RGB.
        plugins: that the model needs.
        versions: of what its results depend on, by package.
    """

    config: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    skeleton: Skeleton | None
    channels: int
    plugins: tuple[PluginRecord, ...]
    versions: Mapping[str, str]


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
        "plugins": write_records(records_of(config.plugins, _components_of(config.plan))),
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


def _components_of(value: Any) -> set[str]:
    """Names of the registered components that a plan is made of."""
    if isinstance(value, Plan):
        own = {value.cls.__name__} if value.family else set()
        return own.union(*map(_components_of, value.given.values()))
    if isinstance(value, Mapping):
        return set().union(*map(_components_of, value.values()))
    return set().union(*map(_components_of, value)) if isinstance(value, list | tuple) else set()


def read_metadata(text: Mapping[str, str], file: Path) -> ModelMetadata:
    """Read what `model_metadata` wrote.

    Args:
        text: of the model file.
        file: for messages.

    Raises:
        CheckpointError: something is missing, or is not what a run writes.
    """
    config = _entry(text, "config", file)
    classes = read_classes(text, file)
    category_ids = _read(text, "category_ids", file, _ids)
    if len(classes) != len(category_ids):
        raise CheckpointError(
            f"{file}: names {counted(len(classes), 'class', 'classes')}, "
            f"but has {counted(len(category_ids), 'category id')}{_DAMAGED}"
        )
    return ModelMetadata(
        config=config,
        classes=classes,
        category_ids=category_ids,
        skeleton=_read(text, "skeleton", file, _skeleton, default="null"),
        channels=_read(text, "channels", file, _channels, default="3"),
        plugins=_read(text, "plugins", file, read_records, default="[]"),
        versions=_read(text, "versions", file, _versions, default="{}"),
    )


def read_classes(text: Mapping[str, str], file: Path) -> tuple[str, ...]:
    """The names of the classes alone, which a file of weights may hold without the rest.

    Raises:
        CheckpointError: there are none, or they are no list of names.
    """
    return _read(text, "classes", file, _class_names)


def read_skeleton(text: Mapping[str, str], file: Path) -> Skeleton | None:
    """The joints alone, or None where the file has none.

    Raises:
        CheckpointError: they cannot be read.
    """
    return _read(text, "skeleton", file, _skeleton, default="null")


_DAMAGED = "; the file is damaged, or something else than a run of this toolbox wrote it"


def _read(
    text: Mapping[str, str], name: str, file: Path, reader: Callable[[str], Any], default: str | None = None
) -> Any:
    value = _entry(text, name, file) if default is None else text.get(name, default)
    try:
        return reader(value)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        shown = value if len(value) <= 60 else f"{value[:57]}…"
        raise CheckpointError(f"{file}: cannot read '{name}' in its metadata, {shown!r}{_DAMAGED}") from error


def _entry(text: Mapping[str, str], name: str, file: Path) -> str:
    if name not in text:
        raise CheckpointError(
            f"{file}: has no '{name}' in its metadata, so it was not written by a run of this toolbox; "
            "give the run's folder, or build the model from a config and load the weights into it"
        )
    return text[name]


def _class_names(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("not a list of names")
    return tuple(names)


def _ids(text: str) -> tuple[int, ...]:
    ids = json.loads(text)
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise ValueError("not a list of whole numbers")
    return tuple(ids)


def _channels(text: str) -> int:
    count = json.loads(text)
    if type(count) is not int or count < 1:
        raise ValueError("not a number of channels")
    return count


def _versions(text: str) -> dict[str, str]:
    known = json.loads(text)
    if not isinstance(known, dict):
        raise ValueError("not a mapping")
    return {str(name): str(version) for name, version in known.items()}


def _skeleton(text: str) -> Skeleton | None:
    fields = json.loads(text)
    if fields is None:
        return None
    return Skeleton(
        names=tuple(map(str, fields["names"])),
        pairs=tuple((int(a), int(b)) for a, b in fields["pairs"]),
        limbs=tuple((int(a), int(b)) for a, b in fields["limbs"]),
        sigmas=tuple(map(float, fields["sigmas"])),
    )
