"""DANet and its class tree."""
