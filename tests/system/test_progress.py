"""Progress: quiet when quick, lines in a pipe, a bar on a terminal."""

from __future__ import annotations

import io

import pytest

from wsolbench.system import progress
from wsolbench.system.progress import track


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    return clock


def test_items_come_through_in_order():
    assert list(track([3, 1, 2], "x", stream=io.StringIO())) == [3, 1, 2]


def test_a_quick_job_shows_nothing(clock):
    stream = io.StringIO()
    for _ in track(range(10), "quick", stream=stream):
        clock.now += 0.15
    assert stream.getvalue() == ""


def test_in_a_pipe_a_line_comes_every_ten_seconds_and_one_at_the_end(clock):
    stream = io.StringIO()
    for _ in track(range(50), "reading", stream=stream):
        clock.now += 0.5
    lines = stream.getvalue().splitlines()
    assert lines[0] == "reading: 20/50 images 2/s 0:15 left"
    assert lines[1] == "reading: 40/50 images 2/s 0:05 left"
    assert lines[2:] == ["reading: 50/50 images 2/s in 0:25"]


def test_work_of_an_earlier_run_does_not_count_for_the_rate(clock):
    stream = io.StringIO()
    with track(description="training", total=100, done=50, unit="steps", stream=stream) as bar:
        clock.now += 20
        bar.advance(10, "loss 1.5")
    assert stream.getvalue().splitlines()[0] == "training: 60/100 steps 0.5/s 1:20 left (loss 1.5)"


def test_the_callers_estimate_replaces_the_rate(clock):
    stream = io.StringIO()
    with track(description="jobs", total=4, unit="jobs", stream=stream) as bar:
        clock.now += 20
        bar.advance(1, "running spa/0", left=5400.0)
        bar.advance(3)
    assert stream.getvalue().splitlines() == [
        "jobs: 1/4 jobs 1:30:00 left (running spa/0)",
        "jobs: 4/4 jobs 0.2/s in 0:20 (running spa/0)",
    ]


def test_without_a_total_there_is_no_time_left(clock):
    stream = io.StringIO()
    for _ in track((number for number in range(3)), "walking", unit="steps", stream=stream):
        clock.now += 11
    assert "left" not in stream.getvalue()
    assert "walking: 1 steps" in stream.getvalue()


def test_a_terminal_gets_a_bar_and_one_last_line(clock):
    stream = Terminal()
    for _ in track(range(5), "drawing", stream=stream):
        clock.now += 1
    assert "━" in stream.getvalue()
    assert stream.getvalue().endswith("drawing: 5/5 images 1/s in 0:05\n")


def test_an_error_passes_through():
    with pytest.raises(ZeroDivisionError):
        list(track((1 / number for number in (1, 0)), "x", stream=io.StringIO()))


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_printed_line_stays_in_a_pipe_and_above_a_bar(clock, kind):
    stream = kind()
    with track(description="training", total=10, stream=stream) as bar:
        bar.print_line("epoch 1/2 [loss]")
        clock.now += 5
        bar.advance()
        bar.print_line("epoch 2/2")
    assert "epoch 1/2 [loss]\n" in stream.getvalue()
    assert "epoch 2/2" in stream.getvalue()
