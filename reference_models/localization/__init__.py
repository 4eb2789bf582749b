"""Weakly supervised localization methods, one file each."""
