"""docs/make_methods.py: what the tables of a page say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest

from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue, RunRecord

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Config:
    op_variant: Literal["equations", "rotated|maps"] = "equations"
    """As printed, or rotated."""
    stages: tuple[Literal["7", "14", "28"], ...] = ("7",)
    parts: int = 4
    """K."""


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_methods

    return make_methods


def rows_of(pages: ModuleType, *records: RunRecord, post: str = "") -> list[list[str]]:
    """Cells of the facts of each row."""
    found = pages.measured(
        post or "ssanet", [(Path(f"{n}.json"), record) for n, record in enumerate(records)], bool(post)
    )
    return [
        [cell.strip().replace("\\", "") for cell in row.split("|")[1 : 1 + len(pages.FACTS)]] for row in found
    ]


def run(
    name: str = "ssanet",
    data: str = "toybirds",
    *,
    transform: str | None = None,
    seed: int = 0,
    epochs: int = 8,
    lr: float = 0.1,
    **config: Any,
) -> RunRecord:
    source = f"made up, of {data}"  # text with a comma
    recipe = {"epochs": epochs, "lr": lr, "source": source}
    training = {
        "seed": seed,
        "epoch": epochs,
        "weights": "none" if data == "toybirds" else "a.safetensors 0a1b",
        "recipe": recipe,
    }
    return RunRecord(
        method={
            "name": name,
            "backbone": "tiny",
            "config": {"op": True, "grid": "std", **config},
            "training": training,
        },
        dataset={"name": data, "split": "test", "transform": transform},
        protocol=EvalProtocol(),
        metrics=(MetricValue(name="top1_cls", value=0.5, n=10),),
        provenance={},
    )


def test_a_setting_ends_with_the_values_it_can_have(pages: ModuleType) -> None:
    assert list(pages.settings(Config)) == [
        r"| `op_variant` | `equations` | As printed, or rotated. `equations` or `rotated\|maps`. |",
        "| `stages` | `7` | `7`, `14` or `28`. |",
        "| `parts` | `4` | K. |",
    ]


def test_rows_show_what_runs_differ_in_and_seeds_stand_together(pages: ModuleType) -> None:
    assert rows_of(pages, run(seed=1), run(op=False, epochs=16), run(seed=0), run(transform="rotate90")) == [
        ["ssanet", "op=false", "tiny", "none", "16", "toybirds/test", "0"],
        ["ssanet", "op=true", "tiny", "none", "8", "toybirds/test", "0"],
        ["ssanet", "op=true", "tiny", "none", "8", "toybirds/test", "1"],
        ["ssanet", "op=true", "tiny", "none", "8", "toybirds/test, rotate90", "0"],
    ]


def test_recipes_are_compared_on_the_same_data_only_and_settings_everywhere(pages: ModuleType) -> None:
    rows = rows_of(pages, run(data="cub", op=False), run(lr=0.1), run(lr=0.2), run("ssanet:parts", lr=0.1))
    assert [row[:2] + row[3:4] for row in rows] == [
        ["ssanet", "op=false", "checkpoint"],
        ["ssanet", "op=true, recipe.lr=0.1", "none"],
        ["ssanet", "op=true, recipe.lr=0.2", "none"],
        ["ssanet:parts", "op=true, recipe.lr=0.1", "none"],
    ]


def test_a_setting_that_names_a_checkpoint_is_that(pages: ModuleType) -> None:
    part_net = {"part_net": "runs/a.safetensors", "part_net_sha256": "0a1b"}
    assert [row[1] for row in rows_of(pages, run(**part_net), run(part_net="", part_net_sha256=""))] == [
        "part_net=checkpoint",
        "part_net=none",
    ]


def test_with_a_post_process_a_run_is_compared_with_those_of_its_method(pages: ModuleType) -> None:
    rows = rows_of(
        pages, run("cam+scg", op=False), run("spa+scg"), run("spa+scg", grid="stock"), run("spa"), post="scg"
    )
    assert [row[:2] for row in rows] == [["cam+scg", ""], ["spa+scg", "grid=std"], ["spa+scg", "grid=stock"]]


def test_a_method_without_training_has_dashes(pages: ModuleType) -> None:
    record = run()
    del record.method["training"], record.method["backbone"]
    assert rows_of(pages, record) == [["ssanet", "", "—", "—", "—", "toybirds/test", "—"]]


def test_a_page_has_the_order_of_a_reader(pages: ModuleType) -> None:
    from wsolbench.methods import list_methods, load_method

    row = next(row for row in list_methods() if row.name == "spa")
    text = pages.page(row, load_method("spa"), [(Path("a.json"), run("spa"))], [], {})
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        *("## Idea", "## Pictures", "## Formula", "## Use", "## Measured", "## Settings", "## Symbols"),
        *("## Departures and notes", "## Source", "## How the pictures are made"),
    ]
    assert "    wsolbench eval --method spa --dataset cub --train\n" in text


def test_the_command_of_a_post_process_names_a_method_that_was_measured_with_it(pages: ModuleType) -> None:
    from wsolbench.methods import list_posts, load_post

    row = next(row for row in list_posts() if row.name == "lost")

    def command(*names: str) -> str:
        records = [(Path("a.json"), run(name)) for name in names]
        return str(pages.usage(row, load_post("lost"), records, "")[2])

    assert command("frozen+lost") == "    wsolbench eval --method frozen --post lost --dataset cub"
    assert command() == "    wsolbench eval --method cam --post lost --dataset cub --train"


def test_the_command_of_a_method_on_tokens_names_a_backbone_that_has_them(pages: ModuleType) -> None:
    from wsolbench.methods import list_methods, load_method

    row = next(row for row in list_methods() if row.name == "sat")
    text = "Weights by their\nnames in timm: `deit_tiny_patch16_224` (.fb_in1k)"
    command = str(pages.usage(row, load_method("sat"), [], text)[2])
    assert command.endswith("--backbone timm:deit_tiny_patch16_224 --dataset cub --train")
