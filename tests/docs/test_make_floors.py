"""docs/make_floors.py: a page that begins with floors, ends with ceilings, and is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import make_floors  # noqa: E402

PAGE = make_floors.page(ROOT / "results")


def test_the_committed_page_is_up_to_date():
    assert (ROOT / make_floors.PAGE).read_text(encoding="utf-8") == PAGE


def test_groups_are_in_order_and_ceilings_last():
    lines = PAGE.splitlines()
    for start in (number for number, line in enumerate(lines) if line.startswith("## ")):
        stop = next((n for n in range(start + 1, len(lines)) if lines[n].startswith("## ")), len(lines))
        titles = [line.split("**")[1] for line in lines[start:stop] if line.startswith("| **")]
        order = [title for title in make_floors.TITLES.values() if title in titles]
        assert titles == order
        assert titles[0].startswith("Floors")
        assert titles[-1].startswith("Ceilings")


def test_every_ceiling_states_its_supervision():
    rows = [line for line in PAGE.splitlines() if line.startswith("| [")]
    ceilings = [row for row in rows if row.startswith(("| [oracle]", "| [few-shot]"))]
    assert ceilings
    assert all("boxes" in row or "masks" in row for row in ceilings)
