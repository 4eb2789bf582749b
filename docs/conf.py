"""Sphinx configuration: Markdown through MyST; the reference from docstrings and `--help`."""

project = "wsolbench"
author = "The wsolbench authors"
copyright = "2026, the wsolbench authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
myst_heading_anchors = 3
html_theme = "furo"
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing"]
default_role = "code"
"""Docstrings have names in single backticks."""
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
add_module_names = False
