"""From a raw score map to a map in the evaluation frame: normalisation, resizing, folders of maps."""

from wsolbench.maps.frame import cut_center, frame_boxes, frame_size, image_boxes, to_frame, view
from wsolbench.maps.normalize import normalize
from wsolbench.maps.resize import resize_map
from wsolbench.maps.store import MapFolder

__all__ = [
    "MapFolder",
    "cut_center",
    "frame_boxes",
    "frame_size",
    "image_boxes",
    "normalize",
    "resize_map",
    "to_frame",
    "view",
]
