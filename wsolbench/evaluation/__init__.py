"""Joining the steps: images to maps to per-image scores to metrics and a record; shards, comparison of runs,
detectors.
"""
