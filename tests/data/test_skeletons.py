"""Skeletons of COCO categories."""

from __future__ import annotations

import pytest

from toolbox.data.skeletons import COCO_SIGMAS, left_right_pairs, skeleton_of
from toolbox.errors import DataError


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
