"""Readers of the file formats and folder layouts that data sets come in."""
