"""Sphinx configuration: Markdown through MyST."""

project = "wsolbench"
author = "The wsolbench authors"
copyright = "2026, the wsolbench authors"
extensions = ["myst_parser"]
myst_heading_anchors = 3
html_theme = "furo"
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing"]
