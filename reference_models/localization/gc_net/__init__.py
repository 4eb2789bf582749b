"""GC-Net and its shapes."""
