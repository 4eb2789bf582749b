"""MA-CNN and its channel groups."""
