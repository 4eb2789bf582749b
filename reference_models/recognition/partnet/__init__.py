"""PartNet and its layers."""
