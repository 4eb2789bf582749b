"""F-CAM, its decoder, and the pixels that it learns from."""
