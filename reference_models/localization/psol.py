"""PSOL: regress one box, learned from boxes of the class's images.

C.-L. Zhang, Y.-H. Cao, J. Wu, "Rethinking the route towards weakly supervised object localization", CVPR
2020. Values and steps are those of the authors' code (tzzcl/PSOL).

Idea. Localization asks for one box, and neither a class nor a threshold has anything to do with it. So a
network regresses that box directly. It learns from pseudo boxes, which deep descriptor transforming (DDT)
finds in the training images: the part in which the images of a class agree.

    symbol    name                         shape
    F         descriptors                  (n, D, h, w)    of the n images of a class
    p         Direction.heat               (n, h, w)
    b         pseudo_boxes                 (N, 4)          buffer, of all training images, xyxy in shares
    f         GAP of the last stage        (B, D)
    W1, W2    hidden, output               (512, D), (4, 512)
    r         regress                      (B, 4)          corner x, y, and sides w, h, in shares
    t         corner_and_sides(extents)    (B, 4)          b in the view that is trained on

    (1)  p = v^T (F - m): m and v are the mean and the first principal direction of all cells of all images
         of the class
    (2)  b = the box around the largest 8-connected component of p > 0
    (3)  r = sigmoid(W2 relu(W1 f))
    (4)  L = 50 mean over the batch and the four numbers of (r - t)^2

    M = 1 in the pixels whose centre is in the box r, else 0; the same map for every class

The numbers of the equations are those of this file.

A run. Before the first epoch, the network with its initial weights finds b, in images twice as large as those
of the training. Images of a class are the only use of labels. The boxes are a buffer, so checkpoints and
the state of an interrupted run have them. They become masks that are cropped and mirrored with the images,
and t is the extent of such a mask. An image without a positive cell has no box, and no part in (4).

The sign of v is that with which inner cells have the higher p, in the mean over the images of the class
(`layers/descriptors.py`). The weights have to be pretrained: the descriptors of random ones know no objects.

The map is a box, so the threshold has no effect. There is no classifier. Evaluate GT-known and MaxBoxAcc; the
published Top-1 Loc has the labels of a separate network: store the boxes and use `wsolbench score` with its
predictions.

Departures from released code
    network    VGG-16 finds the boxes for every regressor there. Here the network that is trained does.
    features   On VGG-16, 28x28 cells are max-pooled to 14x14, which is pool 5. The regressor has no pool 5.
    sign       That of a library's decomposition there.
    no box     An image without a positive cell has the whole image as its box there (in earlier versions 14 x
               14 of 448 pixels in its corner), and is learned from. Here it is left out of the loss.
    views      Random parts of random size and aspect there, here the crop and mirror of all methods.
    recipe     Its schedule never lowers the rate, so the rate is constant. The six epochs are few steps on a
               small data set. Below 500 classes, the recipe is that of C2AM's copy of this regressor: twice
               the rate, 64 images a step, 100 epochs, cosine schedule.
    test       A centre crop there.

The paper's text was not at hand: (1) to (4) are those of the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from reference_models.base.localizer import Localizer
from reference_models.core.backbone import Backbone, read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass, Proposals
from reference_models.core.recipes import Recipe
from reference_models.layers.descriptors import (
    check_inner_cells,
    largest_box,
    pool_descriptors,
    principal_direction,
)
from reference_models.training.passes import Passes
from wsolbench.exceptions import UsageError
from wsolbench.maps.masks import MaskSource
from wsolbench.ranges import Range, SideOrDefault
from wsolbench.system.progress import note, track
from wsolbench.types import Dataset

PAPER = "psol"

LOSS_WEIGHT = 50.0
"""Factor of the squared error, eq. (4)."""
KEPT_BYTES = 1 << 30
"""Most bytes of descriptors of a class that are kept for the second pass. More are computed again."""

_ILSVRC = Recipe(
    source="tzzcl/PSOL",
    epochs=6,
    batch_size=256,
    lr=1e-3,
    weight_decay=1e-4,
    schedule="constant",
    new_factor=2.0,
    bias_factor=1.0,
)
_CUB = replace(
    _ILSVRC,
    source="CVI-SZU/CCAM, its copy of PSOL's regressor",
    epochs=100,
    batch_size=64,
    lr=2e-3,
    schedule="cosine",
)


@dataclass(frozen=True, kw_only=True)
class PsolConfig(MethodConfig):
    """Settings of `psol`."""

    width: Annotated[int, Range(1, 65_536)] = 512
    """Units of the hidden layer."""
    box_size: SideOrDefault = 0
    """Side of the images in which pseudo boxes are found. 0: twice that of the input; released code: 448."""
    cells: Annotated[int, Range(3, 112)] = 14
    """Most cells of a side in which pseudo boxes are found. A finer grid is max-pooled to it."""


def extents(masks: Float[Tensor, "b h w"]) -> tuple[Float[Tensor, "b 4"], Bool[Tensor, " b"]]:
    """Return the box around each mask, xyxy in shares of the sides, and whether the mask has any pixel.

    The outermost pixels count by their value: it is the share of the pixel that a filled box covers.
    """
    left, right = _span(masks.amax(dim=1))
    top, bottom = _span(masks.amax(dim=2))
    return torch.stack([left, top, right, bottom], dim=1), masks.amax(dim=(1, 2)) > 0


def _span(profile: Float[Tensor, "b n"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return where the positive values of each row begin and end, in shares of its length."""
    count = profile.shape[1]
    shares = profile / profile.amax(dim=1, keepdim=True).clamp(min=1e-6)  # thin along the other axis
    places, inside = torch.arange(count, device=profile.device), shares > 0
    first = torch.where(inside, places, count - 1).amin(dim=1, keepdim=True)
    last = torch.where(inside, places, 0).amax(dim=1, keepdim=True)
    low = first + 1 - shares.take_along_dim(first, dim=1)
    high = last + shares.take_along_dim(last, dim=1)
    return low[:, 0] / count, high[:, 0] / count


