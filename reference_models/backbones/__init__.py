"""Networks that give feature stages, one file each; a file offers `build(weights, grid) -> Backbone`."""
