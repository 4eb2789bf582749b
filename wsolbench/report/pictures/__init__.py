"""Pictures: overlays of maps and boxes, curves, sheets of best and worst images, feature similarity."""
