"""Instance masks: polygons, bitmaps and RLE, targets inside regions, and predicted probabilities to RLE."""

from toolbox.masks.encode import encode_roi_masks
from toolbox.masks.ground_truth import BitmapMask, Mask, PolygonMask, mask_from_coco
from toolbox.masks.instance import InstanceMasks
from toolbox.masks.stored import masks_from_arrays, masks_to_arrays

__all__ = [
    "BitmapMask",
    "InstanceMasks",
    "Mask",
    "PolygonMask",
    "encode_roi_masks",
    "mask_from_coco",
    "masks_from_arrays",
    "masks_to_arrays",
]
