"""Annotation files and images: missing, of another format, or wrong inside."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from planted.mistake import RUN, Mistake, several, write

Content = dict[str, Any]
FILE = "data/objects.json"
COCO_RUN = RUN.replace(
    "train: {type: Shapes, length: 4}", f"train: {{type: CocoDataset, images: data/images, annotations: {FILE}}}"
).replace("  val: {type: Shapes, length: 2, seed: 1}\n", "")
PLACE = "run.yaml:16:64: data.train.annotations"
DATA_SET = "run.yaml:16:10: data.train"
BOTH = COCO_RUN.replace(
    "  resize", "  val: {type: CocoDataset, images: data/images, annotations: data/val.json}\n  resize"
)
JOINTS = ["nose", "left_eye", "right_eye"]
MASK = RUN[RUN.index("  instance:") : RUN.index("data:\n")]


def content() -> Content:
    """Two images of 100 × 80 (width × height), two classes, six objects with polygons."""
    boxes = [[10, 10, 20, 20], [50, 40, 30, 30], [70, 5, 10, 20], [5, 50, 25, 25], [60, 50, 30, 20], [20, 20, 40, 40]]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 80} for i in (1, 2)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 1 + i % 2, "category_id": 1 + i % 2, "bbox": box, "iscrowd": 0,
             "area": box[2] * box[3], "segmentation": [outline(*box)]}
            for i, box in enumerate(boxes, start=1)
        ],
    }  # fmt: skip


def outline(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


@cache
def picture(width: int = 100, height: int = 80) -> bytes:
    import io

    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(file, format="PNG")
    return file.getvalue()


def images(folder: Path) -> None:
    for name in ("1.png", "2.png"):
        write(picture(), f"data/images/{name}")(folder)


def coco(change: Callable[[Content], object], name: str = FILE) -> Callable[[Path], None]:
    """A planter of a COCO file with one change."""

    def plant(folder: Path) -> None:
        known = content()
        change(known)
        write(json.dumps(known), name)(folder)

    return plant


def data(
    name: str,
    plant: Callable[[Path], object],
    at: str | Sequence[str],
    fault: str | Sequence[str],
    suggestion: str | Sequence[str],
    *,
    kind: str,
    config: str = COCO_RUN,
    command: str = "check run.yaml",
    **more: Any,
) -> Mistake:
    texts = [(text,) if isinstance(text, str) else tuple(text) for text in (at, fault, suggestion)]
    return Mistake(name, kind, tuple(command.split()), *texts, several(write(config), images, plant), **more)


entry = partial(data, kind="annotations")
form = partial(data, kind="annotation formats")
image = partial(data, kind="images")
classes = partial(data, kind="classes")


def wrong(name: str, change: Callable[[Content], object], at: str, fault: Any, suggestion: Any, **more: Any) -> Mistake:
    """A change of the COCO file; the answer names the file and the record."""
    return entry(name, coco(change), (FILE, at), fault, suggestion, **more)


def put(index: int, **fields: Any) -> Callable[[Content], object]:
    """Change fields of one annotation; the index is its id less 1."""
    return lambda known: known["annotations"][index].update(fields)


def every(change: Callable[[Content], object]) -> Callable[[Content], object]:
    return lambda known: [change(annotation) for annotation in known["annotations"]]


def corners(annotation: Content) -> None:
    x, y, w, h = annotation["bbox"]
    annotation["bbox"] = [x, y, x + w, y + h]


def fractions(annotation: Content) -> None:
    x, y, w, h = annotation["bbox"]
    annotation["bbox"] = [x / 100, y / 80, w / 100, h / 80]


def enlarged(annotation: Content) -> None:
    annotation["bbox"] = [4 * value for value in annotation["bbox"]]


def text_ids(known: Content) -> None:
    for record in known["annotations"]:
        record["category_id"] = str(record["category_id"])


def joints(known: Content) -> None:
    for category in known["categories"]:
        category["keypoints"] = JOINTS
    for record in known["annotations"]:
        record["keypoints"] = [10, 10, 2] * 3


def two_joints(known: Content) -> None:
    joints(known)
    known["annotations"][2]["keypoints"] = [10, 10, 2] * 2


def lost_joint(known: Content) -> None:
    joints(known)
    known["categories"][0]["flip_pairs"] = [["left_eye", "right_eey"]]


def rename(*names: str) -> Callable[[Content], object]:
    return lambda known: [c.update(name=name) for c, name in zip(known["categories"], names, strict=True)]


def other_images(known: Content) -> None:
    """Other file names, so that no image is in both sets."""
    for known_image in known["images"]:
        known_image["file_name"] = f"v{known_image['file_name']}"


def val_pictures(folder: Path) -> None:
    for name in ("v1.png", "v2.png"):
        write(picture(), f"data/images/{name}")(folder)


def two_sets(change: Callable[[Content], object]) -> Callable[[Path], None]:
    def val(known: Content) -> None:
        other_images(known)
        change(known)

    return several(coco(lambda known: None), val_pictures, coco(val, "data/val.json"))


LABELME = {"version": "5.4.1", "flags": {}, "shapes": [{"label": "cat", "points": [[1, 2], [3, 4]]}],
           "imagePath": "1.png", "imageData": None, "imageHeight": 80, "imageWidth": 100}  # fmt: skip
VIA = {"_via_settings": {}, "_via_img_metadata": {"1.png123": {"filename": "1.png", "regions": []}}}
VIA_OLD = {"1.png123": {"filename": "1.png", "size": 123, "regions": [{"shape_attributes": {}}]}}
CREATE_ML = [{"image": "1.png", "annotations": [{"label": "cat", "coordinates": {"x": 1, "y": 2, "width": 3}}]}]
RESULTS = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.9}]
LABEL_STUDIO = [{"id": 1, "annotations": [{"result": []}], "data": {"image": "/1.png"}}]
VOC = "<annotation>\n  <filename>1.png</filename>\n  <object><name>cat</name></object>\n</annotation>\n"
YOLO = "0 0.5 0.5 0.25 0.25\n1 0.1 0.2 0.05 0.05\n"
CSV = "image,x1,y1,x2,y2,label\n1.png,10,10,30,30,cat\n"
GEOJSON = {"type": "FeatureCollection", "features": []}


def foreign(name: str, text: Any, called: str, suggestion: Any = "COCO", file: str = FILE) -> Mistake:
    written = text if isinstance(text, str | bytes) else json.dumps(text)
    config = COCO_RUN.replace(FILE, file)
    return form(name, write(written, file), (file, PLACE), called, suggestion, config=config)


def cut(folder: Path) -> None:
    text = json.dumps(content(), indent=1)
    write(text[: text.index('"bbox"', 900) + 9], FILE)(folder)


def cut_place() -> str:
    text = json.dumps(content(), indent=1)
    kept = text[: text.index('"bbox"', 900) + 9]
    return f"{FILE}:{kept.count(chr(10)) + 1}:"


RLE = {"size": [100, 80], "counts": [0, 8000]}

MISTAKES: tuple[Mistake, ...] = (
    form("file is missing", lambda folder: None, "run.yaml:16:", ["no such file", FILE], "current folder"),
    form("file is missing, a near name exists", coco(lambda known: None, "data/object.json"), "run.yaml:16:", FILE,
         "did you mean 'data/object.json'?"),
    form("empty file", write("", FILE), (FILE, PLACE), "empty", "COCO"),
    form("cut short", cut, cut_place(), "not JSON", "cut short", quotes=True),
    form("comma too many", write('{"images": [],\n "annotations": [],\n}', FILE), f"{FILE}:3:1", "not JSON", "comma",
         quotes=True),
    form("a zip", write(b"PK\x03\x04\x14\x00", FILE), FILE, "zip", "unpack"),
    form("a folder", lambda folder: (folder / FILE).mkdir(parents=True), FILE, "folder", "JSON"),
    foreign("LabelMe", LABELME, "LabelMe"),
    foreign("VGG Image Annotator", VIA, "VGG Image Annotator"),
    foreign("VGG Image Annotator, older", VIA_OLD, "VGG Image Annotator"),
    foreign("CreateML", CREATE_ML, "CreateML"),
    foreign("Label Studio", LABEL_STUDIO, "Label Studio", ["COCO", "export"]),
    foreign("Pascal VOC", VOC, "Pascal VOC", file="data/1.xml"),
    foreign("YOLO", YOLO, "YOLO", file="data/1.txt"),
    foreign("CSV", CSV, "CSV", file="data/objects.csv"),
    foreign("GeoJSON", GEOJSON, "GeoJSON", ["COCO", "pixels"]),
    foreign("COCO results", RESULTS, "results", ["images", "annotations", "categories"]),
    form("no categories", coco(lambda known: known.pop("categories")), FILE, "no list 'categories'", "categories"),
    form("empty list of categories", coco(lambda known: known.update(categories=[])), FILE, "no categories",
         "at least one class"),
    form("test images without annotations", coco(lambda known: known.pop("annotations")), FILE,
         "no list 'annotations'", "also when one of them is empty"),
    wrong("unknown category", put(2, category_id=9), "annotation 3", "category id 9", "1, 2"),
    wrong("category ids as text", text_ids, "annotation 1", "category_id '2'", "without quotes"),
    wrong("unknown image", put(2, image_id=9), "annotation 3", "image id 9", "not among the images"),
    wrong("two annotations of one id", put(2, id=2), "id 2", "two annotations", "must differ"),
    wrong("two images of one id", lambda known: known["images"][1].update(id=1), "id 1", "two images", "must differ"),
    wrong("two categories of one name", rename("cat", "cat"), "'cat'", "two categories", "must differ"),
    wrong("category without a name", lambda known: known["categories"][0].pop("name"), "'id': 1", "lacks a name",
          '"name"'),
    wrong("annotation without its image", lambda known: known["annotations"][2].pop("image_id"), "annotation 3",
          "no image_id", "id of"),
    wrong("boxes with corners", every(corners), "annotation 2", "x1 y1 x2 y2", "boxes: xyxy"),
    wrong("boxes as parts of the image", every(fractions), "annotation 1", "fractions", "pixels"),
    wrong("boxes of a larger image", every(enlarged), "annotation", "leave their image", "another size"),
    wrong("box outside its image", put(2, bbox=[200, 5, 10, 20]), "annotation 3", "no area in the image (100 x 80)",
          "bad: drop", config=COCO_RUN.replace(FILE, f"{FILE}, bad: error")),
    wrong("box sticks out", put(2, bbox=[95, 5, 20, 20]), "annotation 3", "sticks out of the image (100 x 80)",
          "bad: drop", config=COCO_RUN.replace(FILE, f"{FILE}, bad: error")),
    wrong("box without area", put(2, bbox=[70, 5, 0, 20]), "annotation 3", "no area", "left out",
          command="check run.yaml --strict"),
    wrong("negative width", put(2, bbox=[70, 5, -10, 20]), "annotation 3", "-10", "left out",
          command="check run.yaml --strict"),
    wrong("NaN in a box", put(2, bbox=[float("nan"), 5, 10, 20]), "annotation 3", "nan", "[x, y, width, height]"),
    wrong("text in a box", put(2, bbox=["70", "5", "10", "20"]), "annotation 3", "'70'", "without quotes"),
    wrong("box of three numbers", put(2, bbox=[70, 5, 10]), "annotation 3", "[70, 5, 10]", "[x, y, width, height]"),
    wrong("polygon with an odd number", put(2, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 3", "odd number (7)",
          "x1 y1 x2 y2"),
    wrong("polygon of two points", put(2, segmentation=[[1, 2, 3, 4]]), "annotation 3", "three points", "bad: drop"),
    wrong("polygon of points", put(2, segmentation=[[[1, 2], [3, 4], [5, 6]]]), "annotation 3", "flat list",
          "x1 y1 x2 y2"),
    wrong("polygon not in a list", put(2, segmentation=[1, 2, 3, 4, 5, 6]), "annotation 3", "list of polygons", "[["),
    wrong("RLE with height and width swapped", put(2, segmentation=RLE), "annotation 3", "size [100, 80]",
          ["[80, 100]", "swapped"]),
    wrong("RLE that does not fill the image", put(2, segmentation={"size": [80, 100], "counts": [0, 40]}),
          "annotation 3", "add up to 40", "8000"),
    wrong("one object without a mask", lambda known: known["annotations"][2].pop("segmentation"), "annotation 3",
          "no segmentation", ["bad: drop", "masks: false"]),
    wrong("iscrowd is text", put(2, iscrowd="no"), "annotation 3", "'no'", "0 or 1"),
    wrong("keypoints of two joints for three", two_joints, "annotation 3", "6 keypoint numbers", "3 joints"),
    wrong("pair of a joint that there is not", lost_joint, "'cat'", "no joint 'right_eey'",
          "did you mean 'right_eye'?"),
    wrong("skeletons that differ",
          lambda known: [c.update(keypoints=JOINTS[: 1 + c["id"]]) for c in known["categories"]],
          "'cat' and 'dog'", "different keypoints", ["'classes'", "keypoints: false"]),
    wrong("image sizes as text", lambda known: known["images"][0].update(width="100"), "image 1", "'100'",
          "whole numbers"),
    wrong("image without a size", lambda known: known["images"][0].pop("width"), "image 1", "no width", "pixels"),
    wrong("no images", lambda known: known.update(images=[], annotations=[]), FILE, "no images", "'images'"),
    wrong("no objects", lambda known: known.update(annotations=[]), "data.train", "no objects",
          "nothing to learn"),
    wrong("crowds only", every(lambda annotation: annotation.update(iscrowd=1)), "data.train", "nothing to learn",
          "crowds (iscrowd: 1)"),
    image("folder is missing", coco(lambda known: None), "run.yaml:16:38: data.train.images", "data/image",
          "did you mean 'data/images'?", config=COCO_RUN.replace("images: data/images", "images: data/image")),
    image("one image is missing", several(coco(lambda known: None),
          lambda folder: (folder / "data/images/2.png").unlink()),
          "data/images", ["2.png", "image id 2"], "take them out"),
    image("other extension than declared",
          coco(lambda known: [i.update(file_name=f"{i['id']}.jpg") for i in known["images"]]), "data/images",
          "2 of 2 images are missing", "1.png"),
    image("folder in the file name as well",
          coco(lambda known: [i.update(file_name=f"images/{i['file_name']}") for i in known["images"]]), "data/images",
          "2 of 2 images are missing", "images: data"),
    image("image of another size than declared",
          several(coco(lambda known: None), write(picture(50, 40), "data/images/1.png")), "1.png",
          ["50 x 40", "100 x 80"], "resized copy"),
    image("width and height swapped",
          coco(lambda known: [i.update(width=80, height=100) for i in known["images"]] and known["annotations"].clear()
               or known["annotations"].append({"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9],
                                               "segmentation": [outline(1, 1, 9, 9)]})),
          "1.png", ["100 x 80", "80 x 100"], "swapped"),
    classes("chosen class that there is not", coco(lambda known: None), FILE, "no category 'Cat'",
            "did you mean 'cat'?", config=COCO_RUN.replace(FILE, f"{FILE}, classes: [Cat, dog]")),
    classes("chosen class twice", coco(lambda known: None), FILE, "['cat', 'cat']", "once",
            config=COCO_RUN.replace(FILE, f"{FILE}, classes: [cat, cat]")),
    classes("another spelling in data.val", two_sets(rename("Cat", "dog")), "data.val", ["cat, dog", "Cat, dog"],
            "'Cat' ~ 'cat'", config=BOTH),
    classes("another class in data.val", two_sets(rename("cat", "horse")), "data.val", ["cat, dog", "cat, horse"],
            "classes:", config=BOTH),
    classes("another order in data.val", two_sets(rename("dog", "cat")), "data.val", ["cat, dog", "dog, cat"],
            ["another order", "'classes: [cat, dog]'"], config=BOTH),
    classes("the same in training", two_sets(rename("Cat", "dog")), "data.val", ["cat, dog", "Cat, dog"],
            "'Cat' ~ 'cat'", config=BOTH, command="train run.yaml --run out"),
    classes("the same images in data.train and data.val",
            several(coco(lambda known: None), coco(lambda known: None, "data/val.json")), "data.val",
            "2 of its 2 images are in data.train", ["1.png", "too good"], config=BOTH,
            command="check run.yaml --strict"),
    entry("mask head and data of boxes", coco(every(lambda annotation: annotation.pop("segmentation"))),
          DATA_SET, ["no masks", "model.instance.mask"], ["segmentation", "remove model.instance.mask"]),
)  # fmt: skip
