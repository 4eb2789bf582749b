"""Batch norm with running statistics for each kind of input: whole images, and crops of parts.

S. Ioffe, C. Szegedy, "Batch normalization: Accelerating deep network training by reducing internal covariate
shift", ICML 2015.

NTS-Net, SSANET and Focus-and-Discriminate pass whole images and crops of parts through one network, one kind
at a time. TASN does so with two views of an image. In training each pass is normalised by the statistics of
its own batch. The running statistics that replace them at test are, in released code, shared: a mixture of
both kinds, which fits neither. `norm_statistics=per_input` gives the crops running statistics of their own.
Weights and biases are shared.

As long as every layer normalises by its batch, running statistics take no part in training: both settings
then train the same weights, and differ at test. Frozen layers use their running statistics in training, too.

DCL is an exception. With `shared` its whole and shuffled images are one batch, as in its released code, and
are normalised together. With `per_input` each kind is normalised by its own batch, so the weights differ too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from reference_models.core.config import MethodConfig

NormStatistics = Literal["shared", "per_input"]
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of batch norm that belong to one kind of input."""


@dataclass(frozen=True, kw_only=True)
class PartInputConfig(MethodConfig):
    """Settings of methods that pass both images and crops of parts through their backbone."""

    later: ClassVar[frozenset[str]] = frozenset({"norm_statistics"})

    norm_statistics: NormStatistics = "shared"
    """Running statistics of batch norm: `shared` by images and parts (released code), or `per_input`.

    With `per_input`, parts have a running mean and variance of their own.
    """


class PartStatistics(nn.Module):
    """Running statistics of a backbone's batch norm for crops of parts.

    They start as copies of the backbone's. They are buffers of this module and not of the backbone, so a
    backbone's checkpoint fits any setting. With `shared` there are none.
    """

    def __init__(self, backbone: nn.Module, setting: NormStatistics) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        for name, layer in backbone.named_modules() if setting == "per_input" else ():
            if isinstance(layer, _BatchNorm) and layer.track_running_stats:
                own = nn.Module()
                for buffer in BUFFERS:
                    own.register_buffer(buffer, layer.get_buffer(buffer).clone())
                self.layers[name.replace(".", "/")] = own

    @torch.no_grad()
    def start_from(self, backbone: nn.Module) -> None:
        """Copy the running statistics of the backbone, as at construction."""
        for name, own in self.layers.items():
            theirs = backbone.get_submodule(name.replace("/", "."))
            for buffer in BUFFERS:
                own.get_buffer(buffer).copy_(theirs.get_buffer(buffer))

    @contextlib.contextmanager
    def in_use(self, backbone: nn.Module) -> Iterator[None]:
        """Let the backbone read and update these statistics in a `with` statement, instead of its own.

        Only references are exchanged: no values are copied.
        """
        self._exchange(backbone)
        try:
            yield
        finally:
            self._exchange(backbone)

    def _exchange(self, backbone: nn.Module) -> None:
        # Layers are found by name, because torchrun replaces them by their synchronised form.
        for name, own in self.layers.items():
            theirs, mine = backbone.get_submodule(name.replace("/", "."))._buffers, own._buffers
            for buffer in BUFFERS:
                theirs[buffer], mine[buffer] = mine[buffer], theirs[buffer]
