"""Image files and skeletons of COCO categories."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from toolbox.data.images import read_image
from toolbox.data.skeletons import COCO_SIGMAS, left_right_pairs, skeleton_of
from toolbox.errors import DataError


def rgb(height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_colour_is_rgb(tmp_path: Path) -> None:
    Image.fromarray(rgb()).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), rgb())


def test_grey_becomes_three_channels_and_alpha_is_dropped(tmp_path: Path) -> None:
    Image.fromarray(rgb()[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(rgb()[..., :1], 3, axis=2))
    with_alpha = np.concatenate([rgb(), np.zeros((5, 7, 1), np.uint8)], axis=2)
    Image.fromarray(with_alpha).save(tmp_path / "alpha.png")
    assert np.array_equal(read_image(tmp_path / "alpha.png"), rgb())


def test_sixteen_bits_are_scaled_by_their_full_range(tmp_path: Path) -> None:
    values = np.array([[0, 128, 257, 65535 - 129, 65535]], dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), values)
    # x · 255 / 65535, rounded to the nearest
    assert read_image(tmp_path / "deep.png")[..., 0].tolist() == [[0, 0, 1, 254, 255]]


def test_exif_rotation_is_applied_only_where_the_declared_size_asks_for_it(tmp_path: Path) -> None:
    flat = np.zeros((8, 16, 3), dtype=np.uint8)
    flat[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° for display
    Image.fromarray(flat).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    assert read_image(tmp_path / "turned.jpg").shape == (8, 16, 3)
    assert read_image(tmp_path / "turned.jpg", (8, 16))[:, :8].min() > 200
    assert read_image(tmp_path / "turned.jpg", (16, 8))[:8].min() > 200


def test_a_wrong_size_a_missing_and_a_broken_file_are_named(tmp_path: Path) -> None:
    Image.fromarray(rgb()).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: image is 7 x 5 .* declare 9 x 5"):
        read_image(tmp_path / "a.png", (5, 9))
    with pytest.raises(DataError, match=r"none\.png: image cannot be read"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"text\.jpg: not an image"):
        read_image(tmp_path / "text.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"empty\.jpg: not an image.*0 bytes"):
        read_image(tmp_path / "empty.jpg")


def test_a_jpeg_without_its_end_is_refused_by_a_lenient_decoder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preview = b"\xff\xe1" + (2 + 20).to_bytes(2, "big") + bytes(8) + b"\xff\xd8\xff\xd9" + bytes(8)
    path = tmp_path / "a.jpg"
    Image.fromarray(rgb(40, 60)).save(path, quality=95)
    whole = path.read_bytes()
    whole = whole[:2] + preview + whole[2:]
    lenient = cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_UNCHANGED)
    monkeypatch.setattr(cv2, "imdecode", lambda content, flags: lenient)  # as OpenCV 4.10 does
    for content in (whole, whole + bytes(100)):
        path.write_bytes(content)
        assert read_image(path).shape == (40, 60, 3)
    for left in (len(whole) // 2, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:left])
        with pytest.raises(DataError, match="a.jpg: .*cut short"):
            read_image(path)


def test_left_and_right_are_found_in_any_spelling() -> None:
    names = ["nose", "left_eye", "right_eye", "EarLeft", "EarRight", "leg_l_1", "leg_r_1", "L_Paw", "R_Paw", "cleft"]
    assert left_right_pairs(names) == ((1, 2), (3, 4), (5, 6), (7, 8))


def test_the_joints_of_coco_have_coco_sigmas_and_limbs_from_zero() -> None:
    skeleton = skeleton_of([{"id": 1, "name": "person", "keypoints": list(COCO_SIGMAS), "skeleton": [[1, 2]]}], "file")
    assert skeleton is not None
    assert skeleton.limbs == ((0, 1),)
    official = {"nose": 0.026, "left_eye": 0.025, "right_ear": 0.035, "left_hip": 0.107, "right_ankle": 0.089}
    for name, sigma in official.items():
        assert skeleton.sigmas[skeleton.names.index(name)] == sigma


def test_coco_sigmas_are_pycocotools(request: pytest.FixtureRequest) -> None:
    from pycocotools.cocoeval import Params

    order = ["nose"] + [
        f"{side}_{joint}"
        for joint in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
        for side in ("left", "right")
    ]
    assert [COCO_SIGMAS[name] for name in order] == pytest.approx(Params("keypoints").kpt_oks_sigmas.tolist())


def test_other_joints_get_what_is_given_or_the_files_or_a_default(caplog: pytest.LogCaptureFixture) -> None:
    category = {"id": 1, "name": "fly", "keypoints": ["head", "tail"]}
    with caplog.at_level("INFO", logger="toolbox"):
        assert skeleton_of([category], "file").sigmas == (0.05, 0.05)
    assert "0.05 is used for each" in caplog.text
    assert skeleton_of([{**category, "sigmas": [0.1, 0.2]}], "file").sigmas == (0.1, 0.2)
    assert skeleton_of([{**category, "sigmas": [0.1, 0.2]}], "file", [0.3, 0.4]).sigmas == (0.3, 0.4)


def test_pairs_of_the_file_go_before_names() -> None:
    category = {"id": 1, "name": "fly", "keypoints": ["a", "b", "c"], "flip_pairs": [[1, 3]]}
    assert skeleton_of([category], "file").pairs == ((0, 2),)
    assert skeleton_of([{**category, "flip_pairs": [["b", "c"]]}], "file").pairs == ((1, 2),)


def test_skeletons_that_do_not_fit_are_refused() -> None:
    a = {"id": 1, "name": "fly", "keypoints": ["head", "tail"]}
    with pytest.raises(DataError, match="'fly' and 'cat' have different keypoints"):
        skeleton_of([a, {"id": 2, "name": "cat", "keypoints": ["head"]}], "file")
    with pytest.raises(DataError, match="file: category 'fly': skeleton joins joints 0 and 2"):
        skeleton_of([{**a, "skeleton": [[1, 3]]}], "file")
    with pytest.raises(DataError, match="2 joints but 1 sigmas"):
        skeleton_of([a], "file", [0.1])
    with pytest.raises(DataError, match="no joint 'tial'; did you mean 'tail'"):
        skeleton_of([{**a, "pairs": [["head", "tial"]]}], "file")
