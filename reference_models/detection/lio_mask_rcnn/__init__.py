"""Mask R-CNN with LIO, and its networks."""
