"""Evaluation: images, maps, per-image scores, metrics, record. Also shards, comparisons and detectors."""
