"""Few-shot localizer: boxes of a few images train a foreground map.

J. Choe, S. J. Oh, S. Lee, S. Chun, Z. Akata, H. Shim, "Evaluating weakly supervised object localization
methods right", CVPR 2020 (its few-shot learning baseline).

Idea. Weakly supervised methods use the boxes of a few images to choose thresholds and settings. The same
boxes can train a foreground map instead. If that map is better, the boxes were not used well.

    f      penultimate        (B, D, h, w)
    z      logits_map(..)     (B, h, w)
    S      maps_of(..)        (B, K, h, w)    the same for every class
    T      area_means(..)     (B, h, w)       in [0, 1]: the share of each cell that is object

    (1)  z = w f + b, a 1x1 convolution
    (2)  S = sigmoid(z)
    (3)  loss = mean over images and cells of -T log S - (1 - T) log(1 - S)

Backbone and grid are those of CAM. T is the mask or the filled boxes, cropped and mirrored with the image.
There are no class scores, so no accuracy can choose an epoch: the last one counts, and `val` is not read for
it. With `recipe.frozen_stages` at the number of stages, a linear layer learns from fixed features.

**Supervision: boxes or masks of the images that it is trained on** (`shots`, `of`, `split`). Records state
it. With `shots=all` it is the bound with full supervision.

The images are drawn with the seed of the run, so runs with other seeds are other draws. On data whose `train`
has no boxes (ILSVRC), `split=val` trains on 80 % of each class of `val`, and thresholds are transferred from
the other 20 %. A threshold of images that were trained on is refused.

Departures
    hold-out   The source trains on all of `val`. Its journal version holds out 20 % to choose settings.
    recipe     That of CAM with at most 50 epochs.
    head       `head=conv` is this project's.

Not checked. The code of the source was never released; the shots of a class are from its repository and the
hold-out from an author's answer there. That boxes count as filled masks, the 1x1 convolution to one map and
the loss (3) could not be compared with the paper's text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.localizer import Localizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig, parse_settings, split_settings
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import Recipe
from reference_models.layers.cells import area_means
from reference_models.layers.heads import ConvHead
from wsolbench.datasets.base import part_of
from wsolbench.datasets.subsets import draw_per_class, hold_out
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps.masks import MaskSource, has_target
from wsolbench.methods import Supervision, TrainRequest
from wsolbench.ranges import Channels
from wsolbench.system.progress import note

PAPER = "wsolevaluation"
GROUP = "ceiling"

MOST_EPOCHS = 50
"""Most epochs of the default recipe; ours. An epoch has few images."""


@dataclass(frozen=True, kw_only=True)
class FewShotConfig(MethodConfig):
    """Settings of `few-shot`."""

    shots: Literal[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, "all"] = 5
    """Images of each class to train on, or all of a class that has fewer. The source: 5 on CUB and
    OpenImages, 10 on ILSVRC."""
    of: MaskSource = "box"
    """Ground truth to learn. `any`: the mask, or the boxes of an image without one."""
    split: Literal["train", "val"] = "train"
    """Split to draw from; see the module. `val`: the source."""
    head: Literal["linear", "conv"] = "linear"
    """`linear`: eq. (1) on the backbone's features. `conv`: two 3x3 convolutions with ReLU before it, as in
    CAM; ours."""
    width: Channels = 0
    """Channels of the convolutions of `conv`. 0: 1024, or less if the backbone is small."""


def pixel_loss(z: Float[Tensor, "b h w"], target: Float[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Return the binary cross-entropy of all cells, eq. (3), in float32."""
    return F.binary_cross_entropy_with_logits(z.float(), target.float())


class FewShot(Localizer):
    """See the module."""

    method_name = "few-shot"
    Config = FewShotConfig
    config: FewShotConfig
    map_kind = "unit"

    def __init__(self, backbone: Backbone, num_classes: int, config: FewShotConfig) -> None:
        super().__init__(backbone, num_classes, config)
        depth = 0 if config.head == "linear" else 2
        width = config.width or backbone.head_width
        self.head = ConvHead(backbone.channels[-1], 1, width=width, depth=depth)

    @property
    def mask_source(self) -> MaskSource:
        """Ground truth that T is made of."""
        return self.config.of

    @property
    def supervision(self) -> Supervision:
        """Boxes or masks of the training images. Labels matter if a number of each class is drawn."""
        of = self.config.of
        return Supervision(
            labels=self.config.shots != "all", boxes=of != "mask", masks=of != "box", used_for="training"
        )

    @classmethod
    def train_split(cls, settings: Mapping[str, str]) -> str:
        """Return the split to draw from."""
        return settings.get("split", FewShotConfig.split)

    @classmethod
    def adjust_recipe(cls, name: str, recipe: Recipe, config: MethodConfig) -> Recipe:  # noqa: ARG003 - all recipes alike
        """Return the recipe with at most `MOST_EPOCHS` epochs."""
        return replace(recipe, epochs=min(recipe.epochs, MOST_EPOCHS))

    @classmethod
    def choose_images(cls, request: TrainRequest) -> TrainRequest:
        """Draw the images, by the seed of the request. No epoch is validated.

        Raises `DataError` if no image has the ground truth that `of` names.
        """
        config = parse_settings(cls.Config, split_settings(request.settings)[0], what="method 'few-shot'")
        train = request.train if config.split == "train" else hold_out(request.train, request.seed)[0]
        known = [index for index, sample in enumerate(train.samples) if has_target(sample, config.of)]
        if not known:
            what = {"mask": "masks", "box": "boxes", "any": "masks or boxes"}[config.of]
            raise DataError(
                f"method 'few-shot' with of={config.of} learns from ground-truth {what}; found none in "
                f"{train.name} {train.split}. Use another --set split or --set of"
            )
        known_part = part_of(train, known) if len(known) < len(train) else train
        shots = None if config.shots == "all" else config.shots
        drawn = draw_per_class(known_part, shots, request.seed)
        counts = Counter(sample.label for sample in drawn.samples)
        few = sum(counts[label] < (shots or 1) for label in range(len(drawn.class_names)))
        if few:
            note(f"{few:,} of {len(drawn.class_names):,} classes have fewer than {shots or 1} images to draw")
        return replace(request, train=drawn, val=None)

    def logits_map(self, f: Float[Tensor, "b d h w"]) -> Float[Tensor, "b h w"]:
        """Return z, eq. (1), of the head's input."""
        z: Tensor = self.head.classifier(f)
        return z[:, 0]

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return S for every class, and no logits."""
        stages = self.backbone.stages(images)
        f = self.head.trunk(next(reversed(stages.values())))
        z = self.logits_map(f)

        def maps_of(class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
            return z.float().sigmoid()[:, None].expand(-1, class_ids.shape[1], -1, -1)  # eq. (2)

        return ForwardPass(logits=None, maps_of=maps_of, stages=stages, penultimate=f)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the batch. Raises `UsageError` for a batch without masks."""
        if batch.masks is None:
            raise UsageError("method 'few-shot' needs the masks of a batch; train it with `wsolbench train`")
        features = next(reversed(self.backbone.stages(batch.images).values()))
        z = self.logits_map(self.head.trunk(features))
        target = area_means(batch.masks, *z.shape[1:])
        return {"binary_cross_entropy": pixel_loss(z, target)}
