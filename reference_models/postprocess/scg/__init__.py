"""SCG and its correlations."""
