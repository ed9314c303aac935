"""A trained model from a run folder or its model file, with what it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from toolbox import __version__
from toolbox.errors import CheckpointError, ConfigError, Problem, ToolboxError
from toolbox.inference.metadata import ModelMetadata, read_metadata, versions
from toolbox.models.backbones.weights import without_pretrained
from toolbox.models.builder import build_detector, check_wiring
from toolbox.plugin_records import Search, check_installed
from toolbox.schema import Config, config_from_text, load_config
from toolbox.structures import Skeleton
from toolbox.weights import check_fits, load_model, load_weights
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
    state, text = load_model(file)
    return detector_of(file, state, text, overrides, plugins, folder=path if path.is_dir() else None)


def detector_of(
    file: Path,
    state: dict[str, Tensor],
    text: Mapping[str, str],
    overrides: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    *,
    folder: Path | None = None,
) -> LoadedDetector:
    """Build a detector from what a file holds.

    Args:
        file: where it comes from: for messages, and because plugins are looked for beside it.
        state: its weights.
        text: what `model_metadata` made of the run.
        overrides, plugins: as in `load_detector`.
        folder: the run's, if its `config.yaml` holds instead of the text's config.

    Raises:
        CheckpointError, ConfigError: as `load_detector`.
    """
    metadata = read_metadata(text, file)
    try:
        return _build(folder, file, state, metadata, overrides, [str(plugin) for plugin in plugins])
    except ToolboxError as error:
        raise _with_versions(error, metadata, file) from error
    except Exception as error:
        if note := _other_version(metadata):
            error.add_note(f"{file}: {note}")
        raise


def _build(
    folder: Path | None,
    file: Path,
    state: dict[str, Tensor],
    metadata: ModelMetadata,
    overrides: Sequence[str],
    plugins: Sequence[str],
) -> LoadedDetector:
    stored = folder / "config.yaml" if folder is not None and (folder / "config.yaml").exists() else None
    text = metadata.config if stored is None else stored.read_text(encoding="utf-8")
    overrides = [*_found_plugins(text, file, metadata, overrides, plugins), *overrides]
    config = config_from_text(text, f"{file} (config)", overrides) if stored is None else load_config(stored, overrides)
    classes, skeleton, channels = metadata.classes, metadata.skeleton, metadata.channels
    with without_pretrained():
        # First without memory: metadata and weights that contradict each other may ask for more than there is.
        outline = check_wiring(config, classes=classes, skeleton=skeleton, channels=channels, weights=False)
        check_fits(outline, state, str(file))
        model = build_detector(config, classes=classes, skeleton=skeleton, channels=channels)
    load_weights(model, state, str(file))
    return LoadedDetector(model.eval(), config, classes, metadata.category_ids, skeleton, channels)


def _found_plugins(
    text: str, file: Path, metadata: ModelMetadata, overrides: Sequence[str], plugins: Sequence[str]
) -> list[str]:
    """An override with the places where the config's plugins are now; none where they are where they were."""
    if any(override.startswith("plugins=") for override in overrides):
        return []
    config = parse(text, str(file), Findings())  # what is wrong with it is found when it is checked
    node = config.value.get("plugins")
    listed = [item.value for item in node.value if isinstance(item.value, str)] if node and node.is_list else []
    try:
        found = Search(file.parent, plugins).entries(listed, metadata.plugins)
        if not plugins:  # else they may bring it; a component that is missing is named when the config is checked
            check_installed(metadata.plugins)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return [] if found == listed else [f"plugins={json.dumps(found)}"]


def _with_versions(error: ToolboxError, metadata: ModelMetadata, file: Path) -> ToolboxError:
    """The error, and whether another version of the toolbox wrote the file, which may be the cause."""
    note = _other_version(metadata)
    if note is None:
        return error
    if isinstance(error, ConfigError):
        return ConfigError([*error.problems, Problem(str(file), "", note)])
    return type(error)(f"{error}\n{file}: {note}")


def _other_version(metadata: ModelMetadata) -> str | None:
    then = metadata.versions
    written = then.get("toolbox", __version__)
    if written == __version__:
        return None
    others = [f"{name} {then[name]}" for name, now in versions().items() if name in then and then[name] != now]
    with_those = ", ".join([f"toolbox {written}", *(other for other in others if not other.startswith("toolbox "))])
    return (
        f"it was written by {with_those}, and this is toolbox {__version__}; if that is the cause, "
        f"pip install 'rcnn-toolbox=={written}' reads it"
    )
