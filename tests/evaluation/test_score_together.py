"""Several protocols of one call: each map is made once, and every number is that of a call of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.made_up import MadeUpSource, dataset, eval_request
from wsolbench.evaluation.evaluate import conclude, evaluate, map_key, score_shards, score_together
from wsolbench.evaluation.request import EvalRequest, RunOptions
from wsolbench.evaluation.runs import RunFolder, Shard, merge
from wsolbench.exceptions import UsageError
from wsolbench.maps import MapFolder
from wsolbench.maps.folder_source import FolderSource
from wsolbench.protocol import EvalProtocol

NAMES = ("wsoleval", "tscam", "lid")
DATA, VAL = dataset(count=70), dataset(count=6, split="val", seed=1)


def requests_of(source: MadeUpSource, work: Path | None, *names: str) -> list[EvalRequest]:
    options = RunOptions(batch_size=4, workers=1, work=work, resamples=100)
    protocols = [EvalProtocol.preset(name) for name in names]
    return [
        eval_request(DATA, source, protocol, transfer_from=VAL, options=options) for protocol in protocols
    ]


@pytest.mark.parametrize("on_disk", [False, True])
def test_protocols_share_maps_and_give_the_numbers_of_separate_runs(tmp_path: Path, on_disk: bool) -> None:
    source = MadeUpSource()
    runs = score_together(requests_of(source, tmp_path if on_disk else None, *NAMES))
    assert len(source.loads) == len(set(source.loads)) == len(DATA) + len(VAL)
    options = RunOptions(batch_size=4, workers=1, resamples=100)
    for name, run in zip(NAMES, runs, strict=True):
        alone = evaluate(DATA, MadeUpSource(), EvalProtocol.preset(name), transfer_from=VAL, options=options)
        together = conclude(run)
        assert together.record.digest == alone.record.digest
        assert together.record.provenance["scored_together"] == list(NAMES)
        for field, rows in together.scores.load().arrays().items():
            np.testing.assert_array_equal(rows, alone.scores.load().arrays()[field])
        together.finish()
    assert not list(tmp_path.glob("*/"))


def test_one_protocol_is_scored_as_ever() -> None:
    (run,) = score_together(requests_of(MadeUpSource(), None, "wsoleval"))
    assert "scored_together" not in run.provenance


def test_a_killed_run_of_several_protocols_resumes(tmp_path: Path) -> None:
    killed = MadeUpSource(fail_after=17)  # after the first 64 images
    with pytest.raises(RuntimeError, match="killed"):
        score_together(requests_of(killed, tmp_path, *NAMES))
    # One protocol loses a chunk; the others are scored with it again.
    requests = requests_of(MadeUpSource(), tmp_path, *NAMES)
    plan = requests[1].plan()
    RunFolder(tmp_path / plan.digest[:16], plan).chunk("test", 0).unlink()
    source = MadeUpSource()
    runs = score_together(requests_of(source, tmp_path, *NAMES))
    assert len(source.loads) == len(DATA) + len(VAL)
    assert [len(run.tables["test"]) for run in runs] == [70] * 3
    again = MadeUpSource()
    score_together(requests_of(again, tmp_path, *NAMES))
    assert again.loads == []


def test_shards_of_several_protocols_merge_to_a_record_each(tmp_path: Path) -> None:
    for index in (1, 2):
        folders = score_shards(requests_of(MadeUpSource(), None, *NAMES), Shard(index, 2), tmp_path)
        assert len({folder.root for folder in folders}) == len(NAMES)
    merged = merge([tmp_path])
    assert {run.plan.protocol.name for run in merged} == set(NAMES)
    assert [run.provenance["scored_together"] for run in merged] == [list(NAMES)] * len(NAMES)


def test_other_maps_are_refused() -> None:
    one, other = requests_of(MadeUpSource(), None, "wsoleval", "psol")
    with pytest.raises(UsageError, match="score other maps or labels"):
        score_together([one, other])
    with pytest.raises(UsageError, match="of other images, or of sources"):
        score_together([one, replace(one, source=MadeUpSource())])


def test_a_network_runs_once_for_equal_views() -> None:
    def keys(**kind: bool) -> dict[str, object]:
        return {name: map_key(EvalProtocol.preset(name), **kind) for name in EvalProtocol.presets()}

    network = keys(of_network=True)
    assert network["wsoleval"] == network["tscam"] == network["lid"]
    # Ten crops and another network's labels are other labels, a centre crop is another map.
    assert len(set(network.values())) == 4
    stored = keys(of_network=False)
    assert stored["wsoleval"] == stored["spa"] != stored["bas"] == stored["psol"]
    assert keys(of_network=False, cropped=True)["bas"] == keys(of_network=False, cropped=True)["psol"]
    nearest = replace(EvalProtocol.preset("bas"), name="other", resize="bicubic")
    assert map_key(nearest, of_network=False, cropped=True) != keys(of_network=False, cropped=True)["bas"]


def test_centres_that_are_cut_in_another_way_are_not_shared(tmp_path: Path) -> None:
    bas = EvalProtocol.preset("bas")
    source = FolderSource(MapFolder(tmp_path), name="mine", crop=bas)
    other = replace(bas, name="other", resize="bicubic")
    with pytest.raises(UsageError, match="score other maps or labels"):
        score_together([eval_request(DATA, source, protocol) for protocol in (bas, other)])
