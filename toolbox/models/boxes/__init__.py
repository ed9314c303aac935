"""Pure functions and small classes over boxes."""

from toolbox.models.boxes.coder import BoxCoder
from toolbox.models.boxes.matcher import Matcher, Matches
from toolbox.models.boxes.nms import batched_nms
from toolbox.models.boxes.overlap import box_area, box_overlap, clip_boxes
from toolbox.models.boxes.regions import to_padded, to_regions
from toolbox.models.boxes.sampler import RandomSampler

__all__ = [
    "BoxCoder",
    "Matcher",
    "Matches",
    "RandomSampler",
    "batched_nms",
    "box_area",
    "box_overlap",
    "clip_boxes",
    "to_padded",
    "to_regions",
]
