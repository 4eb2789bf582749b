"""Reference implementations of localization and recognition methods, one file each, to read beside their
papers.
"""
