"""LIO and its class groups."""
