"""From a raw score map to a map in the evaluation frame: normalise, resize, and read or write folders of maps."""

from wsolbench.maps.frame import frame_boxes, frame_size, to_frame
from wsolbench.maps.normalize import normalize
from wsolbench.maps.resize import resize_map
from wsolbench.maps.store import MapFolder

__all__ = ["MapFolder", "frame_boxes", "frame_size", "normalize", "resize_map", "to_frame"]
