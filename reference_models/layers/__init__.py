"""What several methods share: heads and their maps."""
