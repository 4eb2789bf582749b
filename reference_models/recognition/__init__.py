"""Fine-grained classification methods, one file each."""
