"""Types that all reference models share.

Outputs, settings, recipes, weights, the backbone adapter, and the interface between a model and its training.
"""
