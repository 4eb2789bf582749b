"""A fake GPU: tensors that claim to be on `cuda` and are computed on the CPU.

Inside `FakeCuda()` tensors have real values, so that every branch of a program is taken. The rules of a GPU
hold: tensors of both devices do not mix. Whatever makes the host wait for the device is noted with the line
that does it. There are no backward passes, which need a driver; gradients are made up: 1 everywhere.

    with FakeCuda() as gpu:
        model = gpu.move(model)
        model(torch.zeros(2, 3, 64, 64, device="cuda"))
    print(gpu.events)
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
Kind = Literal["read", "copy", "generator"]

_SOFTMAXES = {"aten::_softmax", "aten::_log_softmax"}
"""Operators that can turn float16 into float32 on a GPU, but not on a CPU."""
_PRODUCTS = {"aten::convolution", "aten::addmm", "aten::baddbmm", "aten::bmm", "aten::mm"}
"""Operators that a GPU sums in float32, and that most processors compute slowly in bfloat16 and float16."""
_COPIES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from")
_READS = (
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::repeat_interleave",
    "torchvision::nms",
)
"""Operators whose result the host has to wait for: a value, or a size that depends on values."""
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


@dataclass(frozen=True)
class Event:
    """What would slow or break a GPU.

    Attributes:
        kind: `read`: the host waits for the device. `copy`: a tensor with dimensions goes from the host to
            the device, and not without waiting from pinned memory. `generator`: numbers for the device are
            drawn by the host's generator.
        operator: the operator of torch.
        where: file and line of the program.
    """

    kind: Kind
    operator: str
    where: str

    def __str__(self) -> str:
        return f"{self.kind} by {self.operator.partition('::')[2]} in {self.where}"


class DeviceMismatchError(RuntimeError):
    """Tensors of both devices in one operation."""


class FakeGenerator(torch.Generator):
    """A generator that says it is the device's. `seeds` are those of all such generators."""

    seeds: set[int]

    def manual_seed(self, seed: int) -> FakeGenerator:
        """Set the seed, by which an operator knows the generator."""
        super().manual_seed(seed)
        self.seeds.add(seed)
        return self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The GPU."""
        return GPU


class _GpuTensor(torch.Tensor):
    """A tensor of the GPU; `held` has its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, real: Tensor, requires_grad: bool = False) -> _GpuTensor:
        made: _GpuTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=GPU,
            requires_grad=requires_grad,
        )
        made.held = real
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"on a fake GPU: {self.held!r}"

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:
        raise RuntimeError("tensors of a fake GPU are used outside of `FakeCuda`")


class _FakeStream:
    """A stream, or an event on one. Only a host that waits for it is noted."""

    def __init__(self, gpu: FakeCuda) -> None:
        self.gpu = gpu

    def __enter__(self) -> _FakeStream:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def record_event(self, *_: object) -> _FakeStream:
        return self

    def record(self, *_: object) -> None:
        """Do nothing: results are there at once. The same holds for waits of the device."""

    wait = wait_event = wait_stream = record

    def synchronize(self, *_: object) -> None:
        self.gpu._note("read", "cuda::synchronize")


