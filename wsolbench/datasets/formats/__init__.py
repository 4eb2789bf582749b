"""Readers of the file formats and folder layouts of data sets."""
