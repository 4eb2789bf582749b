"""Write the excerpt of the leaderboard in README.md: `python docs/make_excerpt.py`.

It has the first table of CUB: one floor, the best methods and one ceiling, with six of the columns. With
`--check`, nothing is written, and the exit code is 1 if the excerpt is out of date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TITLE = "## CUB-200-2011"
COLUMNS = ("method", "GT-known", "GT-known, transferred", "Top-1 Loc", "runs", "paper")
BEST = 8
"""Rows between the floor and the ceiling."""
MARKS = "<!-- excerpt of the leaderboard -->", "<!-- end of the excerpt -->"
_FILES = "https://github.com/wsolbench/wsolbench/blob/main"


def excerpt(board: str) -> str:
    """Return banner and cut table of the first page of the leaderboard."""
    lines = board.splitlines()
    start = lines.index(TITLE)
    table = []
    for line in lines[start:]:
        if line.startswith("|"):
            table.append(re.split(r"(?<!\\)\|", line.strip().strip("|")))
        elif table:
            break
    heads = [cell.strip() for cell in table[0]]
    places = [heads.index(name) for name in COLUMNS]
    rank = heads.index("GT-known")
    rows = [[cell.strip() for cell in row] for row in table[2:]]
    floors, middle, ceilings = split_rows(rows, rank)
    shown = [heads, ["---"] * len(heads), *floors, *middle, *ceilings]
    text = "\n".join(f"| {' | '.join(row[place] for place in places)} |" for row in shown)
    text = text.replace("](../../", f"]({_FILES}/").replace("](../", f"]({_FILES}/results/")
    return f"{lines[start + 2]}\n\n{text}"


def split_rows(rows: list[list[str]], rank: int) -> tuple[list[list[str]], ...]:
    """Return the centred box, the best rows, and the last ceiling."""
    best = next(place for place, row in enumerate(rows) if row[rank].startswith("**"))
    floor = [row for row in rows[:best] if row[0].startswith("[center-box]")]
    return floor, rows[best : best + BEST], rows[-1:]


def with_excerpt(readme: str, board: str) -> str:
    """Return README.md with the excerpt of this leaderboard between the marks."""
    before, _, rest = readme.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    return f"{before}{MARKS[0]}\n\n{excerpt(board)}\n\n{MARKS[1]}{after}"


def main() -> int:
    """Write README.md, or compare it with what would be written."""
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = with_excerpt(old, (ROOT / "results/leaderboard/README.md").read_text(encoding="utf-8"))
    if "--check" in sys.argv[1:]:
        return int(new != old)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
