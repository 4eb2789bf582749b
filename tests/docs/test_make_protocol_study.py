"""docs/make_protocol_study.py: maps whose order depends on the protocol, and the page that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from wsolbench.protocol import EvalProtocol
from wsolbench.records.comparison import MetricDifference

ROOT = Path(__file__).parents[2]
IDS = [f"test/{index}.png" for index in range(6)]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The script, called in a folder with a data set and two folders of maps: `blob` and `halves`."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    rows = [f"{image_id},{index % 2},test,48,48,24,24,44,44" for index, image_id in enumerate(IDS)]
    Path("data/annotations.csv").write_text(
        "\n".join(["image,label,split,width,height,x0,y0,x1,y1", *rows]) + "\n"
    )
    Path("data/classes.csv").write_text("label,name\n0,red\n1,green\n")
    # The object and something beside it: right for the largest region, wrong for the box around everything.
    blob = np.zeros((48, 48), dtype=np.float32)
    blob[24:44, 24:44] = blob[8:12, 8:12] = 1
    # Both ends of the object: the other way round.
    halves = np.zeros((48, 48), dtype=np.float32)
    halves[24:44, 24:30] = halves[24:44, 38:44] = 1
    for name, score_map in (("blob", blob), ("halves", halves)):
        folder = Path("maps") / name
        for image_id in IDS:
            (folder / image_id).parent.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{image_id}.npy", score_map)
        ranks = [f"{image_id},{index % 2},{1 - index % 2}" for index, image_id in enumerate(IDS)]
        (folder / "predictions.csv").write_text("\n".join(["image,rank1,rank2", *ranks]) + "\n")
    import make_protocol_study

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(make_protocol_study.main, arguments)

    return call


SCORE = ("--dataset", "csvfolder", "--data-root", "data", "--resamples", "100", "--workers", "1")


def test_an_order_that_the_protocol_decides_is_told(study) -> None:
    result = study(*SCORE, "--maps", "maps/blob", "--maps", "maps/halves")
    assert result.exit_code == 0, result.output
    page = Path("docs/protocol_study.md").read_text()
    assert "6 images of `test`; blob, halves." in page
    assert (
        "GT-known moves by 100.0 (blob) to 100.0 (blob) points between protocols. Of 1 pair of methods, the "
        "order changes for 1" in page
    )
    gt_known = page.split("### GT-known on data")[1].split("###")[0]
    assert "| `wsoleval` | 100.0 [100.0, 100.0] | 0.0 [0.0, 0.0] |" in gt_known
    assert "| `spa` | 0.0 [0.0, 0.0] | 100.0 [100.0, 100.0] |" in gt_known
    cells = next(line for line in gt_known.splitlines() if line.startswith("| halves - blob")).split(" | ")
    assert cells[1:3] == ["**-100.0 [-100.0, -100.0]**", "**+100.0 [+100.0, +100.0]**"]
    assert cells[-1].startswith("**changes**")
    assert Path("docs/images/protocols_data.png").stat().st_size > 1000
    records = [json.loads(path.read_text()) for path in Path("results/protocols/measured").rglob("*.json")]
    assert {record["protocol"]["name"] for record in records} == set(EvalProtocol.presets())
    cut = {
        record["protocol"]["name"]
        for record in records
        if "cut to the centre crop" in record["method"]["maps"]
    }
    assert cut == {"bas", "psol"}


def test_the_page_comes_from_the_records_and_another_run_replaces_them(study) -> None:
    maps = ("--maps", "maps/blob", "--maps", "maps/halves")
    assert study(*SCORE, *maps).exit_code == 0
    page = Path("docs/protocol_study.md").read_text()
    Path("docs/protocol_study.md").unlink()
    assert study().exit_code == 0
    assert Path("docs/protocol_study.md").read_text() == page
    assert study(*SCORE, *maps, "--limit", "3").exit_code == 0
    assert "3 images of" in Path("docs/protocol_study.md").read_text()
    assert len(list(Path("results/protocols/measured").rglob("*.json"))) == 2 * len(EvalProtocol.presets())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no records in"),
        (("--maps", "maps/blob"), "expected --dataset and --maps, or neither"),
        ((*SCORE, "--maps", "maps/blob"), "folders of two methods or more"),
        ((*SCORE, "--maps", "maps/blob", "--maps", "maps/blob"), "each of another name"),
        ((*SCORE, "--maps", "maps/blob", "--maps", "nowhere"), "no folder of maps nowhere"),
    ],
)
def test_a_wrong_call_is_explained(study, arguments: tuple[str, ...], message: str) -> None:
    result = study(*arguments)
    assert result.exit_code == 1
    assert message in result.output


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(0.1, 0.3), (-0.1, 0.2)], "stays"),
        ([(0.1, 0.3), (-0.3, 0.2)], "changes within noise"),
        ([(-0.1, 0.3), (-0.3, 0.2)], "changes within noise"),
        ([(0.1, 0.3), (-0.3, -0.1)], "**changes**"),
        ([(0.1, 0.3), (0.0, 0.0)], "stays"),
    ],
)
def test_a_flip_is_told_from_noise(study, intervals: list[tuple[float, float]], expected: str) -> None:
    from make_protocol_study import order

    def difference(low: float, high: float) -> MetricDifference:
        middle = (low + high) / 2
        return MetricDifference(
            name="gt_known",
            policy="oracle",
            a=0.5,
            b=0.5 + middle,
            low=low,
            high=high,
            p_value=0.5,
            n=9,
            per_pair=(middle,),
        )

    assert order([difference(*interval) for interval in intervals]) == expected


def test_the_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from make_protocol_study import page, read_studies

    assert (ROOT / "docs/protocol_study.md").read_text(encoding="utf-8") == page(
        read_studies(ROOT / "results/protocols")
    )