def corner_and_sides(boxes: Float[Tensor, "b 4"]) -> Float[Tensor, "b 4"]:
    """Convert xyxy to the corner and the sides, as r is."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)


def both_corners(regressed: Float[Tensor, "b 4"]) -> Float[Tensor, "b 4"]:
    """Convert r to xyxy, cut to the image."""
    return torch.cat([regressed[:, :2], regressed[:, :2] + regressed[:, 2:]], dim=1).clamp(0, 1)


def box_loss(
    regressed: Float[Tensor, "b 4"], target: Float[Tensor, "b 4"], known: Bool[Tensor, " b"]
) -> Float[Tensor, ""]:
    """Return L, eq. (4), over the images with a box. It is 0 if there are none."""
    errors = (regressed - target).square().mean(dim=1) * known
    return LOSS_WEIGHT * errors.sum() / known.sum().clamp(min=1)  # (4)


def fill(boxes: Float[Tensor, "b 4"], height: int, width: int) -> Float[Tensor, "b h w"]:
    """Return M for boxes in shares of the sides. A box has at least the pixel that its centre is in."""
    across, down = (
        _inside(boxes[:, axis], boxes[:, axis + 2], side) for axis, side in ((0, width), (1, height))
    )
    return (down[:, :, None] & across[:, None, :]).float()


def _inside(low: Float[Tensor, " b"], high: Float[Tensor, " b"], side: int) -> Bool[Tensor, "b side"]:
    pixels = torch.arange(side, device=low.device)
    centres = (pixels + 0.5) / side
    middle = ((low + high) / 2 * side).long().clamp(max=side - 1)
    return ((centres >= low[:, None]) & (centres < high[:, None])) | (pixels == middle[:, None])


def keep_if_small(
    batches: Callable[[], Iterator[Tensor]], most_bytes: int = KEPT_BYTES
) -> Callable[[], Iterator[Tensor]]:
    """Return a function that yields the same batches, from memory if they fit."""
    kept, used = [], 0
    for features in batches():
        used += features.nbytes
        if used > most_bytes:
            return batches
        kept.append(features)
    return lambda: iter(kept)


class Psol(Localizer):
    """See the module."""

    method_name = "psol"
    Config = PsolConfig
    config: PsolConfig
    map_kind = "unit"
    recipes = MappingProxyType({"psol_cub": _CUB, "psol_ilsvrc": _ILSVRC})
    pseudo_boxes: Tensor
    """b of all training images, (N, 4); (0, 0, 0, 0) for none. Empty before a training."""

    def __init__(self, backbone: Backbone, num_classes: int, config: PsolConfig) -> None:
        super().__init__(backbone, num_classes, config)
        self.hidden = nn.Linear(backbone.channels[-1], config.width)
        self.output = nn.Linear(config.width, 4)
        self.register_buffer("pseudo_boxes", torch.zeros(0, 4))

    # --- defaults for a backbone ----------------------------------------------------------------------------
    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """Return the network as it was pretrained, where the backbone has it: 14x14 cells at 448."""
        return read_profile(backbone).grid(config.grid, "fine-grained")

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the released recipes in place of SPA's."""
        name = super().recipe_name(backbone, num_classes)
        return {"spa_cub": "psol_cub", "spa_ilsvrc": "psol_ilsvrc"}.get(name, name)

    # --- pseudo boxes ---------------------------------------------------------------------------------------
    @torch.no_grad()
    def before_training(self, train: Dataset) -> None:
        """Find the pseudo boxes of all classes, unless a resumed run has them.

        Raises `UsageError` if the grid is too small for the rule of the sign.
        """
        if len(self.pseudo_boxes):
            return
        self.eval()
        device, labels = self.pseudo_boxes.device, np.array([sample.label for sample in train.samples])
        size = self.config.box_size or 2 * self.input_spec.size
        passes = Passes(
            train=train, model=self, device=device, workers=1, cache=0.0, size=size, with_masks=False
        )
        found = np.zeros((len(train), 4))
        with track(description=f"finding boxes in {train.name} {train.split}", total=len(train)) as bar:
            for label in np.unique(labels):
                own = np.flatnonzero(labels == label)
                found[own] = self.find_boxes(passes, own)
                bar.advance(len(own))
        self.pseudo_boxes = torch.from_numpy(found).to(self.pseudo_boxes)
        if without := int((found[:, 2] == 0).sum()):
            note(f"{without:,} of {len(train):,} training images have no pseudo box and are not learned from")

    def find_boxes(self, passes: Passes, chosen: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n 4"]:
        """Return b of the images of one class, eqs. (1) and (2)."""
        batches = keep_if_small(
            lambda: (
                check_inner_cells(self.descriptors(batch.images), who=self.method_name)
                for batch in passes(chosen)
            )
        )
        direction = principal_direction(batches())
        heats = (heat for features in batches() for heat in direction.heat(features).cpu().numpy())  # (1)
        return np.stack([largest_box(heat) for heat in heats])  # (2)

    def descriptors(self, images: Float[Tensor, "n 3 S S"]) -> Float[Tensor, "n d h w"]:
        """Return F, the features of the last stage on at most `cells` x `cells` cells."""
        features = next(reversed(self.backbone.stages(images).values()))
        return pool_descriptors(features, self.config.cells)

    def fit_buffers(self, tensors: Mapping[str, Tensor]) -> None:
        """Make room for the pseudo boxes of a checkpoint."""
        if "pseudo_boxes" in tensors:
            self.pseudo_boxes = self.pseudo_boxes.new_zeros(tensors["pseudo_boxes"].shape)

    @property
    def mask_source(self) -> MaskSource:
        """Boxes: those of `training_targets`."""
        return "box"

    def training_targets(self, train: Dataset) -> Dataset:
        """Return the images with their pseudo boxes, and without any ground truth.

        The frame of the boxes is one pixel, so that no image file is opened for its size.
        """
        samples = [
            replace(sample, size=(1, 1), boxes=box, mask_paths=(), ignore_path=None, key_points=None)
            for sample, box in zip(
                train.samples, self.pseudo_boxes.double().cpu().numpy()[:, None], strict=True
            )
        ]
        return replace(train, samples=samples)

    # --- forward pass and loss ------------------------------------------------------------------------------
    def regress(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 4"]:
        """Return r, in float32."""
        pooled = features.mean(dim=(2, 3))
        regressed: Tensor = self.output(self.hidden(pooled).relu()).float().sigmoid()  # (3)
        return regressed

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return M, the box as a proposal, and no logits."""
        stages, (height, width) = self.backbone.stages(images), images.shape[2:]
        features = next(reversed(stages.values()))
        boxes = both_corners(self.regress(features))

        def maps_of(class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
            return fill(boxes, height, width)[:, None].expand(-1, class_ids.shape[1], -1, -1)

        def propose() -> Proposals:
            sides = boxes.new_ones(4)
            sides[0::2], sides[1::2] = width, height
            return Proposals(boxes=(boxes * sides)[:, None], scores=boxes.new_ones(len(boxes), 1))

        return ForwardPass(logits=None, maps_of=maps_of, stages=stages, penultimate=features, propose=propose)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the batch. Labels are not read.

        Raises `UsageError` for a batch without masks.
        """
        if batch.masks is None:
            raise UsageError("method 'psol' needs the masks of a batch; train it with `wsolbench train`")
        boxes, known = extents(batch.masks.float())
        regressed = self.regress(next(reversed(self.backbone.stages(batch.images).values())))
        return {"box": box_loss(regressed, corner_and_sides(boxes), known)}
