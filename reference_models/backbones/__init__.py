"""Networks that give feature stages, one file each, which offers `build(weights, grid) -> Backbone`."""
