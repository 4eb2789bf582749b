"""Training: one loop for methods and one for detectors, and what both need (run folders, checkpoints, images,
processes).
"""
