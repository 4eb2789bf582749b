"""SSANET and the layers that only it has."""
