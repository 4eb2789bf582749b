"""SSANET and its layers."""
