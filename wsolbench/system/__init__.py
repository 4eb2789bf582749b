"""The machine: files, terminal, processes, optional libraries."""
