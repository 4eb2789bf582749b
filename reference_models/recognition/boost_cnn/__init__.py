"""Boost-CNN and its layers."""
