"""Jobs of a plan: in order, once also for several callers, with the reason of a failure and the time left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wsolbench.evaluation import jobs
from wsolbench.evaluation.jobs import Outcome, run_jobs
from wsolbench.records.plans import Job
from wsolbench.system.files import hold_lock

SCRIPT = """
case $1 in
    good) sleep 0.1; echo $2 >> ran.txt; echo "$@" > arguments-$2; touch done-$2;;
    bad) echo "loading"; echo "Error: no such file"; echo; exit 2;;
    killed) echo "training: 3/40 images"; kill -9 $$;;
esac
"""


@pytest.fixture
def carry_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run jobs of a small shell script in an empty folder."""
    monkeypatch.chdir(tmp_path)
    Path("job.sh").write_text(SCRIPT)
    monkeypatch.setattr(jobs, "PROGRAM", ("/bin/sh", "job.sh"))
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)

    def call(*planned: Job, **options: int | float) -> Outcome:
        return run_jobs(planned, done, out=tmp_path, logs=Path("logs"), **options)

    return call


def done() -> set[str]:
    return {path.name.removeprefix("done-") for path in Path().glob("done-*")}


def job(name: str, kind: str = "good", *needs: str) -> Job:
    return Job(name=name, arguments=(kind, name), needs=needs, checkpoint=None, records=1)


def test_a_job_comes_after_those_it_needs(carry_out) -> None:
    outcome = carry_out(job("a"), job("b", "good", "a"), job("c", "good", "b"), job("d"), parallel=3)
    order = Path("ran.txt").read_text().split()
    assert sorted(outcome.finished) == sorted(order) == ["a", "b", "c", "d"]
    assert order.index("a") < order.index("b") < order.index("c")
    assert carry_out(job("a")).finished == []


def test_only_jobs_that_train_are_compiled(carry_out) -> None:
    trained = replace(job("a"), arguments=("good", "a", "--train"))
    carry_out(trained, job("b"), compile=True)
    assert Path("arguments-a").read_text().split()[-1] == "--compile"
    assert "--compile" not in Path("arguments-b").read_text()
    carry_out(replace(trained, name="c", arguments=("good", "c", "--train")))
    assert "--compile" not in Path("arguments-c").read_text()


def test_failures_have_their_last_line_and_stop_only_what_needs_them(carry_out) -> None:
    outcome = carry_out(job("a", "bad"), job("b", "good", "a"), job("c", "killed"), job("d"))
    assert outcome.finished == ["d"]
    assert outcome.failed["a"].reason == "Error: no such file"
    assert outcome.failed["c"].reason.startswith("ended by signal 9 (Killed)")
    assert outcome.failed["c"].reason.endswith("training: 3/40 images")
    assert outcome.failed["a"].log.read_text().startswith("$ wsolbench bad a\n")
    assert outcome.skipped == {"b": "it needs a, which has failed"}


def test_several_callers_share_the_jobs(carry_out) -> None:
    planned = [job(f"{chain}{number}", "good", *([f"{chain}{number - 1}"] if number else []))
               for chain in "abc" for number in range(3)]  # fmt: skip
    outcomes: list[Outcome] = []
    callers = [threading.Thread(target=lambda: outcomes.append(carry_out(*planned))) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert sorted(Path("ran.txt").read_text().split()) == sorted(each.name for each in planned)
    assert sum(len(outcome.finished) for outcome in outcomes) == len(planned)
    assert not any(outcome.failed or outcome.skipped for outcome in outcomes)


def test_a_job_of_another_process_is_left_to_it(carry_out) -> None:
    Path("logs").mkdir()
    lock = hold_lock(Path("logs/a.lock"))
    assert lock is not None
    outcome = carry_out(job("a"), job("b", "good", "a"), job("c"))
    assert (outcome.finished, outcome.elsewhere) == (["c"], ["a", "b"])
    lock.release()
    assert carry_out(job("a"), job("b", "good", "a"), job("c")).finished == ["a", "b"]


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_the_hours_left_are_exact_when_the_plan_is_right_by_a_factor(parallel: int) -> None:
    expected = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 1.0}
    hours = jobs.Hours(expected)
    hours.measure("a", 3.0)  # three times slower than planned
    left = hours.left(["c", "d"], {"b": 1.5}, parallel)
    rest = 3 * 2.0 - 1.5
    assert left == pytest.approx(max(rest, (rest + 3 * (4.0 + 1.0)) / parallel))


def test_without_expected_hours_the_first_job_tells() -> None:
    hours = jobs.Hours({"a": 0.0, "b": 0.0, "c": 0.0})
    assert hours.left(["b", "c"], {"a": 0.1}, 1) is None
    hours.measure("a", 0.5)
    assert hours.left(["b", "c"], {}, 1) == pytest.approx(1.0)
