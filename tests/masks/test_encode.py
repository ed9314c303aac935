from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from toolbox.masks import encode, encode_roi_masks


def torchvision_pasted(mask: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    return paste_masks_in_image(mask[None, None], box[None], (height, width))[0, 0]


def torchvision_counts(mask: Tensor, box: Tensor, height: int, width: int, threshold: float) -> bytes:
    return counts_of(torchvision_pasted(mask, box, height, width) > threshold)


def detectron2_pasted(mask: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """Every pixel sampled at its centre, but, as Detectron2 does on the CPU, no further than a pixel beyond the box."""
    x1, y1, x2, y2 = box
    across = (torch.arange(width) + 0.5 - x1) / (x2 - x1) * 2 - 1
    down = (torch.arange(height) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack([across.expand(height, width), down[:, None].expand(height, width)], dim=2)
    pasted = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    near = (columns >= x1.floor() - 1) & (columns < x2.ceil() + 1) & (rows >= y1.floor() - 1) & (rows < y2.ceil() + 1)
    return torch.where(near, pasted, -1.0)


def detectron2_counts(mask: Tensor, box: Tensor, height: int, width: int, threshold: float) -> bytes:
    return counts_of(detectron2_pasted(mask, box, height, width) >= threshold)


def counts_of(bitmap: Tensor) -> bytes:
    return coco_mask.encode(np.asfortranarray(bitmap.numpy().astype(np.uint8)))["counts"]


PASTED = {"torchvision": torchvision_pasted, "detectron2": detectron2_pasted}
REFERENCES = {"torchvision": torchvision_counts, "detectron2": detectron2_counts}


def blobs(count: int, size: int) -> Tensor:
    """Smooth probabilities, as a mask head gives them."""
    noise = F.interpolate(torch.randn(count, 1, 6, 6), size=(size, size), mode="bicubic")[:, 0]
    return torch.sigmoid(4 * noise)


def near_ties(count: int, size: int) -> Tensor:
    """Within a few roundings of 0.5, so that the last bit decides most pixels."""
    return 0.5 + (torch.rand(count, size, size) - 0.5) * 1e-6


KINDS = {
    "smooth": blobs,
    "noise": lambda count, size: torch.rand(count, size, size),
    "near ties": near_ties,
    "quarters": lambda count, size: (torch.rand(count, size, size) * 4).round() / 4,
}


def random_boxes(count: int, height: int, width: int) -> Tensor:
    """Centres in the image, sides from 0.05 to 400 pixels, so many reach over the edge."""
    centre = torch.rand(count, 2) * torch.tensor([width, height])
    half = torch.exp(torch.rand(count, 2) * 9 - 3) / 2
    return torch.cat([centre - half, centre + half], dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("convention", REFERENCES)
def test_fuzz_equals_paste_threshold_and_encode_to_the_byte(geometry: str, convention: str, kind: str) -> None:
    """But for single pixels on the threshold: releases of torch round the last bit of a weight in other ways."""
    torch.manual_seed(0)
    other = 0
    for size in (14, 28, 56):
        for threshold in (0.5, 0.3, 1.0):
            height, width = int(torch.randint(1, 300, ())), int(torch.randint(1, 400, ()))
            masks, boxes = KINDS[kind](20, size), random_boxes(20, height, width)
            boxes[::4] = boxes[::4].round()
            got = encode_roi_masks(masks, boxes, height, width, threshold=threshold, convention=convention)
            for rle, mask, box in zip(got, masks, boxes, strict=True):
                assert rle["size"] == [height, width]
                if rle["counts"] == REFERENCES[convention](mask, box, height, width, threshold):
                    continue
                other += 1
                ours = torch.from_numpy(coco_mask.decode(rle)).bool()
                assert rle["counts"] == counts_of(ours)
                pasted = PASTED[convention](mask, box, height, width)
                apart = ours != (pasted > threshold if convention == "torchvision" else pasted >= threshold)
                assert apart.sum() <= 10 and (pasted[apart] - threshold).abs().max() <= 2**-22, (box, size)
    assert other <= 1  # of 180 masks


@pytest.mark.skipif(sys.platform != "linux", reason="asks for torch's plain x86 kernels")
def test_fuzz_holds_on_processors_without_fused_multiply_add() -> None:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-x", "-k", "test_fuzz_equals", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_small_mask_by_hand(geometry: str) -> None:
    """A 1 × 1 mask with its border is 3 × 3 with 1 in the middle; its box grows from 2 pixels to 6, and to 7 as both
    ends count. Pixel i reads at 3/7 (i + 1/2) - 1/2, so the middle weighs 0, 1/7, 4/7, 1 … on each axis."""
    got = coco_mask.decode(encode_roi_masks(torch.ones(1, 1, 1), torch.tensor([[4.0, 4, 6, 6]]), 10, 10))[:, :, 0]
    axis = np.array([0, 1, 4, 7, 4, 1, 0]) / 7
    expected = np.zeros((10, 10), np.uint8)
    expected[2:9, 2:9] = np.outer(axis, axis) > 0.5
    np.testing.assert_array_equal(got, expected)
    assert got.sum() == 5


@pytest.mark.parametrize("convention", REFERENCES)
def test_whole_image_set_begins_with_an_empty_run(geometry: str, convention: str) -> None:
    [rle] = encode_roi_masks(
        torch.ones(1, 28, 28), torch.tensor([[-900.0, -900, 900, 900]]), 5, 7, convention=convention
    )
    assert rle["counts"] == coco_mask.encode(np.asfortranarray(np.ones((5, 7), np.uint8)))["counts"]


NOTHING = {
    "zero width, between pixel centres": [10.3, 5, 10.3, 40],
    "left of the image": [-80, 5, -40, 20],
    "above the image": [5, -80, 20, -40],
    "right of the image": [200, 5, 220, 20],
    "inverted": [40, 5, 10, 20],
    "not a number": [float("nan")] * 4,
    "one corner not a number": [5, 5, float("nan"), 20],
    "infinite": [-float("inf"), 5, float("inf"), 20],
}


@pytest.mark.parametrize("convention", REFERENCES)
@pytest.mark.parametrize("box", NOTHING.values(), ids=NOTHING)
def test_box_without_pixels_gives_an_empty_mask(geometry: str, convention: str, box: list[float]) -> None:
    if convention == "torchvision" and box[0] == box[2]:
        pytest.skip("torchvision's pasting gives every box at least one pixel")
    [rle] = encode_roi_masks(torch.ones(1, 28, 28), torch.tensor([box]), 50, 60, convention=convention)
    assert coco_mask.area(rle) == 0 and rle["counts"] == coco_mask.encode(np.zeros((50, 60), np.uint8, "F"))["counts"]


def test_zero_area_box_equals_torchvision(geometry: str) -> None:
    mask, box = torch.ones(28, 28), torch.tensor([10.0, 5, 10, 5])
    [rle] = encode_roi_masks(mask[None], box[None], 50, 60)
    assert rle["counts"] == torchvision_counts(mask, box, 50, 60, 0.5)
    assert coco_mask.area(rle) == 1


@pytest.mark.parametrize("convention", REFERENCES)
def test_probabilities_that_are_not_finite_equal_the_reference(geometry: str, convention: str) -> None:
    torch.manual_seed(1)
    masks, boxes = blobs(8, 14), random_boxes(8, 60, 80)
    masks[:, 4, 5], masks[:, 9, 2] = float("nan"), float("inf")
    for rle, mask, box in zip(encode_roi_masks(masks, boxes, 60, 80, convention=convention), masks, boxes, strict=True):
        assert rle["counts"] == REFERENCES[convention](mask, box, 60, 80, 0.5)


def test_huge_box_needs_no_memory_for_its_size() -> None:
    if encode.kernels() is None:
        pytest.skip("toolbox.masks._masks is not built (TOOLBOX_NATIVE=0)")
    [rle] = encode_roi_masks(torch.ones(1, 28, 28), torch.tensor([[-1e12, -1e12, 1e12, 1e12]]), 5, 7)
    assert coco_mask.area(rle) == 35


def test_no_detections_give_an_empty_list(geometry: str) -> None:
    assert encode_roi_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), 5, 7) == []


def test_arrays_half_precision_and_strided_input_are_taken(geometry: str) -> None:
    torch.manual_seed(2)
    masks, boxes = blobs(3, 28).half(), random_boxes(3, 60, 80)
    expected = [torchvision_counts(m.float(), b, 60, 80, 0.5) for m, b in zip(masks, boxes, strict=True)]
    turned = masks.transpose(1, 2).contiguous().transpose(1, 2)
    for given in (masks, masks.numpy(), turned):
        assert [rle["counts"] for rle in encode_roi_masks(given, boxes, 60, 80)] == expected


@pytest.mark.parametrize(
    ("masks", "boxes", "options", "message"),
    [
        (torch.zeros(2, 28, 28), torch.zeros(3, 4), {}, r"\(2, 28, 28\) and \(3, 4\)"),
        (torch.zeros(2, 28, 14), torch.zeros(2, 4), {}, r"\(D, M, M\)"),
        (torch.zeros(2, 28, 28), torch.zeros(2, 4), {"convention": "mmdet"}, "not 'mmdet'"),
        (torch.zeros(2, 28, 28), torch.zeros(2, 4), {"threshold": 50}, r"0 … 1, got 50"),
    ],
)
def test_wrong_arguments_are_named(masks: Tensor, boxes: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_roi_masks(masks, boxes, 10, 10, **options)
