"""What the builder sees before training: whether the data set has what the heads need."""

from __future__ import annotations

import numpy as np
import pytest

from toolbox.data.interfaces import Sample
from toolbox.errors import ConfigError
from toolbox.models.builder import check_ground_truth
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
