"""Training: one loop for methods, one for detectors, and what both need.

These are run folders, checkpoints, images and processes.
"""
