"""Layers and functions that several methods share."""
