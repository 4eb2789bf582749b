"""The leaderboard: tables of measured and published numbers, and what papers claim beside what is
measured.
"""
