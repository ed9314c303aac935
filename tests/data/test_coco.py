"""The COCO reader against pycocotools, and what it says of broken files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from toolbox.data.coco import CocoDataset
from toolbox.data.geometry import apply_view
from toolbox.data.interfaces import View
from toolbox.data.skeletons import unpaired
from toolbox.engine.coco_metrics import coco_metrics, records_of
from toolbox.errors import DataError

DATA = Path(__file__).resolve().parents[2] / "../shared/data"


def bundled(name: str, annotations: str, split: str = "train", **settings: Any) -> CocoDataset:
    folder = DATA / name
    if not folder.exists():
        pytest.skip(f"data set {name} is not beside the project")
    return CocoDataset(
        images=folder / split, annotations=folder / "annotations" / f"{annotations}_{split}.json", **settings
    )


@pytest.fixture
def content() -> dict[str, Any]:
    """Two images of 20 × 30, a polygon, both kinds of RLE, a crowd; category ids with gaps and out of order."""
    bitmap = np.zeros((20, 30), dtype=np.uint8, order="F")
    bitmap[5:9, 10:14] = 1
    compressed = coco_mask.encode(bitmap)
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 20, "width": 30},
            {"id": 3, "file_name": "b.png", "height": 20, "width": 30},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [2, 4, 8, 10], "area": 80, "iscrowd": 0,
             "segmentation": [[2, 4, 10, 4, 10, 14, 2, 14]]},
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [10, 5, 4, 4], "area": 16, "iscrowd": 0,
             "segmentation": {"size": [20, 30], "counts": compressed["counts"].decode()}},
            {"id": 3, "image_id": 7, "category_id": 4, "bbox": [0, 0, 1, 2], "area": 2, "iscrowd": 1,
             "segmentation": {"size": [20, 30], "counts": [0, 2, 598]}},
        ],
    }  # fmt: skip


@pytest.fixture
def build(tmp_path: Path, content: dict[str, Any]) -> Callable[..., CocoDataset]:
    """Write the content and two images, and read them."""
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / name)

    def make(**settings: Any) -> CocoDataset:
        (tmp_path / "objects.json").write_text(json.dumps(content))
        return CocoDataset(**{"images": tmp_path, "annotations": tmp_path / "objects.json", **settings})

    return make


def test_labels_count_in_order_of_category_id_and_boxes_have_corners(build: Callable[..., CocoDataset]) -> None:
    dataset = build()
    assert dataset.classes == ("cat", "dog")
    assert dataset.category_ids == (4, 90)
    assert dataset.skeleton is None
    assert dataset.size(0) == (20, 30)
    sample = dataset.load(0)
    assert sample.image_id == 7
    assert sample.labels.tolist() == [1, 0, 0]
    assert sample.boxes.tolist() == [[2, 4, 10, 14], [10, 5, 14, 9], [0, 0, 1, 2]]
    assert sample.crowd.tolist() == [False, False, True]
    assert sample.area.tolist() == [80, 16, 2]
    assert sample.keypoints is None


def test_polygons_and_both_kinds_of_rle_are_read(build: Callable[..., CocoDataset]) -> None:
    bitmaps = [mask.bitmap(20, 30) for mask in build().load(0).masks]
    for bitmap, (x1, y1, x2, y2) in zip(bitmaps, [(2, 4, 10, 14), (10, 5, 14, 9), (0, 0, 1, 2)], strict=True):
        expected = np.zeros((20, 30))
        expected[y1:y2, x1:x2] = 1
        assert np.array_equal(bitmap, expected)


def test_an_image_without_objects_is_a_sample_or_left_out(build: Callable[..., CocoDataset]) -> None:
    empty = build().load(1)
    assert len(empty) == 0
    assert empty.boxes.shape == (0, 4)
    assert empty.masks == []
    assert len(build(skip_empty=True)) == 1


def test_labels_of_an_image_are_those_of_its_objects_without_crowds(build: Callable[..., CocoDataset]) -> None:
    dataset = build()
    assert dataset.labels(0).tolist() == [1, 0]  # dog is the second category by id, the crowd a cat
    assert dataset.labels(1).tolist() == []
    assert [dataset.labels(i).tolist() for i in range(2)] == [
        dataset.load(i).labels[~dataset.load(i).crowd].tolist() for i in range(2)
    ]


def test_skip_empty_leaves_out_images_with_crowds_only(build: Callable[..., CocoDataset], content: dict) -> None:
    content["annotations"] = [{**content["annotations"][2], "image_id": 3}, content["annotations"][0]]
    assert build(skip_empty=True).index.image_ids.tolist() == [7]


def test_chosen_classes_keep_their_order_and_their_objects_only(build: Callable[..., CocoDataset]) -> None:
    dataset = build(classes=["dog"])
    assert dataset.category_ids == (90,)
    assert dataset.load(0).labels.tolist() == [0]
    truth = dataset.ground_truth()
    assert [annotation["id"] for annotation in truth["annotations"]] == [1]
    assert [category["id"] for category in truth["categories"]] == [90]
    assert [image["id"] for image in truth["images"]] == [7, 3]
    assert build(classes=["dog", "cat"]).category_ids == (90, 4)


def test_masks_can_be_left_unread_and_a_file_of_boxes_has_none(
    build: Callable[..., CocoDataset], content: dict
) -> None:
    assert build(masks=False).load(0).masks is None
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    assert build().load(0).masks is None


def test_a_dataset_travels_to_workers(build: Callable[..., CocoDataset]) -> None:
    dataset = pickle.loads(pickle.dumps(build()))
    assert dataset.load(0).labels.tolist() == [1, 0, 0]


def test_boxes_that_leave_the_image_are_clipped_dropped_or_an_error(
    build: Callable[..., CocoDataset], content: dict, caplog: pytest.LogCaptureFixture
) -> None:
    content["annotations"][0]["bbox"] = [25, 10, 10, 5]  # 5 pixels beyond the right edge
    content["annotations"][1]["bbox"] = [40, 10, 10, 5]  # no pixel inside
    clipped = build().load(0)
    assert clipped.boxes.tolist() == [[25, 10, 30, 15], [0, 0, 1, 2]]
    assert "objects left out: 1 of 3, e.g. annotation 2: bbox [40, 10, 10, 5] has no area in the image" in caplog.text
    assert "boxes cut to their image: 1 of 3, e.g. annotation 1: bbox [25, 10, 10, 5] sticks out of" in caplog.text
    assert "67% of the boxes leave their image: are they x1 y1 x2 y2? COCO wants x y width height" in caplog.text
    assert build(bad="drop").load(0).crowd.tolist() == [True]
    with pytest.raises(DataError) as raised:
        build(bad="error")
    assert "annotation 1: bbox [25, 10, 10, 5] sticks out of the image (30 x 20)" in str(raised.value)
    assert "2 problems" in str(raised.value)
    assert "'bad: drop'" in str(raised.value) and "are they x1 y1 x2 y2?" in str(raised.value)


def test_a_pixel_of_rounding_is_no_problem(build: Callable[..., CocoDataset], content: dict) -> None:
    content["annotations"][0]["bbox"] = [-0.5, 4, 8, 10]
    assert build(bad="error").load(0).boxes[0].tolist() == [0, 4, 7.5, 14]


def test_an_object_without_a_mask_among_masks_is_an_error_or_dropped(
    build: Callable[..., CocoDataset], content: dict
) -> None:
    content["annotations"][0]["segmentation"] = []
    with pytest.raises(DataError, match="annotation 1: no segmentation, though other annotations have one"):
        build()
    assert build(bad="drop").load(0).labels.tolist() == [0, 0]
    assert len(build(masks=False).load(0)) == 3


def broken(change: Callable[[dict[str, Any]], Any], expected: str) -> Any:
    return pytest.param(change, expected, id=expected[:40])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        broken(lambda c: c.pop("categories"), r"no list 'categories' \(keys: images, annotations\)"),
        broken(lambda c: c["annotations"][0].update(category_id=5), "annotation 1 has category id 5; the categories"),
        broken(lambda c: c["annotations"][0].update(image_id=5), "annotation 1 is on image id 5, which is not among"),
        broken(lambda c: c["annotations"][1].update(id=1), "two annotations have id 1"),
        broken(lambda c: c["images"][1].update(id=7), "two images have id 7"),
        broken(lambda c: c["categories"][1].update(id=90), "two categories have the id '90'"),
        broken(lambda c: c["categories"][1].update(name="dog"), "two categories have the name 'dog'"),
        broken(
            lambda c: [entry.update(name=name) for entry, name in zip(c["categories"], (1, "1"), strict=False)],
            "two categories have the name '1'",
        ),
        broken(lambda c: c["annotations"][2].pop("bbox"), "annotation 3 has no bbox"),
        broken(lambda c: c["annotations"][2].update(bbox=[1, 2, float("nan"), 3]), "annotation 3: bbox is"),
        broken(lambda c: c["annotations"][2].update(bbox=[1, 2, 3]), r"annotation 3: bbox is \[1, 2, 3\]; it is"),
        broken(lambda c: c["images"][0].pop("height"), "image 7 has no height"),
        broken(lambda c: c["images"][0].update(file_name="z.png"), r"1 of 2 images is missing, .* z\.png \(image"),
        broken(lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3]]), "annotation 1: a polygon has an odd"),
        broken(lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "annotation 1: no polygon .* three"),
        broken(
            lambda c: c["annotations"][2].update(segmentation={"size": [30, 20], "counts": [600]}),
            r"annotation 3: segmentation has size \[30, 20\]; the image is \[20, 30\]",
        ),
        broken(
            lambda c: c["annotations"][2].update(segmentation={"size": [20, 30], "counts": [500]}),
            "annotation 3: segmentation counts add up to 500; the image has 600 pixels",
        ),
        broken(lambda c: c.update(images=[], annotations=[]), "no images"),
        broken(lambda c: c["annotations"][1].update(id="b"), "annotation b: id 'b' is not a whole number .* numbers,"),
        broken(lambda c: c["annotations"][1].update(image_id=[7]), r"annotation 2: image_id \[7\] is not a whole"),
        broken(lambda c: c["annotations"][1].update(category_id="4"), "annotation 2: category_id '4' is not a whole"),
        broken(lambda c: c["annotations"].append(None), "annotation number 4 is None; it is a mapping"),
        broken(lambda c: c["annotations"][1].update(bbox=5), "annotation 2: bbox is 5; it is"),
        broken(lambda c: c["annotations"][1].update(iscrowd="0"), "annotation 2: iscrowd is '0'; it is 0 or 1"),
        broken(lambda c: c["annotations"][1].update(area="16"), "annotation 2: area is '16'; it is a number"),
        broken(lambda c: c["images"].append("a.png"), "image number 3 is 'a.png'; it is a mapping"),
        broken(lambda c: c["images"][0].update(id="7"), "image id '7' is not a whole number from 0; number the images"),
        broken(lambda c: c["images"][0].update(id=[7]), r"image id \[7\] is not a whole number"),
        broken(lambda c: c["images"][0].update(file_name=7), "image 7: file_name is 7; it is a path"),
        broken(lambda c: c["images"][0].update(height="20"), "image 7 is declared with width 30 and height '20'; they"),
        broken(lambda c: c["images"][0].update(width=0.5), "image 7 is declared with width 0.5 and height 20"),
        broken(lambda c: c["categories"].append("bird"), "category 'bird' lacks a name, or an id"),
        broken(lambda c: c["categories"][0].update(id="90"), "lacks a name, or an id that is a whole number"),
        broken(lambda c: c["annotations"][0].update(segmentation=[["a", 1, 2, 3, 4, 5]]), "1: .* not a number"),
        broken(lambda c: c["annotations"][0].update(segmentation=[["1"] * 6]), "1: a polygon has a coord"),
        broken(lambda c: c["annotations"][0].update(segmentation=[[[1, 2], [3]]]), "annotation 1: a polygon is one fl"),
        broken(lambda c: c["annotations"][0].update(segmentation=[[[1, 2], [3, 4]]]), "1: a polygon is one flat list"),
        broken(lambda c: c["annotations"][0].update(segmentation="abc"), "annotation 1: segmentation is a list of"),
        broken(lambda c: c["annotations"][1]["segmentation"].update(size=20), "annotation 2: segmentation has size 20"),
        broken(lambda c: c["annotations"][1]["segmentation"].update(counts="é"), "annotation 2: .* outside ASCII"),
        broken(lambda c: c["annotations"][2]["segmentation"].update(counts=[0, "2"]), "3: segmentation counts are"),
        broken(lambda c: c["annotations"][2]["segmentation"].update(counts=[-1, 601]), "3: segmentation counts"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_with_the_record_and_the_reason(
    build: Callable[..., CocoDataset], content: dict, tmp_path: Path, change: Callable[[dict], Any], expected: str
) -> None:
    change(content)
    with pytest.raises(DataError, match=expected) as raised:
        build()
    assert str(tmp_path) in str(raised.value)


def test_all_problems_come_together_and_long_lists_are_cut(build: Callable[..., CocoDataset], content: dict) -> None:
    first = content["annotations"][0]
    content["annotations"] = [{**first, "id": i, "category_id": 1000 + i} for i in range(15)]
    with pytest.raises(DataError) as raised:
        build()
    assert "15 problems" in str(raised.value)
    assert "annotation 9 " in str(raised.value)
    assert "and 5 more" in str(raised.value)


def test_missing_files_and_unknown_classes_say_what_to_check(build: Callable[..., CocoDataset], tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"none\.json: annotation file cannot be read .*check the data set's 'annotations'"
    ):
        build(annotations=tmp_path / "none.json")
    (tmp_path / "text.json").write_text("[1,")
    with pytest.raises(DataError, match=r"text\.json:1:4: not JSON"):
        build(annotations=tmp_path / "text.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match="a mapping with images, annotations and categories, not a list"):
        build(annotations=tmp_path / "list.json")
    with pytest.raises(DataError, match="no such folder; 'images'"):
        build(images=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no category 'dgo'; did you mean 'dog'\? \(categories: dog, cat\)"):
        build(classes=["dgo"])


def test_a_broken_compressed_mask_is_named_when_it_is_loaded(build: Callable[..., CocoDataset], content: dict) -> None:
    content["annotations"][1]["segmentation"]["counts"] = "12"
    with pytest.raises(DataError, match="annotation 2: .*'masks: false'"):
        build().load(0)


def test_keypoints_that_do_not_fit_the_joints_are_named(build: Callable[..., CocoDataset], content: dict) -> None:
    content["categories"][0]["keypoints"] = ["head", "tail"]
    content["annotations"][0]["keypoints"] = [1, 2, 2, 3, 4, 1]
    sample = build().load(0)
    assert sample.keypoints.tolist() == [[[1, 2, 2], [3, 4, 1]], [[0, 0, 0]] * 2, [[0, 0, 0]] * 2]
    content["annotations"][0]["keypoints"] = [1, 2, 2]
    with pytest.raises(DataError, match="annotation 1: 3 keypoint numbers for 2 joints"):
        build()
    for wrong in ("text", [1, 2, 2, 3, "4", 1]):
        content["annotations"][0]["keypoints"] = wrong
        with pytest.raises(DataError, match="annotation 1: keypoints are .*; they are numbers"):
            build()
    assert build(keypoints=False).load(0).keypoints is None


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_coco_masks_are_pycocotools_masks(split: str) -> None:
    """RLE to the pixel. Polygons by their region: pycocotools draws their outline too, we take pixel centres."""
    dataset = bundled("coco_small", "instances", split)
    reference = COCO(str(dataset.file))
    for index in range(len(dataset)):
        height, width = dataset.size(index)
        annotations = reference.imgToAnns[int(dataset.index.image_ids[index])]
        for mask, annotation in zip(dataset.load(index).masks, annotations, strict=True):
            ours, theirs = mask.bitmap(height, width).astype(bool), reference.annToMask(annotation).astype(bool)
            if annotation["iscrowd"]:
                assert np.array_equal(ours, theirs)
            elif theirs.sum() > 32**2:
                assert (ours & theirs).sum() / (ours | theirs).sum() > 0.9
            else:
                rings = [np.reshape(ring, (-1, 2)) for ring in annotation["segmentation"]]
                steps = [np.abs(ring - np.roll(ring, 1, axis=0)).sum() for ring in rings]
                assert np.count_nonzero(ours != theirs) <= sum(steps)  # pixels that the outline passes


def test_real_nuclei_masks_are_pycocotools_masks_to_the_pixel() -> None:
    dataset = bundled("nuclei", "instances", "val")
    by_id = {annotation["id"]: annotation for annotation in json.loads(dataset.file.read_text())["annotations"]}
    for index in range(0, len(dataset), 8):
        height, width = dataset.size(index)
        rows = range(dataset.index.starts[index], dataset.index.starts[index + 1])
        for mask, row in zip(dataset.load(index).masks, rows, strict=True):
            rle = by_id[int(dataset.index.annotation_ids[row])]["segmentation"]
            expected = coco_mask.decode(coco_mask.frPyObjects(rle, height, width))
            assert np.array_equal(mask.bitmap(height, width), expected)


def test_real_person_keypoints_and_ground_truth() -> None:
    dataset = bundled("coco_small", "person_keypoints")
    assert dataset.classes == ("person",)
    assert dataset.skeleton is not None
    assert dataset.skeleton.pairs == tuple((i, i + 1) for i in range(1, 17, 2))
    content = json.loads(dataset.file.read_text())
    assert dataset.ground_truth()["annotations"] == content["annotations"]
    labelled = sum((dataset.load(i).keypoints[..., 2] > 0).sum() for i in range(len(dataset)))
    assert labelled == sum(annotation["num_keypoints"] for annotation in content["annotations"])
    assert len(bundled("coco_small", "person_keypoints", skip_empty=True)) == 42  # 8 of 50 have no person


def test_real_bees_have_left_and_right_by_name() -> None:
    skeleton = bundled("bee_pose", "keypoints").skeleton
    assert skeleton is not None
    assert len(skeleton.names) == 32
    assert len(skeleton.pairs) == 14
    names = [(skeleton.names[a], skeleton.names[b]) for a, b in skeleton.pairs]
    for left, right in names:
        assert {left.replace("left", "right"), left.replace("right", "left")} == {left, right}
    assert unpaired(skeleton) == []


def test_a_mirrored_bee_is_the_bee_with_left_and_right_exchanged() -> None:
    dataset = bundled("bee_pose", "keypoints")
    sample, names = dataset.load(0), dataset.skeleton.names
    _, width, _ = sample.image.shape
    view = View(*sample.image.shape[:2]).moved(np.array([[-1.0, 0, width], [0, 1, 0]]), *sample.image.shape[:2])
    mirrored = apply_view(sample, view, skeleton=dataset.skeleton).keypoints[0]
    partners = {
        "head_front": "head_front",
        "head_left": "head_right",
        "wing_right": "wing_left",
        "right_leg_middle_4": "left_leg_middle_4",
        "left_leg_back_1": "right_leg_back_1",
    }
    for name, partner in partners.items():
        x, y, visible = sample.keypoints[0, names.index(partner)]
        assert visible == 2
        assert mirrored[names.index(name)].tolist() == [width - x, y, visible]


def test_images_with_few_labelled_joints_are_left_out() -> None:
    counts: dict[int, int] = {}
    for annotation in bundled("coco_small", "person_keypoints").ground_truth()["annotations"]:
        counts[annotation["image_id"]] = counts.get(annotation["image_id"], 0) + annotation["num_keypoints"]
    for least in (1, 10):
        kept = bundled("coco_small", "person_keypoints", min_keypoints=least).index.image_ids.tolist()
        assert set(kept) == {image for image, count in counts.items() if count >= least}
    with pytest.raises(DataError, match="no images with 9999 labelled joints; lower 'min_keypoints'"):
        bundled("coco_small", "person_keypoints", min_keypoints=9999)
    with pytest.raises(ValueError, match="^min_keypoints counts keypoints"):
        bundled("coco_small", "person_keypoints", min_keypoints=1, keypoints=False)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_what_the_reader_lets_pass_evaluators_take(
    build: Callable[..., CocoDataset], content: dict, backend: str
) -> None:
    pytest.importorskip(backend)
    polygon, rle, crowd = content["annotations"]
    polygon.update(id=0, iscrowd=None, area=None, num_keypoints=None)
    polygon["segmentation"].insert(0, [1, 1, 2, 2])  # a line; pycocotools takes a list of 4 numbers for a box
    del rle["iscrowd"], rle["area"]
    crowd.update(segmentation=None, bbox=[20, 10, 5, 5])
    content["images"][0]["license"] = "CC BY"
    truth = build().ground_truth()
    assert [record["iscrowd"] for record in truth["annotations"]] == [0, 0, 1]
    assert [record["area"] for record in truth["annotations"]] == [80, 16, 2]
    assert truth["annotations"][0]["segmentation"] == [[2, 4, 10, 4, 10, 14, 2, 14]]
    masks = build().load(0).masks
    results = [
        {"image_id": 7, "category_id": category, "bbox": [float(v) for v in box], "segmentation": mask, "score": 0.9}
        for category, box, mask in zip(
            (90, 4), (polygon["bbox"], rle["bbox"]), [mask.to_rle(20, 30) for mask in masks[:2]], strict=True
        )
    ]
    # A detection inside the crowd is neither right nor wrong, also of a crowd that is known by its box only.
    inside = np.zeros((20, 30), dtype=np.uint8, order="F")
    inside[11:14, 21:24] = 1
    results.append({**results[1], "bbox": [21.0, 11.0, 3.0, 3.0], "segmentation": coco_mask.encode(inside), "score": 1})
    for kind in ("bbox", "segm"):
        assert coco_metrics(truth, records_of(results, kind), kind, backend=backend)["AP"] == pytest.approx(1.0)


def test_masks_that_are_not_read_are_not_compared_either(build: Callable[..., CocoDataset], content: dict) -> None:
    content["annotations"][0]["segmentation"] = "nonsense"
    truth = build(masks=False).ground_truth()
    assert not any("segmentation" in record for record in truth["annotations"])
