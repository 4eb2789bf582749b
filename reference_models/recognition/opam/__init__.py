"""OPAM and its choice of object and parts."""
