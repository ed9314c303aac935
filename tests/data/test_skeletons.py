"""Skeletons of COCO categories."""

from __future__ import annotations

import logging

import pytest

from toolbox.data.skeletons import COCO_SIGMAS, SkeletonSettings, left_right_pairs, skeleton_of, unpaired
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
    settings = SkeletonSettings(sigmas=[0.3, 0.4])
    assert skeleton_of([{**category, "sigmas": [0.1, 0.2]}], "file", settings).sigmas == (0.3, 0.4)


def test_pairs_of_the_file_go_before_names() -> None:
    category = {"id": 1, "name": "fly", "keypoints": ["a", "b", "c"], "flip_pairs": [[1, 3]]}
    assert skeleton_of([category], "file").pairs == ((0, 2),)
    assert skeleton_of([{**category, "flip_pairs": [["b", "c"]]}], "file").pairs == ((1, 2),)


def test_skeletons_that_do_not_fit_are_refused() -> None:
    a = {"id": 1, "name": "fly", "keypoints": ["head", "tail"]}
    with pytest.raises(DataError, match="'fly' and 'cat' have different keypoints"):
        skeleton_of([a, {"id": 2, "name": "cat", "keypoints": ["head"]}], "file")
    with pytest.raises(DataError, match="category 'fly': joints 1 and 3, counted from 1, make a pair or limb, but"):
        skeleton_of([{**a, "skeleton": [[1, 3]]}], "file")
    with pytest.raises(DataError, match="file: category 'fly': there is 1 sigma for 2 joints"):
        skeleton_of([{**a, "sigmas": [0.1]}], "file")
    with pytest.raises(DataError, match="joint 'head' stands in the pairs twice"):
        skeleton_of([{**a, "keypoints": ["head", "a", "b"], "pairs": [[1, 2], [1, 3]]}], "file")
    with pytest.raises(DataError, match="no joint 'tial'; did you mean 'tail'"):
        skeleton_of([{**a, "pairs": [["head", "tial"]]}], "file")


FLY = {"id": 1, "name": "fly", "keypoints": ["head", "l", "r"], "skeleton": [[1, 2]], "sigmas": [0.1, 0.2, 0.3]}


def test_the_config_goes_before_the_file_field_by_field() -> None:
    settings = SkeletonSettings(names=["nose", "east", "west"], pairs=[("east", "west")], limbs=[("nose", "west")])
    skeleton = skeleton_of([FLY], "file", settings)
    assert skeleton is not None
    assert skeleton.names == ("nose", "east", "west")
    assert skeleton.pairs == ((1, 2),) and skeleton.limbs == ((0, 2),)
    assert skeleton.sigmas == (0.1, 0.2, 0.3)
    untouched = skeleton_of([FLY], "file", SkeletonSettings(pairs=[]))
    assert untouched is not None and untouched.pairs == () and untouched.limbs == ((0, 1),)


def test_a_file_without_joint_names_gets_them_from_the_config() -> None:
    skeleton = skeleton_of([{"id": 1, "name": "fly"}], "file", SkeletonSettings(names=["eye_l", "eye_r"]))
    assert skeleton is not None and skeleton.pairs == ((0, 1),) and skeleton.sigmas == (0.05, 0.05)
    with pytest.raises(ValueError, match="skeleton has no names, and no category of file has 'keypoints'"):
        skeleton_of([{"id": 1, "name": "fly"}], "file", SkeletonSettings(sigmas=[0.1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SkeletonSettings(names=["head", "tail"]), "skeleton names 2 joints, but the category 'fly' of file has 3"),
        (SkeletonSettings(sigmas=[0.1]), "skeleton: there is 1 sigma for 3 joints (joints: head, l, r)"),
        (SkeletonSettings(pairs=[("head", "tial")]), "skeleton: pairs: there is no joint 'tial' (joints: head, l, r)"),
        (SkeletonSettings(limbs=[("haed", "l")]), "skeleton: limbs: there is no joint 'haed'; did you mean 'head'"),
        (SkeletonSettings(pairs=[("head", "l"), ("l", "r")]), "skeleton: joint 'l' stands in the pairs twice"),
    ],
)
def test_settings_that_do_not_fit_begin_with_their_key(settings: SkeletonSettings, message: str) -> None:
    with pytest.raises(ValueError) as stop:
        skeleton_of([FLY], "file", settings)
    assert str(stop.value).startswith(message)


def test_joints_are_named_or_numbered_from_one_as_in_coco_s_files() -> None:
    skeleton = skeleton_of([FLY], "file", SkeletonSettings(pairs=[(2, "r")], limbs=[(1, 3), ("l", 1)]))
    assert skeleton is not None and skeleton.pairs == ((1, 2),) and skeleton.limbs == ((0, 2), (1, 0))


def test_everything_that_is_wrong_with_a_skeleton_is_said_at_once_and_the_joints_once() -> None:
    category = {"id": 1, "name": "fly", "keypoints": [f"joint_{number}" for number in range(32)]}
    settings = SkeletonSettings(
        pairs=[("joint1", "joint_2"), ("joint_3", "wing")], limbs=[(0, 1), (33, "joint1")], sigmas=[0.1, 0.2]
    )
    with pytest.raises(ValueError) as stop:
        skeleton_of([category], "file", settings)
    numbers = "numbers go from 1 to 32, as in COCO's 'skeleton'"
    assert str(stop.value) == (
        "skeleton: pairs: there is no joint 'joint1'; did you mean 'joint_1'?; pairs: there is no joint 'wing'; "
        f"limbs: there is no joint 0; {numbers}; limbs: there is no joint 33; {numbers}; "
        "limbs: there is no joint 'joint1'; did you mean 'joint_1'?; there are 2 sigmas for 32 joints "
        "(joints: joint_0, joint_1, joint_2, joint_3, joint_4, joint_5, … joint_31, 32 in all)"
    )


def test_settings_that_cannot_fit_any_file_are_refused_at_once() -> None:
    for wrong in ({"names": []}, {"names": ["a", "a"]}, {"sigmas": [0.1, 0.0]}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))} "):
            SkeletonSettings(**wrong)


def test_a_side_without_its_partner_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    category = {
        "id": 1,
        "name": "fly",
        "keypoints": ["left_eye", "right_eye", "left_wing", "wing_rigth", "cleft", "EarR"],
    }
    skeleton = skeleton_of([category], "flies.json")
    assert skeleton is not None and unpaired(skeleton) == ["left_wing", "EarR"]
    assert "flies.json: 'left_wing', 'EarR': there is no partner on the other side" in caplog.text
    caplog.clear()
    skeleton_of([category], "flies.json", SkeletonSettings(pairs=[("left_eye", "right_eye")]))  # said to be all
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
