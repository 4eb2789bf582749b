"""LIO and the groups of images that only it trains on."""
