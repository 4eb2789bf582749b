"""DANet and the class tree that only it uses."""
