"""`--choose-percentile`: the record states what was chosen on `val`, and from what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from wsolbench.records import read_records


def test_the_command_writes_the_chosen_percentile_next_to_the_fixed_one(
    run, birds: Path, tmp_path: Path
) -> None:
    for path in sorted((birds / "images").rglob("*.png")):
        pixels = np.asarray(Image.open(path), dtype=np.float32).max(axis=2)[::2, ::2]
        stored = tmp_path / "maps" / f"{path.relative_to(birds / 'images')}.npy"
        stored.parent.mkdir(parents=True, exist_ok=True)
        np.save(stored, pixels)
    options = ("--maps", "maps", "--dataset", "csvfolder", "--data-root", birds, "--resamples", "100",
               "--protocol-set", "normalize=ivr", "--protocol-set", "taus=0.02")  # fmt: skip
    for more in (("--protocol-set", "percentile=50"), ("--choose-percentile", "0,50,90")):
        result = run("score", *options, *more)
        assert result.code == 0, result.err
    records = {record.protocol.name: record for _, record in read_records(Path("results/measured"))}
    (chosen,) = (record for name, record in records.items() if "@val" in name)
    found = chosen.provenance["percentile"]
    assert [each["percentile"] for each in found["candidates"]] == [0.0, 50.0, 90.0]
    assert chosen.protocol.percentile == found["chosen"]
    assert chosen.protocol.name == f"wsoleval+normalize=ivr,percentile={found['chosen']:g}@val,taus=0.02"
    assert json.dumps(found)
    refused = run("score", *options, "--choose-percentile", "0,50", "--shard", "1/2")
    assert (refused.code, "leave out --shard" in refused.err) == (2, True)
