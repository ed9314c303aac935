"""Starting from the weights of another detector: what fits is taken over, and a table says what became of each part.

Rows of classes and joints of the same name are taken over one by one. Which rows those are is found by building the
model without memory for one class, or joint, more: what grows has rows of them. That holds for a plugin's head too, as
long as its rows are in the order of the classes, with what belongs to none (background) behind them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toolbox.engine.checkpoint import load_checkpoint
from toolbox.engine.transfer_table import table
from toolbox.errors import CheckpointError, ConfigError, near_path
from toolbox.inference.metadata import read_classes, read_skeleton
from toolbox.models.backbones.weights import inflate, without_pretrained
from toolbox.models.builder import check_wiring
from toolbox.schema import Config
from toolbox.weights import kind_of_file, load_model

logger = logging.getLogger("toolbox")

_COUNTER = "num_batches_tracked"
_ELSEWHERE = (
    "weights of torchvision, Detectron2 and MMDetection become a model file by 'rcnn weights import FILE --config "
    "CONFIG --out model.safetensors'; those of a backbone alone belong into model.backbone.weights"
)


@dataclass(frozen=True)
class Source:
    """Weights of another detector.

    Attributes:
        path: as the user gave it.
        tensors: by name.
        classes, joints: their names, or None where the file does not say.
    """

    path: str
    tensors: Mapping[str, Tensor]
    classes: tuple[str, ...] | None
    joints: tuple[str, ...] | None


@dataclass(frozen=True)
class Rows:
    """Where a tensor has rows by name.

    Attributes:
        axis: along which.
        each: rows of a name.
        kind: of name.
        own, theirs: names of the model's rows and the file's, in order.
    """

    axis: int
    each: int
    kind: Literal["class", "joint"]
    own: tuple[str, ...]
    theirs: tuple[str, ...]

    @property
    def shared(self) -> list[str]:
        return [name for name in self.own if name in self.theirs]

    def fit(self, own: torch.Size, theirs: torch.Size) -> bool:
        """Whether the file's tensor has just so many rows too, and is otherwise of the same shape."""
        extra = own[self.axis] - self.each * len(self.own)
        wanted = (*own[: self.axis], self.each * len(self.theirs) + extra, *own[self.axis + 1 :])
        return theirs == wanted

    def pairs(self, own: torch.Size) -> Iterator[tuple[int, int]]:
        """Rows of the model and the file that mean the same: those of shared names, then those of no name."""
        for name in self.shared:
            for row in range(self.each):
                yield self.own.index(name) * self.each + row, self.theirs.index(name) * self.each + row
        named = self.each * len(self.own)
        for row in range(own[self.axis] - named):
            yield named + row, self.each * len(self.theirs) + row


@dataclass(frozen=True)
class Fate:
    """What becomes of a tensor.

    Attributes:
        name: in the state dict.
        values: how many it has.
        taken: how many of them come from the file.
        became: `loaded`, `in part`, `re-initialised`, or `not used` of one that the file alone has.
        why: for the table.
    """

    name: str
    values: int
    taken: int
    became: Literal["loaded", "in part", "re-initialised", "not used"]
    why: str = ""


@dataclass(frozen=True)
class Transfer:
    """What is taken from a file into a model.

    Attributes:
        source: the file.
        fates: of the model's tensors, then of the file's others.
        rows: by name of tensor, where there are rows by name.
    """

    source: Source
    fates: tuple[Fate, ...]
    rows: Mapping[str, Rows]

    @property
    def part(self) -> float:
        """Part of the model's values that is taken over, 0 to 1."""
        own = [fate for fate in self.fates if fate.became != "not used"]
        return sum(fate.taken for fate in own) / max(1, sum(fate.values for fate in own))

    @property
    def fills_backbone(self) -> bool:
        """Whether pretrained weights of the backbone would be overwritten whole."""
        pretrained = [fate for fate in self.fates if fate.name.startswith(("backbone.", "roi_stage."))]
        own = [fate for fate in pretrained if fate.became != "not used"]
        return bool(own) and all(fate.became == "loaded" for fate in own)

    def lines(self) -> list[str]:
        """The table."""
        return table(self.fates, title=f"train.init_from: {self.source.path}")

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Put the weights into the model that they were planned for."""
        own = model.state_dict()
        for fate in self.fates:
            if fate.became in ("re-initialised", "not used"):
                continue
            into, found = own[fate.name], self.source.tensors[fate.name]
            if fate.became == "loaded":
                into.copy_(inflate(found, into.shape, into.shape[1]) if into.shape != found.shape else found)
                continue
            rows = self.rows[fate.name]
            for mine, theirs in rows.pairs(into.shape):
                into.select(rows.axis, mine).copy_(found.select(rows.axis, theirs))


def plan_transfer(config: Config, known: Mapping[str, Any]) -> Transfer:
    """What `train.init_from` gives the model of a config; nothing is made or changed.

    Args:
        config: has `train.init_from`.
        known: of the training data, as `build_detector` takes it.

    Raises:
        ConfigError: at `train.init_from`: the file cannot be read, or nothing of it fits.
    """
    try:
        return _planned(config, known, source_of(config))
    except CheckpointError as error:
        raise ConfigError([config.plan["train"].problem(str(error), "init_from")]) from error


def source_of(config: Config) -> Source:
    """Read what `train.init_from` names.

    Raises:
        ConfigError: at `train.init_from`: it cannot be read.
    """
    assert config.train.init_from is not None, "asked for where the setting is given"
    try:
        return read_source(config.train.init_from)
    except CheckpointError as error:
        raise ConfigError([config.plan["train"].problem(str(error), "init_from")]) from error


def report(transfer: Transfer) -> None:
    """Log the table, and loudly where little is taken over."""
    for line in transfer.lines():
        logger.info(line)
    warn_of_little(transfer)


def warn_of_little(transfer: Transfer) -> None:
    """Say loudly that less than half of the model comes from the file."""
    if transfer.part < 0.5:
        logger.warning(
            "train.init_from: ONLY %.1f %% of the model's values come from %s, the rest starts at random (the table "
            "says why); see that the model section is that of the file",
            100 * transfer.part,
            transfer.source.path,
        )


def read_source(path: str) -> Source:
    """Read a run folder, its `model.safetensors` or its `checkpoint.pt` (the averaged weights where it has them).

    Raises:
        CheckpointError: it is none of them, and what may be meant.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = next((file / name for name in ("model.safetensors", "checkpoint.pt") if (file / name).is_file()), file)
    if file.is_dir():
        raise CheckpointError(
            f"{path}: the folder holds no model.safetensors and no checkpoint.pt; give a run's folder"
        )
    if not file.is_file():
        raise CheckpointError(f"{path}: no such file or run folder{near_path(path)}")
    if kind_of_file(file) != "pickle" and file.suffix != ".pt":
        tensors, text = load_model(file)
        return Source(path, tensors, *_names(text, file))
    try:
        state = load_checkpoint(file)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_ELSEWHERE}") from error
    beside = file.with_name("model.safetensors")
    names = _names(load_model(beside)[1], beside) if beside.is_file() else (None, None)
    return Source(path, state["ema"] or state["model"], *names)


