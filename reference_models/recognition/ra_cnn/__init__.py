"""RA-CNN and its attention crop."""
