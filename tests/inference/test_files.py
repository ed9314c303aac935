"""Files in, COCO results and pictures out. The detector is a stand-in that finds the whole image."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from toolbox.errors import DataError
from toolbox.inference.files import ResultFolder, find_images, predict_files
from toolbox.structures import Detections


class WholeImage:
    """Two detections an image: the whole of it, and its upper left quarter with a score below the drawing threshold."""

    classes = ("cell", "dust")
    category_ids = (7, 90)
    skeleton = None
    channels = 3
    batch = 2

    def __call__(self, images: Iterable[np.ndarray]) -> list[Detections]:
        found = []
        for image in images:
            h, w = image.shape[:2]
            found.append(
                Detections(
                    image_size=(h, w),
                    boxes=torch.tensor([[0.0, 0, w, h], [0, 0, w / 2, h / 2]]),
                    scores=torch.tensor([0.75, 0.25]),
                    labels=torch.tensor([1, 0]),
                    masks=[coco_mask.encode(np.ones((h, w), np.uint8, order="F"))] * 2,
                )
            )
        return found


def write_image(path: Path, height: int = 20, width: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)
    return path


def test_folders_patterns_and_files_are_found_once_and_in_order(tmp_path: Path) -> None:
    b, a = write_image(tmp_path / "in/b.png"), write_image(tmp_path / "in/deep/a.JPG")
    c = write_image(tmp_path / "c.png")
    (tmp_path / "in/notes.txt").write_text("no image")
    assert find_images([str(c), str(tmp_path / "in"), str(tmp_path / "in/*.png")]) == [c, b, a]
    assert find_images([str(tmp_path / "**/*.png")]) == [c, b]


def test_folders_named_like_images_are_left_out_and_broken_links_are_not(tmp_path: Path) -> None:
    image = write_image(tmp_path / "in/a.png")
    inner = write_image(tmp_path / "in/x.jpg/b.png")
    (tmp_path / "in/loop.png").symlink_to(tmp_path / "in/loop.png")
    (tmp_path / "in/deeper").symlink_to(tmp_path / "in", target_is_directory=True)
    assert find_images([str(tmp_path / "in")]) == [image, tmp_path / "in/loop.png", inner]
    assert find_images([str(tmp_path / "in/loop.png"), str(image)]) == [tmp_path / "in/loop.png", image]


def test_arrays_in_a_folder_are_images_where_channels_are_not_three(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.zeros((2, 2, 5), np.uint8))
    assert find_images([str(tmp_path)]) == [image]
    assert find_images([str(tmp_path)], 5) == [image, tmp_path / "b.npy"]


def test_names_in_other_encodings_are_predicted_and_written(tmp_path: Path) -> None:
    try:
        path = write_image(tmp_path / os.fsdecode(b"in/gr\xfc n.png"))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    predictor = WholeImage()
    with ResultFolder(tmp_path / "out", predictor) as folder:
        assert list(predict_files(predictor, [path], folder)) == [None]
    row = json.loads((tmp_path / "out/images.json").read_text())["images"][0]
    assert Path(row["file_name"]) == path
    assert (tmp_path / "out" / row["picture"]).is_file()


def test_a_file_with_brackets_in_its_name_is_no_pattern(tmp_path: Path) -> None:
    path = write_image(tmp_path / "scan[1].png")
    assert find_images([str(path)]) == [path]


def test_folders_and_patterns_without_images_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image in this folder"):
        find_images([str(tmp_path)])
    with pytest.raises(DataError, match="no file matches this pattern"):
        find_images([str(tmp_path / "*.png")])


def test_results_load_as_coco_with_original_category_ids(tmp_path: Path) -> None:
    files = [write_image(tmp_path / name, width=width) for name, width in (("a.png", 30), ("b.png", 40), ("c.png", 50))]
    with ResultFolder(tmp_path / "out", WholeImage()) as folder:
        assert list(predict_files(WholeImage(), files, folder)) == [None] * 3
    results = COCO(str(tmp_path / "out/images.json")).loadRes(str(tmp_path / "out/predictions.json"))
    assert [results.imgs[i]["file_name"] for i in (1, 2, 3)] == [file.as_posix() for file in files]
    rows = results.loadAnns(results.getAnnIds(imgIds=[2]))
    assert [row["category_id"] for row in rows] == [90, 7]
    assert rows[0]["bbox"] == [0, 0, 40, 20] and rows[1]["bbox"] == [0, 0, 20, 10]
    assert results.annToMask(rows[0]).sum() == 20 * 40
    assert results.cats[90]["name"] == "dust"


def test_bad_images_are_reported_in_place_and_do_not_stop_the_rest(tmp_path: Path) -> None:
    good = [write_image(tmp_path / name) for name in ("a.png", "d.png")]
    (tmp_path / "b.png").touch()
    files = [good[0], tmp_path / "b.png", tmp_path / "c.png", good[1]]
    with ResultFolder(tmp_path / "out", WholeImage()) as folder:
        problems = list(predict_files(WholeImage(), files, folder))
    assert [problem is None for problem in problems] == [True, False, False, True]
    assert "b.png" in str(problems[1]) and "c.png" in str(problems[2])
    results = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [row["image_id"] for row in results] == [1, 1, 4, 4]


def test_pictures_of_files_with_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    files = [write_image(tmp_path / "x/a.png"), write_image(tmp_path / "y/a.png")]
    with ResultFolder(tmp_path / "out", WholeImage()) as folder:
        list(predict_files(WholeImage(), files, folder))
    assert [row["picture"] for row in folder.images] == ["pictures/a.jpg", "pictures/a-2.jpg"]
    assert all((tmp_path / "out" / row["picture"]).stat().st_size for row in folder.images)


def test_without_pictures_only_the_two_tables_are_written(tmp_path: Path) -> None:
    file = write_image(tmp_path / "a.png")
    with ResultFolder(tmp_path / "out", WholeImage(), pictures=False) as folder:
        list(predict_files(WholeImage(), [file], folder))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["images.json", "predictions.json"]


def test_no_detections_give_an_empty_results_list(tmp_path: Path) -> None:
    nothing = Detections((20, 30), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), extras={"edge": []})
    with ResultFolder(tmp_path / "out", WholeImage()) as folder:
        folder.add(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8), nothing)
    assert json.loads((tmp_path / "out/predictions.json").read_text()) == []


def test_no_readable_image_leaves_no_folder(tmp_path: Path) -> None:
    with ResultFolder(tmp_path / "out", WholeImage()) as folder:
        assert list(predict_files(WholeImage(), [tmp_path / "none.png"], folder))[0] is not None
    assert not (tmp_path / "out").exists()


def test_inputs_that_do_not_exist_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a.png: no such file or folder\n.*b: no such file or folder"):
        find_images([str(tmp_path / "a.png"), str(tmp_path / "b")])
    there = write_image(tmp_path / "c.png")
    assert find_images([str(tmp_path / "a.png"), str(there)]) == [tmp_path / "a.png", there]


def test_values_of_plugin_branches_stand_in_the_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class WithExtras(WholeImage):
        def __call__(self, images: Iterable[np.ndarray]) -> list[Detections]:
            found = super().__call__(images)
            for detections in found:
                detections.extras = {
                    "depth": torch.tensor([1.5, float("nan")]),
                    "edge": torch.ones(2, 32, 32),
                    "parts": [{"name": "lid", "mask": {"counts": b"0P2", "size": (8, 8)}}, None],
                    "large": torch.ones(2, 32, 33),
                    "score": torch.zeros(2),
                    "strange": [object(), object()],
                }
            return found

    files = [write_image(tmp_path / name) for name in ("a.png", "b.png")]
    with ResultFolder(tmp_path / "out", WholeImage(), pictures=False) as folder:
        assert list(predict_files(WithExtras(), files, folder)) == [None, None]
    first, second, *_ = json.loads((tmp_path / "out/predictions.json").read_text())
    assert (first["depth"], second["depth"]) == (1.5, None)
    assert first["edge"] == [[1.0] * 32] * 32
    assert first["parts"] == {"name": "lid", "mask": {"counts": "0P2", "size": [8, 8]}} and second["parts"] is None
    assert first["score"] == 0.75 and not {"large", "strange"} & first.keys()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3 and all("toolbox.Predictor" in text for text in said)  # once, not per image
    assert "'large' (1056 numbers a detection, the most written are 1024)" in said[0]


def test_a_run_that_breaks_off_leaves_earlier_results_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/predictions.json").write_text("[1]")
    file = write_image(tmp_path / "a.png")
    with pytest.raises(KeyboardInterrupt), ResultFolder(tmp_path / "out", WholeImage()) as folder:
        list(predict_files(WholeImage(), [file], folder))
        raise KeyboardInterrupt
    assert (tmp_path / "out/predictions.json").read_text() == "[1]"
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_file()] == ["predictions.json"]
