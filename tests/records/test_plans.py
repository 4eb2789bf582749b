"""The plans in `results/plans`: every command is valid, and every published number is printed in its table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from wsolbench.cli._jobs import check_jobs, checkpoint_of
from wsolbench.cli.settings import parse_settings
from wsolbench.datasets import list_datasets
from wsolbench.methods import load_method
from wsolbench.records.plans import Job, Plan, command_key, find_done, read_plan
from wsolbench.records.published import LITERATURE, read_papers, read_published

FOLDER = Path(__file__).parents[2] / "results" / "plans"
PLANS = {str(path.relative_to(FOLDER)): path for path in sorted(FOLDER.rglob("*.toml"))}
BY_PAPER = {paper.name: key for key, paper in read_papers().items()}


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest) -> Plan:
    return read_plan(PLANS[request.param], checkpoint_of)


def values(job: Job, option: str) -> list[str]:
    """The values of an option in the job's command."""
    return [value for name, value in zip(job.arguments, job.arguments[1:], strict=False) if name == option]


def test_every_command_is_valid(plan: Plan) -> None:
    known = {info.name for info in list_datasets()}
    assert {name for job in plan.jobs for name in values(job, "--dataset")} <= known
    check_jobs(plan, plan.jobs)


def test_the_page_of_plans_has_the_number_of_jobs() -> None:
    page = (FOLDER.parents[1] / "docs" / "plans.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\S+\.toml)` \|[^|]*\| ([\d,]+) \|", page, flags=re.MULTILINE))
    assert listed == {name: f"{len(read_plan(path, checkpoint_of).jobs):,}" for name, path in PLANS.items()}
    assert len(re.findall(r"^\| `\S+\.toml`", page, flags=re.MULTILINE)) == len(PLANS)


def test_jobs_differ_and_have_expected_hours(plan: Plan) -> None:
    keys = [command_key(job.command) for job in plan.jobs]
    assert len(set(keys)) == len(keys)
    assert [job.name for job in plan.jobs if job.checkpoint and not (job.hours or job.gpu_hours)] == []
    assert find_done(plan.jobs, []) == {job.name: [] for job in plan.jobs}


def test_shards_are_a_partition_in_which_a_job_comes_after_what_it_needs(plan: Plan) -> None:
    for count in (1, 2, 5):
        shards = [plan.choose([], (index, count)) for index in range(1, count + 1)]
        assert sorted(job.name for jobs in shards for job in jobs) == sorted(job.name for job in plan.jobs)
        for jobs in shards:
            done: set[str] = set()
            for job in jobs:
                assert done.issuperset(job.needs)
                done.add(job.name)


def test_published_numbers_are_those_of_the_named_table(plan: Plan) -> None:
    printed: dict[tuple[str, str, str], set[str]] = {}
    for row in read_published(LITERATURE):
        printed.setdefault((row.paper, row.table, row.method), set()).add(row.value)
    for job in plan.jobs:
        for text in filter(None, job.published.split("; ")):
            found = re.fullmatch(r"([^,]+), ([^,]+), (.+?): (.+)", text)
            assert found, text
            paper, table, method, numbers = found.groups()
            given = {number.split()[-1] for number in numbers.split(", ")}
            assert given <= printed[BY_PAPER[paper], table, method], text


@pytest.mark.parametrize("name", ["toybirds.toml", "full/cub_recognition.toml"])
def test_every_map_is_one_that_the_method_has(name: str) -> None:
    for job in read_plan(PLANS[name], checkpoint_of).jobs:
        names = {name for value in values(job, "--map") for name in value.split(",")} - {"class"}
        if not names or not job.name.endswith("/0"):
            continue
        settings = parse_settings([text for text in values(job, "--set") if "/" not in text])
        model = load_method(*values(job, "--method")).create(
            backbone="tiny", num_classes=6, weights="none", settings=settings, image_size=128
        )
        truth = (
            {"true_boxes": torch.tensor([[32.0, 32, 96, 96]])}
            if getattr(model, "uses_true_boxes", False)
            else {}
        )
        assert names <= set(model.localize(torch.zeros(1, 3, 128, 128), **truth).extra_maps), job.name