class FakeCuda(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The context in which `cuda` is a fake GPU. `events` is what would slow or break a real one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        self.made_up_gradients = False
        self._seeds: set[int] = set()
        self._pinned: dict[int, Tensor] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> FakeCuda:
        self._stack.enter_context(_available(self))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._stack.close()

    def summary(self) -> list[str]:
        """Each event once, with how often it occurred."""
        counts = Counter(map(str, self.events))
        return [f"{event} ({count} times)" if count > 1 else event for event, count in counts.items()]

    def generator(self, seed: int = 0) -> FakeGenerator:
        """A generator of the device."""
        made = FakeGenerator()
        made.seeds = self._seeds
        return made.manual_seed(0x5EED_0000 + len(self._seeds) * 1000 + seed)

    def tensor(self, real: Tensor) -> Tensor:
        """A tensor of the CPU as one of the GPU."""
        return _GpuTensor(real.detach().clone(), real.requires_grad)

    def move(self, module: nn.Module) -> nn.Module:
        """Put all parameters and buffers of a module on the GPU. What is neither stays where it is."""
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    moved = _GpuTensor(parameter.detach().clone())
                    part._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = _GpuTensor(buffer.detach().clone())
        return module

    def values(self, tensor: Tensor) -> Tensor:
        """The values of a tensor of the GPU."""
        assert isinstance(tensor, _GpuTensor)
        return tensor.held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name
        pinned = kwargs.pop("pin_memory", False)
        tensors: list[Tensor] = []
        real_args, real_kwargs = _map_tensors(lambda item: _real(item, tensors), (args, kwargs))
        on_gpu = any(isinstance(item, _GpuTensor) for item in tensors)
        if pinned:
            return func(*args, **kwargs).pin_memory()
        asked = kwargs.get("device")
        target = None if asked is None else torch.device(asked).type
        self._note_generator(name, kwargs, on_gpu or target == "cuda")
        if name in _COPIES:
            self._note_copy(name, args, kwargs, target)
        elif on_gpu:
            self._check(name, args, tensors)
        if target == "cuda":
            real_kwargs["device"] = CPU
        if name in _SOFTMAXES and real_args[2]:
            real_args = (real_args[0].float(), real_args[1], False)
        result = _compute(func, name, real_args, real_kwargs)
        if name == "aten::copy_":
            return args[0]
        if target == "cpu":
            return result
        if not on_gpu and target != "cuda":
            return result
        changed = _changed_argument(func)
        if changed is not None:
            place, keyword = changed
            return args[place] if place < len(args) else kwargs[keyword]
        return _map_tensors(lambda item: _GpuTensor(item) if type(item) is Tensor else item, result)

    def _check(self, name: str, args: Any, tensors: Sequence[Tensor]) -> None:
        """Raise on tensors of both devices, and note what the host waits for."""
        on_host = [item for item in tensors if not isinstance(item, _GpuTensor)]
        if name in _INDEXED:  # indices of the host are copied to the device
            indices = [index for index in args[1] if index is not None]
            if any(not isinstance(index, _GpuTensor) for index in indices):
                self._note("copy", name)
            if any(index.dtype in {torch.bool, torch.uint8} for index in indices) and not _fills(args):
                self._note("read", name)
            on_host = [item for item in on_host if not any(item is index for index in indices)]
        if any(item.ndim > 0 for item in on_host):  # single values of the host may be mixed in
            shapes = ", ".join(str(tuple(item.shape)) for item in on_host)
            raise DeviceMismatchError(
                f"{name} has tensors of the GPU and, of the CPU, those of shape {shapes}: {_where()}"
            )
        if name in _READS:
            self._note("read", name)

    def _note_copy(self, name: str, args: Any, kwargs: Mapping[str, Any], target: str | None) -> None:
        source = args[1] if name == "aten::copy_" else args[0]
        at_once = kwargs.get("non_blocking", False)
        if name == "aten::copy_":
            target, at_once = args[0].device.type, at_once or args[2:3] == (True,)
        from_gpu = isinstance(source, _GpuTensor)
        if target is None or from_gpu == (target == "cuda"):  # within a device
            return
        host = source if not from_gpu else args[0] if name == "aten::copy_" else None
        if not (at_once and host is not None and self._is_pinned(host)):
            self._note("read" if from_gpu else "copy", name)

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    def _note_generator(self, name: str, kwargs: Mapping[str, Any], on_gpu: bool) -> None:
        generator = kwargs.get("generator")
        if generator is not None and on_gpu and generator.initial_seed() not in self._seeds:
            self._note("generator", name)

    def _note(self, kind: Kind, operator: str) -> None:
        self.events.append(Event(kind, operator, _where()))


def _leaves(node: Any) -> Iterator[Tensor]:
    """Yield the tensors that a backward pass from this node would give gradients."""
    seen, rest = set(), [node]
    while rest:
        node = rest.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        rest += [before for before, _ in node.next_functions]


@cache
def _changed_argument(func: Any) -> tuple[int, str] | None:
    """Return place and name of the argument that an operator changes and returns, or None.

    Examples are `add_` and `out=`.
    """
    returned = func._schema.returns
    if not returned or returned[0].alias_info is None or not returned[0].alias_info.is_write:
        return None
    for place, argument in enumerate(func._schema.arguments):
        info = argument.alias_info
        if info is not None and info.is_write and info.before_set == returned[0].alias_info.before_set:
            return place, argument.name
    return None


def _fills(args: Sequence[Any]) -> bool:
    """Whether an assignment by one mask is a masked fill: its value is a single number of the host."""
    value = args[2] if len(args) > 2 else None
    return (
        len(args[1]) == 1 and value is not None and not isinstance(value, _GpuTensor) and value.numel() == 1
    )


def _compute(func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call an operator on tensors of the CPU.

    Products of 16-bit numbers are summed in float32, as on a GPU.
    """
    dtype = args[0].dtype if name in _PRODUCTS else None
    if dtype not in {torch.bfloat16, torch.float16}:
        return func(*args, **kwargs)
    wide = [item.float() if isinstance(item, Tensor) else item for item in args]
    return func(*wide, **kwargs).to(dtype)


def _map_tensors(change: Callable[[Tensor], Any], item: Any) -> Any:
    """Replace each tensor of an operator's arguments or results. Lists, tuples and dicts keep their kind."""
    if isinstance(item, Tensor):
        return change(item)
    kind = type(item)
    if kind is tuple or kind is list:
        return kind([_map_tensors(change, each) for each in item])
    if kind is dict:
        return {key: _map_tensors(change, each) for key, each in item.items()}
    if isinstance(item, (tuple, list, dict)):
        return tree_map(lambda each: change(each) if isinstance(each, Tensor) else each, item)
    return item


def _real(item: Tensor, seen: list[Tensor]) -> Tensor:
    """Return the values of a tensor, and append the tensor to `seen`."""
    seen.append(item)
    return item.held if isinstance(item, _GpuTensor) else item


def _where() -> str:
    """File and line of the program that asked for the operator."""
    torch_folder, here = f"{Path(torch.__file__).parent}{os.sep}", __file__
    for frame, line in traceback.walk_stack(None):
        name = frame.f_code.co_filename
        if name != here and not name.startswith(torch_folder):
            parts = Path(name).parts
            start = parts.index("torchvision") if "torchvision" in parts else -2
            return f"{'/'.join(parts[start:])}:{line}"
    return "torch"


@contextlib.contextmanager
def _available(gpu: FakeCuda) -> Iterator[None]:
    """Let torch use mixed precision, and make gradients up, where there is no driver."""

    def gradients(outputs: Any, inputs: Any, *_: Any, **__: Any) -> tuple[Tensor, ...]:  # noqa: ARG001
        gpu.made_up_gradients = True
        several = inputs if isinstance(inputs, Sequence) else (inputs,)
        return tuple(torch.ones_like(item) for item in several)

    def backward(tensor: Tensor, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            for leaf in _leaves(tensor.grad_fn):
                leaf.grad = torch.ones_like(leaf) if leaf.grad is None else leaf.grad + 1

    def pin(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        pinned = tensor.clone()
        gpu._pinned[pinned.untyped_storage().data_ptr()] = pinned  # kept, so that its address stays its own
        return pinned

    def stream(*_: Any, **__: Any) -> _FakeStream:
        return _FakeStream(gpu)

    only_lift, cudnn = torch._C._only_lift_cpu_tensors(), torch._C._get_cudnn_enabled()
    torch._C._set_cudnn_enabled(False)
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device="cuda")` then asks the mode, too
    if not torch.cuda.is_available():
        torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing, as for torch's own fake tensors
    with (
        mock.patch("torch.cuda._lazy_init"),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.cuda.device", contextlib.nullcontext),
        mock.patch("torch.autograd.grad", gradients),
        mock.patch("torch.Tensor.backward", backward),
        mock.patch("torch.Tensor.pin_memory", pin),
        mock.patch("torch.Tensor.record_stream", return_value=None),
        mock.patch("torch.cuda.Stream", stream),
        mock.patch("torch.cuda.Event", stream),
        mock.patch("torch.cuda.current_stream", stream),
        mock.patch("torch.cuda.stream", lambda used: used),
        mock.patch("torch.cuda.synchronize", _FakeStream(gpu).synchronize),
    ):
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(only_lift)
            torch._C._set_cudnn_enabled(cudnn)
