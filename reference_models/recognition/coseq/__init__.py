"""CoSeq and its steps."""
