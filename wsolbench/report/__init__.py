"""What people look at: tables of one record, pictures of one run, and the board of all records.

`tables` (terminal and Markdown), `overlays` and `plots` (PNG pictures), `leaderboard` (Markdown and CSV of a
results folder). Percent appear here and nowhere else; files with raw numbers (CSV) hold fractions.
"""
