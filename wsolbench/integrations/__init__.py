"""Adapters of wsolbench's metrics for other frameworks. Each module needs the library of its name."""
