"""What the builder sees before training: whether the data set has what the heads need."""

from __future__ import annotations

import numpy as np
import pytest

from toolbox.data.interfaces import Sample
from toolbox.errors import ConfigError
from toolbox.models.builder import check_ground_truth, check_wiring
from toolbox.schema import config_from_text

RUN = """\
model:
  backbone: {type: ResNet, depth: 18, norm: gn}
  neck: {type: FPN, out_channels: 16}
  rpn:
    head: {type: ConvRPNHead}
    anchors: {}
  box:
    extractor: {type: RoIAlign}
    head: {type: TwoFCBoxHead, channels: 16}
  instance:
    mask: {extractor: {type: RoIAlign, output_size: 14}, head: {type: FCNMaskHead, channels: 16}}
data:
  train: {type: Shapes}
train: {steps: 1, lr: 0.1}
"""


class Boxes:
    """An image without objects, then one with a box and no mask."""

    def __len__(self) -> int:
        return 2

    def load(self, index: int) -> Sample:
        zeros = np.zeros(index, dtype=np.int64)
        boxes = np.zeros((index, 4), dtype=np.float32)
        return Sample(np.zeros((4, 4, 3), np.uint8), boxes, zeros, zeros.astype(bool), boxes[:, 0])


def test_a_data_set_without_masks_is_refused_for_a_head_that_needs_them() -> None:
    with pytest.raises(ConfigError) as caught:
        check_ground_truth(config_from_text(RUN, "run.yaml"), Boxes())
    (line,) = str(caught.value).splitlines()
    assert line.startswith(
        "run.yaml:13:10: data.train: Boxes has no masks here, but model.instance.mask (FCNMaskHead) "
    )


def test_a_data_set_with_masks_fits_and_without_a_mask_head_nothing_is_asked() -> None:
    config = config_from_text(RUN, "run.yaml")
    check_ground_truth(config, config.data.train.build(length=1))
    check_ground_truth(config_from_text(RUN, "run.yaml", ["model.instance={}"]), Boxes())


def test_stages_that_do_not_fit_are_named_together() -> None:
    wrong = ["model.rpn.anchors.sizes=[8, 16]", "model.instance.mask.extractor.output_size=0"]
    with pytest.raises(ConfigError) as caught:
        check_wiring(config_from_text(RUN, "run.yaml", wrong), classes=["a"])
    assert [problem.key for problem in caught.value.problems] == wrong


def test_wiring_is_checked_without_reading_weights_but_not_without_seeing_that_they_are_there() -> None:
    config = config_from_text(RUN, "run.yaml", ["model.backbone={type: ResNet, weights: none.pth}"])
    with pytest.raises(ConfigError, match="none.pth: no such weight file"):
        check_wiring(config, classes=["a"])
    model = check_wiring(config, classes=["a"], weights=False)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_images_of_other_channels_need_a_backbone_that_reads_them() -> None:
    config = config_from_text(RUN, "run.yaml")
    model = check_wiring(config, classes=["a"], channels=5)
    assert model.backbone.conv1.weight.shape[1] == len(model.backbone.pixels.mean) == 5 and model.channels == 5


def test_a_branch_is_left_out_by_an_override() -> None:
    config = config_from_text(RUN, "run.yaml", ["model.instance.mask=null"])
    assert not check_wiring(config, classes=["a"]).instance
    check_ground_truth(config, Boxes())
