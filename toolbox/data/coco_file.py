"""A COCO file as JSON: whether it is one, and what it is where it is another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toolbox.data.foreign_formats import json_fault, kind_of_bytes, kind_of_json
from toolbox.errors import DataError


def read_coco_json(path: Path) -> dict[str, Any]:
    """Read a COCO file and check that its three lists are there.

    Raises:
        DataError: it is missing, not JSON, or not COCO.
    """
    content = _read_json(path)
    lists = ("images", "annotations", "categories")
    missing = [key for key in lists if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    foreign = kind_of_json(content) if missing else ""
    if foreign:
        raise DataError(f"{path}: {foreign}")
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: a COCO file is a mapping with images, annotations and categories, not a {type(content).__name__}"
        )
    if missing:
        raise DataError(
            f"{path}: no list {' and no list '.join(map(repr, missing))} "
            f"(keys: {', '.join(map(str, content)) or 'none'}); "
            f"a COCO file has images, annotations and categories, also when one of them is empty"
        )
    return content


def _read_json(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; 'annotations' is a COCO JSON file") from None
    except OSError as error:
        raise DataError(
            f"{path}: annotation file cannot be read ({error.strerror}); check the data set's 'annotations'"
        ) from error
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        foreign = kind_of_bytes(data)
        raise DataError(f"{path}: {foreign}" if foreign else f"{path}:{json_fault(error.doc, error)}") from error
    except ValueError as error:  # bytes that are no text
        reason = kind_of_bytes(data) or f"not JSON ({error}); 'annotations' is a COCO JSON file"
        raise DataError(f"{path}: {reason}") from error


def whole(value: Any) -> bool:
    """Whether a value of the file serves as an id: a whole number from 0, as every evaluator reads it."""
    return type(value) is int and 0 <= value < 2**63
