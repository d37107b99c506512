"""From a map over an image to objects (VL-SAM): regions and points, a segmenter's masks, boxes."""

from regaze.toolkit.analysis.objects.find import FoundObject, find_objects
from regaze.toolkit.analysis.objects.regions import main_region, pixel_map, prompt_points
from regaze.toolkit.analysis.objects.segmenter import SamSegmenter, Segment, Segmenter, load_segmenter

__all__ = [
    "FoundObject",
    "SamSegmenter",
    "Segment",
    "Segmenter",
    "find_objects",
    "load_segmenter",
    "main_region",
    "pixel_map",
    "prompt_points",
]
