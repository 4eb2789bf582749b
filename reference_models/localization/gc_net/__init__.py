"""GC-Net and the shapes that only it draws."""
