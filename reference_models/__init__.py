"""Reference implementations of localization and fine-grained classification methods.

One file per method, to read next to its paper.
"""
