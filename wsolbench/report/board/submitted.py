"""How tables show results from outside: below the measured rows, with the badge of each and its sources."""

from __future__ import annotations

from collections.abc import Sequence

from wsolbench.records.submission import REPORTED, RESCORED, TRAINED
from wsolbench.report.board.repetitions import Run

BELOW_MEASURED = 3
"""Place of submitted rows in a table (`wsolbench.report.board.tables.place_of` has the others)."""

_MEANING = (
    f'Source "{TRAINED}": a run of this project. "{RESCORED}": submitted, and its maps were scored again. '
    f'"{REPORTED}": submitted; the numbers follow from the per-image scores that were sent, and from the '
    "thresholds that are stated as transferred."
)


def notes_on(submitted: Sequence[Run]) -> tuple[str, ...]:
    """Return the notes below a table with these submissions: badges, authors and data. Empty for none."""
    lines = []
    for run in submitted:
        if run.submission is None:
            continue
        metadata = run.submission.metadata
        names = ", ".join(metadata.authors[:3]) + (" and others" if len(metadata.authors) > 3 else "")
        lines.append(
            f"{run.record.method['name']}, submitted by {names}. Training: {metadata.training_data}. Extra "
            f"data: {metadata.extra_data}."
        )
    return (_MEANING, *dict.fromkeys(lines)) if lines else ()
