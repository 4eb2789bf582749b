"""A batch has the size that was asked for, up to the number of images where that is large."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsolbench.maps.sources import ModelSource


@pytest.mark.parametrize(("asked", "used"), [("32", 32), ("65536", 256)])
def test_a_batch_is_not_filled_far_beyond_the_images(
    run, birds: Path, monkeypatch: pytest.MonkeyPatch, asked: str, used: int
) -> None:
    sizes = set()
    collate = ModelSource.collate

    def counted(self, loaded):
        batch = collate(self, loaded)
        sizes.add(len(batch["image"]))
        return batch

    monkeypatch.setattr(ModelSource, "collate", counted)
    on = ("--dataset", "csvfolder", "--data-root", birds)
    result = run(
        "eval", "--method", "center-box", *on, "--batch-size", asked, "--resamples", "100", "--out", "records"
    )
    assert result.code == 0, result.err
    assert sizes == {used}
