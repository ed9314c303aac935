"""Annotation files that are not COCO's: which format they are, so that the message can say what to convert."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_CONVERT = "convert it to COCO"
_YOLO_LINE = re.compile(r"\d+( +-?\d*\.?\d+([eE][-+]?\d+)?){4,}")


def called(name: str, advice: str = _CONVERT) -> str:
    """The sentence about a format that was recognised."""
    return f"this looks like {name}; {advice}"


def kind_of_bytes(data: bytes) -> str:
    """What a file that is not JSON looks like; empty where nothing is recognised."""
    start = data[:4096]
    if not data.strip():
        return "the file is empty; a COCO file is a mapping with images, annotations and categories"
    if start.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        return f"this is a {'zip' if start[:2] == b'PK' else 'gzip'} archive; unpack it and name the JSON file inside"
    if start.startswith((b"\x89PNG", b"\xff\xd8\xff")):
        return "this is an image; 'annotations' is a COCO JSON file, 'images' the folder of the images"
    if start.startswith(b"version https://git-lfs"):
        return "this is a pointer of Git LFS, not the file itself; run 'git lfs pull'"
    text = start.decode("utf-8", errors="replace").lstrip("\ufeff \r\n\t")
    first = text.partition("\n")[0].strip()
    if "<annotation" in text[:400]:
        return called("Pascal VOC's XML, one file per image", f"{_CONVERT}, all images in one file")
    if first.lower().startswith(("<!doctype html", "<html")):
        return "this is a web page, not an annotation file; download it again"
    if _YOLO_LINE.fullmatch(first):
        return called("YOLO's text, one file per image", f"{_CONVERT}, all images in one file, boxes in pixels")
    if first.count(",") >= 3 and not first.startswith(("{", "[")):
        return called("a CSV table", f"{_CONVERT}: images, annotations and categories in one JSON file")
    if re.match(r"(path|train|val|nc|names):", text):
        return called("YOLO's data.yaml")
    return ""


def kind_of_json(content: Any) -> str:
    """What JSON that is not COCO's looks like; empty where nothing is recognised."""
    if isinstance(content, Mapping):
        return _kind_of_mapping(content)
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, Mapping):
        return ""
    if {"image_id", "category_id", "score"} <= set(first):
        return (
            "this is a list of results (predictions), not a data set; give the file with images, annotations and "
            "categories that they were predicted for"
        )
    if {"image_id", "category_id", "bbox"} <= set(first):
        return "this is the list of annotations alone; put it into a mapping with images, annotations and categories"
    if "annotations" in first and ("image" in first or "imagefilename" in first):
        return called("CreateML's JSON", f"{_CONVERT}; its x and y are the centre of a box")
    if "data" in first and ("annotations" in first or "completions" in first):
        return called("Label Studio's JSON", "export it from there in the format COCO")
    return ""


def _kind_of_mapping(content: Mapping[str, Any]) -> str:
    keys = set(content)
    if "shapes" in keys and keys & {"imagePath", "imageData", "imageHeight"}:
        return called("LabelMe's JSON, one file per image", f"{_CONVERT}, all images in one file (labelme2coco.py)")
    values = list(content.values())
    regions = bool(values) and isinstance(values[0], Mapping) and {"filename", "regions"} <= set(values[0])
    if "_via_img_metadata" in keys or regions:
        return called("the JSON of the VGG Image Annotator (VIA)", "export it from there in the format COCO")
    if content.get("type") == "FeatureCollection":
        return called("GeoJSON", f"{_CONVERT}, with coordinates in pixels of each image")
    if "openlabel" in keys:
        return called("OpenLABEL")
    if {"item", "annotations"} <= keys:
        return called("Darwin's JSON (V7)", "export it from there in the format COCO")
    if {"size", "objects"} <= keys:
        return called("Supervisely's JSON, one file per image", "export it from there in the format COCO")
    if {"imgs", "anns", "cats"} & keys:
        return called("a dump of pycocotools' COCO object", "its 'dataset' is the file")
    return ""


def json_fault(text: str, error: json.JSONDecodeError) -> str:
    """`line:column: not JSON: …` with what to do."""
    at = f"{error.lineno}:{error.colno}"
    if not text[error.pos :].strip():
        return f"{at}: not JSON: the file ends in the middle ({error.msg}); it was cut short, copy or write it again"
    before = text[: error.pos].rstrip()
    if before.endswith(",") and text[error.pos : error.pos + 1] in "]}":
        return f"{at}: not JSON: a comma before '{text[error.pos]}' ({error.msg}); remove the comma"
    if error.msg.startswith("Unterminated string"):
        return f"{at}: not JSON: a text begins here and does not end ({error.msg}); was the file cut short?"
    found = text[error.pos : error.pos + 20].partition("\n")[0]
    return f"{at}: not JSON: {error.msg}, found '{found}'; 'annotations' is a COCO JSON file"
