"""The fake GPU: values of the CPU, rules of a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsolbench.testing.fake_cuda import DeviceMismatchError, FakeCuda


@pytest.fixture
def gpu():
    with FakeCuda() as made:
        yield made


def test_values_are_those_of_the_cpu_also_through_modules_views_and_changes_in_place(gpu: FakeCuda) -> None:
    x = torch.randn(2, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2))
    expected = net.eval()(x).flatten(1)
    found = gpu.move(net)(gpu.tensor(x)).flatten(1)
    assert found.device == torch.device("cuda", 0)
    assert torch.equal(gpu.values(found), expected)
    rows = torch.zeros(3, 2, device="cuda")
    rows[1].add_(2).mul_(3)
    assert torch.equal(gpu.values(rows), torch.tensor([[0.0, 0.0], [6.0, 6.0], [0.0, 0.0]]))
    assert gpu.events == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_that_of_a_gpu(gpu: FakeCuda, dtype: torch.dtype) -> None:
    linear, x = gpu.move(nn.Linear(3, 4)), torch.ones(2, 3, device="cuda")
    with torch.autocast("cuda", dtype):
        scores = linear(x)
        assert scores.dtype == dtype
        for function in (F.softmax, F.log_softmax):
            found = function(scores, dim=1)
            assert found.dtype == torch.float32
            torch.testing.assert_close(gpu.values(found), function(gpu.values(scores).float(), dim=1))
    assert linear(x).dtype == torch.float32


def test_a_training_step_needs_gradients_that_are_given(gpu: FakeCuda) -> None:
    linear = gpu.move(nn.Linear(3, 4))
    optimizer = torch.optim.AdamW(linear.parameters(), lr=0.1)
    before = gpu.values(linear.weight).clone()
    for parameter in linear.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not torch.equal(gpu.values(linear.weight), before)
    assert gpu.events == []


def mixes(x: Tensor) -> list[Callable[[], Tensor]]:
    return [
        lambda: x + torch.arange(3),
        lambda: x @ torch.eye(3),
        lambda: torch.cat([x, torch.zeros(3, 3)]),
        lambda: F.conv2d(x[None, None], torch.ones(1, 1, 2, 2)),
        lambda: torch.where(torch.ones(3, dtype=torch.bool), x, x),
        lambda: x.mul_(torch.ones(3)),
    ]


@pytest.mark.parametrize("number", range(6))
def test_tensors_of_both_devices_do_not_mix(gpu: FakeCuda, number: int) -> None:
    with pytest.raises(DeviceMismatchError, match=r"test_fake_cuda\.py:\d+"):
        mixes(torch.ones(3, 3, device="cuda"))[number]()
    assert (torch.ones(3, device="cuda") * torch.tensor(2.0)).device.type == "cuda"  # a single value may


READS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.max()),
    "bool": lambda x: bool((x > 0).any()),
    "assert": lambda x: x.any() and None,
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "into the host": lambda x: torch.zeros(3).copy_(x),
}


@pytest.mark.parametrize("name", READS)
def test_what_the_host_waits_for_is_noted_with_its_line(gpu: FakeCuda, name: str) -> None:
    READS[name](torch.arange(3.0, device="cuda"))
    assert {event.kind for event in gpu.events} == {"read"}
    assert all("test_fake_cuda.py:" in event.where for event in gpu.events)


def test_copies_from_the_host_are_noted(gpu: FakeCuda) -> None:
    for copy in (
        lambda: torch.tensor([1.0, 2.0], device="cuda"),
        lambda: torch.ones(3).to("cuda"),
        lambda: torch.zeros(3, device="cuda").copy_(torch.ones(3)),
        lambda: torch.ones(3, device="cuda")[torch.tensor([0, 1])],
    ):
        gpu.events.clear()
        copy()
        assert {event.kind for event in gpu.events} == {"copy"}


def test_copies_that_nobody_waits_for_are_not_noted(gpu: FakeCuda) -> None:
    """As a loader does: pinned memory, a stream of its own, and an event that is waited for at the end."""
    device, stream = torch.device("cuda"), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        sent = torch.arange(3.0).pin_memory().to(device, non_blocking=True)
        event = stream.record_event()
    torch.cuda.current_stream().wait_event(event)
    sent.record_stream(torch.cuda.current_stream())
    received = torch.empty(3, pin_memory=True)
    received.copy_(sent * 2, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    assert gpu.events == []
    arrived.synchronize()
    assert [event.operator for event in gpu.events] == ["cuda::synchronize"]
    assert received.tolist() == [0.0, 2.0, 4.0]
    for blocking in (
        lambda: torch.arange(3.0).to(device, non_blocking=True),  # not pinned
        lambda: torch.arange(3.0).pin_memory().to(device),
        lambda: received.copy_(sent),
        lambda: torch.zeros(3).copy_(sent, non_blocking=True),
    ):
        gpu.events.clear()
        blocking()
        assert len(gpu.events) == 1


def test_an_optimizer_with_a_scaler_and_made_up_gradients_never_waits(gpu: FakeCuda) -> None:
    linear = gpu.move(nn.Linear(3, 4))
    linear.bias.requires_grad_(False)
    for fused in (True, False):
        gpu.events.clear()
        optimizer = torch.optim.SGD([linear.weight], lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cuda", init_scale=1.0)
        before = gpu.values(linear.weight).clone()
        linear.weight.grad = None
        scaler.scale(linear(torch.ones(2, 3, device="cuda")).sum()).backward()
        assert linear.bias.grad is None
        scaler.step(optimizer)
        scaler.update()
        torch.testing.assert_close(gpu.values(linear.weight), before - 0.1)
        assert bool(gpu.events) is not fused


def test_a_mask_with_a_number_is_filled_and_one_with_values_is_counted(gpu: FakeCuda) -> None:
    x, mask = torch.zeros(3, device="cuda"), torch.ones(3, dtype=torch.bool, device="cuda")
    x[mask] = 2.0
    assert gpu.values(x).tolist() == [2.0] * 3
    assert gpu.events == []
    x[mask] = torch.ones(3, device="cuda")
    assert {event.kind for event in gpu.events} == {"read"}


def test_a_generator_of_the_host_is_noted_and_one_of_the_device_is_not(gpu: FakeCuda) -> None:
    own = gpu.generator(3)
    assert own.device == torch.device("cuda", 0)
    drawn = torch.rand(4, generator=own, device="cuda")
    assert drawn.device.type == "cuda"
    assert gpu.events == []
    torch.randperm(4, generator=torch.Generator().manual_seed(1), device="cuda")
    assert [event.kind for event in gpu.events] == ["generator"]
    torch.rand(4, generator=own.manual_seed(77), device="cuda")
    assert len(gpu.events) == 1


def test_outside_of_the_context_nothing_is_changed_and_its_tensors_are_refused() -> None:
    with FakeCuda() as gpu:
        x = gpu.tensor(torch.ones(2))
    with pytest.raises(RuntimeError, match="outside"):
        x + 1
    assert torch.cuda.is_available() or not torch.is_autocast_enabled("cuda")
    weight = torch.ones(2, requires_grad=True)
    (gradient,) = torch.autograd.grad((weight**2).sum(), weight)
    assert torch.equal(gradient, torch.full((2,), 2.0))
