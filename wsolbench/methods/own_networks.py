"""Networks that wsolbench did not build, as methods: any classifier of torch, and pytorch-grad-cam objects.

Both adapters fulfil `wsolbench.methods.Method`, so an evaluation and `wsolbench.predict` treat them as any
other method. They leave the network where it is, and put it into evaluation mode.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from wsolbench.exceptions import DataError, UsageError, unknown_name
from wsolbench.methods.contracts import InputSpec, Localization

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def is_module(value: object) -> bool:
    """Whether a value is a `torch.nn.Module`. Does not import torch."""
    import sys

    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def is_cam(value: object) -> bool:
    """Whether a value is called as pytorch-grad-cam's objects are: with `input_tensor` and `targets`."""
    if not callable(value) or is_module(value):
        return False
    try:
        names = inspect.signature(value).parameters
    except (TypeError, ValueError):
        return False
    return {"input_tensor", "targets"} <= set(names)


class _Network:
    """Common part of the adapters: a network and what its input looks like."""

    trainable: ClassVar[bool] = False
    ready = True
    class_names: tuple[str, ...] = ()

    def __init__(self, network: nn.Module, name: str, num_classes: int, input_spec: InputSpec) -> None:
        self.network, self.method_name = network, name
        self.num_classes, self.input_spec = num_classes, input_spec

    @property
    def device(self) -> str:
        """Device of the network's parameters, or `cpu` if it has none."""
        return next((str(tensor.device) for tensor in self.network.parameters()), "cpu")

    def to(self, device: torch.device) -> None:
        """Move the network to a device."""
        self.network.to(device)

    def eval(self) -> None:
        """Put the network into evaluation mode."""
        self.network.eval()

    def describe(self) -> dict[str, Any]:
        """Return name, class, input and digest of the network, for the record."""
        spec = self.input_spec
        return {
            "method": self.method_name,
            "backbone": type(self.network).__name__,
            "config": {**self._settings(), "mean": list(spec.mean), "std": list(spec.std)},
            "image_size": spec.size,
            "num_classes": self.num_classes,
            "parameters": sum(tensor.numel() for tensor in self.network.parameters()),
            "weights": {"name": f"{type(self.network).__qualname__}.state_dict()", "sha256": self._digest},
        }

    def _settings(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _digest(self) -> str:
        """SHA-256 of names, shapes and values of the network's state."""
        import torch

        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _checked(self, output: Any) -> Tensor:
        """Return the class scores (B, C) in a network's output. Raises `DataError` if there are none."""
        logits: Any = getattr(output, "logits", output)
        shape = getattr(logits, "shape", None)
        if shape is None or len(shape) != 2 or shape[1] != self.num_classes:
            found = type(output).__name__ if shape is None else f"shape {tuple(shape)}"
            raise DataError(
                f"network {type(self.network).__name__} returns {found}; expected class scores (B, "
                f"{self.num_classes}), one for each class of the data set"
            )
        return logits  # type: ignore[no-any-return]


class _Pass(Localization):
    """Result of a forward pass through a classifier, and the features of one layer."""

    def __init__(
        self, logits: Tensor, features: Tensor, layer: str, rerun: Callable[..., Localization]
    ) -> None:
        self._logits, self._features, self._layer, self._rerun = logits, features, layer, rerun

    @property
    def logits(self) -> Tensor:
        """(B, C) class scores, with a graph from the features."""
        return self._logits

    @property
    def stages(self) -> OrderedDict[str, Tensor]:
        """The features (B, D, h, w) of the layer, by its name."""
        return OrderedDict({self._layer: self._features})

    @property
    def rerun(self) -> Callable[[Callable[[Tensor], Tensor]], Localization]:
        """See `Localization.rerun`."""
        return self._rerun

    def score_maps(self, class_ids: Tensor) -> Tensor:
        """Return the class activation maps (B, K, h, w) of the given classes."""
        import torch

        maps = []
        for ids in class_ids.unbind(dim=1):
            score = self._logits.gather(1, ids[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, self._features, retain_graph=True)
            weights = gradient.sum(dim=(2, 3), keepdim=True)  # (B, D, 1, 1)
            maps.append((weights * self._features).sum(dim=1).detach())
        return torch.stack(maps, dim=1)


class TorchClassifier(_Network):
    """A classifier of torch, and the layer whose features make its maps.

    The map of class c is sum_k w_k A_k, where A are the features of the layer and w_k is the gradient of
    the class score with respect to A_k, summed over the pixels. If mean pooling and a linear layer follow, w
    are the weights of that layer, and the map is CAM without its bias. Post-processes such as `grad-cam`
    read the features and the same gradients.

    Args:
        network: maps (B, 3, S, S) to class scores (B, C), or to an object with the attribute `logits`.
        layer: the layer, or its name in `network.named_modules()`. Its output is (B, D, h, w).
        num_classes: number of class scores.
        input_spec: size and normalisation of the input.
        name: name of the method in records.
    """

    def __init__(
        self,
        network: nn.Module,
        layer: str | nn.Module,
        *,
        num_classes: int,
        input_spec: InputSpec,
        name: str = "cam",
    ) -> None:
        super().__init__(network, name, num_classes, input_spec)
        self.layer_name, self.layer = _find_layer(network, layer)

    def localize(self, images: Tensor, *, gradients: bool = True) -> _Pass:  # noqa: ARG002 - always kept
        """Run one forward pass. Its graph starts at the features of the layer."""
        import torch

        seen: list[Tensor] = []

        def capture(_module: object, _inputs: object, output: Any) -> Any:
            if not hasattr(output, "ndim") or output.ndim != 4:
                found = f"shape {tuple(output.shape)}" if hasattr(output, "shape") else type(output).__name__
                raise UsageError(
                    f"layer {self.layer_name!r} of {type(self.network).__name__} gives {found}; expected "
                    "features (B, D, h, w). Choose another layer"
                )
            seen.append(output.detach().requires_grad_())
            return seen[-1].clone()  # the next layer may change its input in place

        handle = self.layer.register_forward_hook(capture)
        try:
            with torch.enable_grad():
                logits = self._checked(self.network(images))
        finally:
            handle.remove()
        if not seen or not logits.requires_grad:
            raise UsageError(
                f"the class scores of {type(self.network).__name__} do not depend on layer "
                f"{self.layer_name!r}; expected a layer between the image and the scores"
            )
        return _Pass(logits, seen[-1], self.layer_name, lambda change: self.localize(change(images)))

    def _settings(self) -> dict[str, Any]:
        return {"layer": self.layer_name}


def _find_layer(network: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    """Return name and layer. Raises `UsageError` for one that the network does not have."""
    layers = {name: module for name, module in network.named_modules() if name}
    if isinstance(layer, str):
        if layer not in layers:
            near = [name for name in layers if name.count(".") <= layer.count(".")]
            raise unknown_name(f"layer of {type(network).__name__}", layer, near)
        return layer, layers[layer]
    for name, module in layers.items():
        if module is layer:
            return name, module
    raise UsageError(
        f"layer {type(layer).__name__} is not a part of {type(network).__name__}; expected one of its "
        "modules, or the name of one"
    )


class ClassTarget:
    """The score of a class, as pytorch-grad-cam expects a target: a function of one image's output."""

    def __init__(self, label: int) -> None:
        self.label = label

    def __call__(self, output: Any) -> Any:
        """Return the class score of an output (C,) or (B, C)."""
        return getattr(output, "logits", output)[..., self.label]


class _CamPass(Localization):
    """Maps that a pytorch-grad-cam object computes when they are asked for."""

    def __init__(self, owner: CamObject, images: Tensor) -> None:
        self._owner, self._images = owner, images
        self._logits: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """(B, C) class scores: of the pass that made the maps, or else of a pass of its own."""
        import torch

        if self._logits is None:
            with torch.no_grad():
                self._logits = self._owner._checked(self._owner.network(self._images))
        return self._logits

    def score_maps(self, class_ids: Tensor) -> Tensor:
        """Return the maps (B, K, H, W) of the given classes."""
        import torch

        cam, maps = self._owner.cam, []
        for ids in class_ids.unbind(dim=1):
            with torch.enable_grad():
                found = cam(input_tensor=self._images, targets=[ClassTarget(label) for label in ids.tolist()])
            maps.append(torch.as_tensor(found, dtype=torch.float32))
        if (outputs := getattr(cam, "outputs", None)) is not None:
            self._logits = self._owner._checked(outputs).detach()
        return torch.stack(maps, dim=1)


class CamObject(_Network):
    """An object of pytorch-grad-cam, for instance `GradCAM(model=..., target_layers=[...])`.

    Any object works that has the network as `model`, is called as `cam(input_tensor=..., targets=[...])` and
    returns maps (B, H, W). Those of pytorch-grad-cam have the size of the input and are min-max normalised
    before they are upsampled. Raises `UsageError` for an object without `model`.
    """

    def __init__(self, cam: Any, *, num_classes: int, input_spec: InputSpec, name: str | None = None) -> None:
        network: Any = getattr(cam, "model", None)
        if not is_module(network):
            raise UsageError(
                f"{type(cam).__name__} has no network in its attribute `model`; expected an object such as "
                "pytorch_grad_cam.GradCAM(model=..., target_layers=[...])"
            )
        super().__init__(network, name or type(cam).__name__, num_classes, input_spec)
        self.cam = cam

    def to(self, device: torch.device) -> None:
        """Move the network to a device, and let the object send its input there."""
        super().to(device)
        if hasattr(self.cam, "device"):
            self.cam.device = device

    def localize(self, images: Tensor) -> _CamPass:
        """Return a result that computes maps and class scores when they are read."""
        return _CamPass(self, images)

    def _settings(self) -> dict[str, Any]:
        names: Mapping[int, str] = {id(module): name for name, module in self.network.named_modules()}
        layers: Iterable[Any] = getattr(self.cam, "target_layers", ())
        return {
            "library": type(self.cam).__module__.partition(".")[0],
            "class": type(self.cam).__name__,
            "layers": [names.get(id(layer), type(layer).__name__) for layer in layers],
        }
