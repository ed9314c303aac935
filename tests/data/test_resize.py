"""Network sizes and the pixels of a resize."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from toolbox.data.resize import Resize, resize_image, resized_size, scale_pixels
from toolbox.errors import ConfigError
from toolbox.schema import config_from_text


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "short", "longest", "expected"),
    [
        (480, 640, 800, 1333, (800, 1067)),  # 640 · 800 / 480 = 1066.67
        (400, 1000, 800, 1333, (533, 1333)),  # the long edge binds: 400 · 1.333 = 533.2
        (640, 480, 800, 1333, (1067, 800)),
        (1, 1000, 800, 100, (1, 100)),  # 0.1 pixel is still a pixel
    ],
)
def test_sizes_by_hand(height: int, width: int, short: int, longest: int, expected: tuple[int, int]) -> None:
    assert resized_size(height, width, short, longest) == expected


def test_torchvision_method_gives_torchvisions_sizes_and_pixels() -> None:
    reference = GeneralizedRCNNTransform(90, 120, [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], size_divisible=1).eval()
    resize = Resize(short=90, max=120, method="torchvision")
    for height, width in [(61, 47), (50, 101), (100, 100), (37, 53), (200, 230)]:
        image = picture(height, width)
        expected = reference([torch.from_numpy(image).permute(2, 0, 1).float()])[0].tensors[0]
        got = resize_image(image, resize)
        assert got.shape[:2] == tuple(expected.shape[1:])
        # The pixels are rounded to uint8, and torchvision's scale differs from the ratio of sizes before rounding down.
        assert np.abs(got.transpose(2, 0, 1) - expected.numpy()).max() <= 0.5 + 1e-3


def test_pil_method_gives_pils_pixels() -> None:
    from PIL import Image

    image = picture(60, 80)
    expected = np.asarray(Image.fromarray(image).resize((40, 30), Image.Resampling.BILINEAR))
    assert np.array_equal(scale_pixels(image, 30, 40, "pil"), expected)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = picture(30, 40)
    assert resize_image(image, Resize(short=30, max=100)) is image
    assert resize_image(image, None) is image


def test_short_edge_is_drawn_from_a_list_or_a_range_and_is_largest_in_evaluation() -> None:
    rng = np.random.default_rng(0)
    choice = Resize(short=[480, 800, 640])
    assert {choice.draw_short(rng) for _ in range(100)} == {480, 640, 800}
    assert choice.size(100, 100) == (800, 800)
    span = Resize(short=[10, 13], draw="range")
    assert {span.draw_short(rng) for _ in range(200)} == {10, 11, 12, 13}


@pytest.mark.parametrize(
    "settings", [{"short": 0}, {"short": []}, {"max": 0}, {"max": 799}, {"method": "magic"}, {"draw": "any"}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(settings))} "):
        Resize(**settings)


RUN = """
model:
  backbone: {{type: ResNet, depth: 18, norm: gn}}
  neck: {{type: FPN, out_channels: 16}}
  rpn: {{head: {{type: ConvRPNHead}}, anchors: {{}}}}
  box: {{extractor: {{type: RoIAlign}}, head: {{type: TwoFCBoxHead, channels: 16}}}}
train: {{steps: 1, lr: 0.1}}
data: {data}
"""


def test_a_run_may_keep_the_images_own_size() -> None:
    config = config_from_text(RUN.format(data="{resize: null}"), "run.yaml")
    assert config.data.resize is None
    assert config_from_text(config.to_yaml(), "again").data.resize is None
    assert config_from_text(RUN.format(data="{}"), "run.yaml").data.resize == Resize()
    with pytest.raises(ConfigError, match="max bounds the long edge"):
        config_from_text(RUN.format(data="{resize: {short: 9, max: 8}}"), "run.yaml")
    with pytest.raises(ConfigError, match="did you mean 'short'"):
        config_from_text(RUN.format(data="{resize: {shrt: 9}}"), "run.yaml")


def test_how_much_of_an_object_a_crop_leaves_is_a_part() -> None:
    assert config_from_text(RUN.format(data="{min_visible: 0.3}"), "run.yaml").data.min_visible == 0.3
    with pytest.raises(ConfigError, match="min_visible is a part of a box, 0 to 1, got 2") as raised:
        config_from_text(RUN.format(data="{min_visible: 2, workers: -1}"), "run.yaml")
    assert "workers is 0" in str(raised.value)
