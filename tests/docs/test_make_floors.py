"""docs/make_floors.py: a page that begins with floors, ends with ceilings, and is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        import make_floors

        yield make_floors


@pytest.fixture(scope="module")
def page(script) -> str:
    return script.page(ROOT / "results")


def test_the_committed_page_is_up_to_date(script, page):
    assert (ROOT / script.PAGE).read_text(encoding="utf-8") == page


def test_each_question_has_a_paired_difference(page):
    table = page[page.index("| question |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) == len(set(table)) == 4
    for row in table:
        _, _, a, b, difference, p, corrected, _ = (cell.strip() for cell in row.split("|"))
        value, low, high = (float(part.strip("[],")) for part in difference.split())
        assert a != b
        assert low <= value <= high
        assert float(p.strip("< ")) <= float(corrected.strip("< "))


def test_groups_are_in_order_and_ceilings_last(script, page):
    lines = page.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("## ")]
    for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
        titles = [line.split("**")[1] for line in lines[start:stop] if line.startswith("| **")]
        assert titles == [title for title in script.TITLES.values() if title in titles]
        assert titles[0].startswith("Floors")
        assert titles[-1].startswith("Ceilings")


def test_every_ceiling_states_its_supervision(page):
    ceilings = [row for row in page.splitlines() if row.startswith(("| [oracle]", "| [few-shot]"))]
    assert ceilings
    assert all("boxes" in row or "masks" in row for row in ceilings)
