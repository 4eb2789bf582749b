"""The stages of a run of SSANET: which modules learn in each, and for how long.

L. Gao, H. Xu, C. Sun, J. Liu, Y.-W. Tai, "Spatial-Scale Aligned Network for Fine-Grained Recognition",
arXiv:2001.01211, 2020, section 4.1. The paper gives no lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reference_models.core.weights import digest_of_setting
from reference_models.recognition.ssanet.part_heads import PartHeadConfig
from wsolbench.ranges import CountOrZero, Positive

LENGTHS, CARS_LENGTHS = (90, 90, 90, 1), (90, 90, 45, 1)


@dataclass(frozen=True, kw_only=True)
class StageConfig(PartHeadConfig):
    """Settings of the stages. If no source is named, the paper does not give the value."""

    training: Literal["three_stage", "one_stage"] = "three_stage"
    """The paper's stages, or all at once, with which OP has little effect (paper)."""
    stage1: Literal["mac_then_dsm", "joint"] = "mac_then_dsm"
    """Whether DSM learns after 1a, with a frozen backbone, or during it."""
    stage_epochs: tuple[CountOrZero, ...] = ()
    """Epochs of 1a, 1b, 2, 3; only the last can be 0. A run of another length scales them.

    Empty: 90,90,90,1, on Cars 90,90,45,1.
    """
    part_net: str = ""
    """Checkpoint of a run with the same backbone and classes, for example `dsm=none op=false`.

    Its 1a is reused, and skipped here.
    """
    part_net_sha256: str = ""
    """Digest of that file, set when it is read."""
    module_rate: Positive = 1.0
    """Factor of the recipe's rate in 1b and 2.

    The paper uses SGD. Adam moves all weights of a logit at once: try 0.05 with flattened features.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part_net and not self.part_net_sha256:
            digest = digest_of_setting(
                self.part_net, setting="part_net of method 'ssanet'", example="ssanet, dsm=none op=false"
            )
            object.__setattr__(self, "part_net_sha256", digest)
        if not self.stage_epochs:
            object.__setattr__(
                self, "stage_epochs", CARS_LENGTHS if self.recipe == "ssanet_cars" else LENGTHS
            )


def stages_of(config: StageConfig) -> list[tuple[frozenset[str], int]]:
    """Return the trained modules of each stage of a run, and its length."""
    lengths = dict(zip(("1a", "1b", "2", "3"), config.stage_epochs, strict=True))
    there = {
        "1a": not config.part_net,
        "1b": config.dsm != "none",
        "2": config.op,
        "3": config.dsm != "none" or config.op,
    }
    names = [name for name, length in lengths.items() if there[name] and length > 0]
    together = 2 if config.stage1 == "joint" and there["1a"] and there["1b"] else 1
    groups = [names[:together], *([name] for name in names[together:])]
    if config.training == "one_stage":
        groups = [[name for name in names if name != "3"]]
    return [(frozenset(group), lengths[group[0]]) for group in groups]
