"""The leaderboard: tables of measured and published numbers, and of the claims of papers."""
