"""A trained model in one file: safetensors, with what is needed to use it again in the metadata."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from toolbox.errors import CheckpointError, near_path
from toolbox.weights.atomic import replacing


def save_model(path: str | Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata to `path`, atomically.

    Args:
        path: the file, usually `model.safetensors`.
        state_dict: name → tensor, on any device; tensors that share memory are written once per name.
        metadata: text by name, e.g. the config as YAML.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state_dict.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses shared memory; tied weights are tied again by the module that loads them
        tensors[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    with replacing(path, needed=sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        try:
            save_file(tensors, temporary, {"format": "pt", **metadata})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        _order_metadata(temporary)


def _order_metadata(path: Path) -> None:
    """Sort the metadata in a header, which safetensors writes in a random order: the same model, the same bytes."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(ordered) <= length:  # else an escape is longer in Python's JSON, and the order stays
            file.seek(8)
            file.write(ordered.ljust(length))


def load_model(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `save_model` wrote.

    Returns:
        Name → tensor on the CPU, and the metadata (without safetensors' own `format`).

    Raises:
        CheckpointError: there is no such file, or it is not (or not wholly) a safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else f"no such file{near_path(path)}"
        raise CheckpointError(f"{path}: {what}; expected a .safetensors file (a run folder holds model.safetensors)")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {_diagnosis(path, error)}") from None
    metadata.pop("format", None)
    return tensors, metadata


def _diagnosis(path: Path, error: Exception) -> str:
    kind = kind_of_file(path)
    beside = path.with_name("model.safetensors")
    if kind == "pickle" and beside.is_file():
        return f"this is a checkpoint to resume a run from; use {beside.name} beside it"
    if kind == "pickle":
        return (
            "this is a PyTorch pickle (.pt, .pth), not a model file; weights of torchvision, Detectron2 and "
            "MMDetection become one by 'rcnn weights import FILE --config CONFIG --out model.safetensors'"
        )
    if kind == "empty":
        return "the file is empty; copy or train it again"
    if kind == "other":
        return f"{not_weights(path)}; expected the model.safetensors of a run"
    return (
        f"not a whole safetensors file ({error}); "
        "it may be truncated: compare its size with the original's and copy it again"
    )


def not_weights(path: Path) -> str:
    """What a file is that holds no weights, and how that comes about."""
    with path.open("rb") as file:
        start = file.read(200).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "this is a web page, not a weight file; download the file itself again"
    if start.startswith(b"version https://git-lfs"):
        return "this is a pointer of Git LFS, not the weights; run 'git lfs pull'"
    return "this is not a weight file"


def kind_of_file(path: Path) -> Literal["safetensors", "pickle", "empty", "other"]:
    """What a file claims to be by its first bytes; it may still be damaged."""
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        return "empty"
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "pickle"
    # A safetensors file begins with the length of its header, 8 bytes, and the header, which is JSON.
    return "safetensors" if start[8:] == b"{" or len(start) < 9 else "other"