def _names(text: Mapping[str, str], file: Path) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Classes and joints by a model file's metadata; files of weights alone name none."""
    classes = read_classes(text, file) if "classes" in text else None
    skeleton = read_skeleton(text, file)
    return classes, None if skeleton is None else skeleton.names


def _planned(config: Config, known: Mapping[str, Any], source: Source) -> Transfer:
    own = _shapes(config, known)
    rows = _rows(config, known, own, source)
    fates = [
        _fate(name, shape, source.tensors.get(name), rows.get(name), known["channels"]) for name, shape in own.items()
    ]
    if not any(fate.taken for fate in fates):
        first = next(iter(source.tensors), "none")
        raise CheckpointError(
            f"{source.path}: none of its {len(source.tensors)} tensors (first '{first}') has a place in this model "
            f"(first '{next(iter(own))}'); {_ELSEWHERE}"
        )
    fates += [
        Fate(name, tensor.numel(), 0, "not used", "the model has no such part")
        for name, tensor in source.tensors.items()
        if name not in own and not name.endswith(_COUNTER)
    ]
    return Transfer(source, tuple(fates), rows)


def _fate(name: str, shape: torch.Size, found: Tensor | None, rows: Rows | None, channels: int) -> Fate:
    count = shape.numel()
    if found is None:
        return Fate(name, count, 0, "re-initialised", "not in the file")
    shapes = f"{tuple(found.shape)} → {tuple(shape)}"
    if rows is not None:
        if not rows.shared:
            return Fate(name, count, 0, "re-initialised", f"{shapes}, no {rows.kind} of the same name")
        if rows.fit(shape, found.shape):
            taken = len([*rows.pairs(shape)]) * count // shape[rows.axis]
            how = f"{len(rows.shared)} of {len(rows.own)} by {rows.kind} name: {_few(rows.shared)}"
            return Fate(name, count, taken, "loaded" if rows.own == rows.theirs else "in part", how)
        return Fate(name, count, 0, "re-initialised", shapes)
    if found.shape == shape:
        return Fate(name, count, count, "loaded")
    if inflate(found, shape, channels).shape == shape:
        return Fate(name, count, count, "loaded", f"fitted from {found.shape[1]} channels to {channels}")
    return Fate(name, count, 0, "re-initialised", shapes)


def _rows(config: Config, known: Mapping[str, Any], own: Mapping[str, torch.Size], source: Source) -> dict[str, Rows]:
    """Rows by name, of classes and joints that are not the same in the model and the file."""
    rows: dict[str, Rows] = {}
    classes, skeleton = tuple(known["classes"]), known["skeleton"]
    if source.classes is None:
        logger.warning("train.init_from: %s does not name its classes; theirs are taken in its order", source.path)
    elif source.classes != classes:
        more = _shapes(config, {**known, "classes": (*classes, "one more")})
        rows |= _grown(own, more, Rows(0, 0, "class", classes, source.classes))
    if skeleton is not None and source.joints is not None and source.joints != skeleton.names:
        longer = replace(skeleton, names=(*skeleton.names, "one more"), sigmas=(*skeleton.sigmas, 0.05))
        more = _shapes(config, {**known, "skeleton": longer})
        rows |= _grown(own, more, Rows(0, 0, "joint", skeleton.names, source.joints))
    return rows


def _grown(own: Mapping[str, torch.Size], more: Mapping[str, torch.Size], names: Rows) -> dict[str, Rows]:
    """Where the model for one name more is larger."""
    found = {}
    for name, shape in own.items():
        axes = [axis for axis, size in enumerate(shape) if more[name][axis] != size]
        if len(axes) == 1:
            each = more[name][axes[0]] - shape[axes[0]]
            found[name] = replace(names, axis=axes[0], each=each)
    return found


def _shapes(config: Config, known: Mapping[str, Any]) -> dict[str, torch.Size]:
    with without_pretrained():
        outline = check_wiring(config, **known, weights=False)
    return {name: x.shape for name, x in outline.state_dict().items() if not name.endswith(_COUNTER)}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f", … ({len(names) - 6} more)" if len(names) > 6 else "")
