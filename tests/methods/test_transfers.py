"""Copies between host and device, on a fake GPU with fake streams: what is copied when, and who waits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch

from wsolbench.methods import load_method
from wsolbench.methods.device import place
from wsolbench.methods.transfers import Download, uploaded
from wsolbench.testing.fake_cuda import FakeCuda

GPU = torch.device("cuda")


class Streams:
    """Fake streams and events of a GPU. `log` is what was asked of them, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.current = "main"
        self.pinned: set[int] = set()
        self.events = 0

    @contextlib.contextmanager
    def patched(self) -> Iterator[Streams]:
        to = torch.Tensor.to

        def pin(tensor: torch.Tensor) -> torch.Tensor:
            self.pinned.add(tensor.data_ptr())
            return tensor

        def copy(tensor: torch.Tensor, *where, **how) -> torch.Tensor:
            if GPU in where and tensor.device.type == "cpu":
                kind = "pinned" if tensor.data_ptr() in self.pinned else "pageable"
                self.log.append(
                    f"{kind} copy on {self.current}" + ", waiting" * (not how.get("non_blocking"))
                )
            return to(tensor, *where, **how)

        def record(tensor: torch.Tensor, stream: Stream) -> None:
            self.log.append(f"memory kept for {stream.name}")

        with (
            mock.patch("torch.cuda.Stream", return_value=Stream(self, "second")),
            mock.patch("torch.cuda.current_stream", return_value=Stream(self, "main")),
            mock.patch("torch.cuda.stream", self.on),
            mock.patch("torch.cuda.Event", partial(Event, self)),
            mock.patch("torch.Tensor.pin_memory", pin),
            mock.patch("torch.Tensor.to", copy),
            mock.patch("torch.Tensor.record_stream", record),
        ):
            yield self

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        self.current, before = stream.name, self.current
        yield
        self.current = before


class Stream:
    def __init__(self, streams: Streams, name: str) -> None:
        self.streams, self.name = streams, name

    def record_event(self) -> Event:
        event = Event(self.streams)
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        self.streams.log.append(f"{self.name} waits for {event.name}")


class Event:
    def __init__(self, streams: Streams) -> None:
        self.streams, self.name = streams, f"event {streams.events}"
        streams.events += 1

    def record(self, stream: Stream | None = None) -> None:
        self.streams.log.append(f"{self.name} on {self.streams.current if stream is None else stream.name}")

    def synchronize(self) -> None:
        self.streams.log.append(f"host waits for {self.name}")


@pytest.fixture
def streams() -> Streams:
    return Streams()


def batches(count: int, log: list[str] | None = None) -> Iterator[dict[str, torch.Tensor]]:
    for number in range(count):
        if log is not None:
            log.append(f"load {number}")
        yield {"pixels": torch.full((2, 3), number), "labels": torch.tensor([number])}


def test_on_the_cpu_batches_pass_as_they_are_and_none_is_loaded_before_it_is_needed():
    log: list[str] = []
    made = list(batches(3))
    assert [id(batch) for batch in uploaded(iter(made), torch.device("cpu"))] == list(map(id, made))
    arriving = uploaded(batches(3, log), torch.device("cpu"))
    next(arriving)
    assert log == ["load 0"]


@pytest.mark.parametrize("count", [0, 1, 4])
def test_on_a_gpu_the_values_arrive_in_order(streams, count):
    with FakeCuda() as gpu, streams.patched():
        found = [
            {name: gpu.values(tensor) for name, tensor in batch.items()}
            for batch in uploaded(batches(count), GPU)
        ]
    for batch, expected in zip(found, batches(count), strict=True):
        assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())


def test_the_next_batch_is_copied_on_a_second_stream_before_one_is_used(streams):
    log = streams.log
    copies = ["pinned copy on second"] * 2
    with FakeCuda(), streams.patched():
        arriving = uploaded(batches(2, log), GPU)
        for number in range(2):
            next(arriving)
            log.append(f"use {number}")
    received = ["memory kept for main"] * 2
    assert log == [
        *("load 0", *copies, "event 0 on second", "load 1", *copies, "event 1 on second"),
        *("main waits for event 0", *received, "use 0"),
        *("main waits for event 1", *received, "use 1"),
    ]


def test_a_download_waits_once_for_all_tensors_and_only_when_it_is_read(streams):
    values = {"maps": torch.rand(2, 3, 3), "scores": torch.rand(2, 5), "none": torch.zeros(0, 2)}
    with FakeCuda() as gpu, streams.patched():
        download = Download({name: gpu.tensor(tensor) for name, tensor in values.items()})
        assert streams.log == ["event 0 on main"]
        found = download.read()
    assert streams.log == ["event 0 on main", "host waits for event 0"]
    assert all(np.array_equal(found[name], tensor.numpy()) for name, tensor in values.items())
    assert len(streams.pinned) >= 2


def test_a_download_waits_for_the_device_of_its_tensors_not_for_the_current_one(streams):
    asked: list[torch.device | None] = []

    def current_stream(device: torch.device | None = None) -> Stream:
        asked.append(device)
        return Stream(streams, f"stream of {device}")

    with FakeCuda() as gpu, streams.patched(), mock.patch("torch.cuda.current_stream", current_stream):
        tensor = gpu.tensor(torch.rand(2, 3))
        Download({"maps": tensor}).read()
    assert asked == [tensor.device]
    assert streams.log == [f"event 0 on stream of {tensor.device}", "host waits for event 0"]


def test_a_download_of_the_cpu_copies_nothing():
    values = torch.rand(2, 3)
    assert np.shares_memory(Download({"values": values}).read()["values"], values.numpy())


def test_convolutions_have_the_memory_format_of_the_images():
    method = load_method("cam").create(backbone="tiny", num_classes=3, weights="none", settings={})
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = images.to(memory_format=torch.channels_last)
    before = method.localize(images).score_maps(torch.tensor([[0], [1]]))
    place(method, torch.device("cpu"))
    kernels = [each.weight for each in method.modules() if isinstance(each, torch.nn.Conv2d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert torch.equal(method.localize(images).score_maps(torch.tensor([[0], [1]])), before)
