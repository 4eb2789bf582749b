"""TASN and its layers."""
