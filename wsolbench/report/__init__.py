"""Reports: tables of one record, pictures of one run, and the leaderboard of all records.

`board` makes tables (terminal, Markdown, CSV), `page` the report page, and `pictures` PNG pictures. Percent
are used only here. Files with raw numbers (CSV) hold fractions.
"""
