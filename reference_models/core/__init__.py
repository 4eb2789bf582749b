"""The vocabulary of the reference models: outputs, settings, recipes, weights, the backbone adapter, the
model seen by training.
"""
