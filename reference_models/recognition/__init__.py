"""Fine-grained recognition methods, one file each."""
