"""TriLite: frozen tokens split into foreground, background and rest.

A. Sabaghi, J. Oramas, "TriLite: efficient weakly supervised object localization with universal visual
features and tri-region disentanglement", CVPR 2026. Released code: ariansabaghi/TriLite (no licence file).

Idea. Features of a self-supervised transformer already separate objects, so the network stays frozen. Three
maps share each patch. The foreground must classify the image, and the background must not. The third map
takes what is salient and does neither, so that it stays out of both.

    paper      name                                    shape
    X          stages[last block]                      (B, D, h, w)   patch tokens before the final norm
    c_0        class_token                             (B, D)         class token before the final norm
    P_r        split_regions(..)                       (B, 3, h, w)   r: foreground, background, third
    f_r        pool_region(P_r, X)                     (B, D)
    V, b       patch_classifier                        (C, D), (C,)
    U, b'      global_classifier                       (C, D), (C,)
    alpha      alpha                                   a number

    (1)  P = softmax over the three channels of BN(conv3x3(X)), no bias
    (2)  f_r = sum_i P_ri X_i / (sum_i P_ri + 1e-6), r foreground or background
    (3)  s_r = V drop(f_r) + b
    (4)  s = U drop(c_0) + b'
    (5)  L = CE(s, y) + CE(s_fg, y) + alpha mean of -log(1 - softmax(s_bg)_y + 1e-7)

The map is P_fg, the same for every class, and the label comes from s. Trained are the convolution, its batch
norm, V and U: 780,374 numbers for 1,000 classes. **The backbone's parameters and buffers never change.** With
`--weights none` its random features stay, which is useful for tests only. The loss terms share no trained
parameter but V and the maps, so U could be trained apart.

Sizes. Training crops have 224 pixels, and test images 448: a grid of 32 x 32 for patches of 14. A checkpoint
holds the training size, and loading it multiplies this by the setting `test_scale`, 2. Validation in training
has the training size, as in the released code. `--image-size` is the training size.

Weights that each published number needs, by their names in timm: `vit_small_patch14_dinov2` (.lvd142m),
without registers. timm interpolates its positions, made for 37 x 37 patches, with antialiasing, the original
code without; features differ slightly. The released evaluation tries thresholds in steps of 0.005 on the test
images, and on ILSVRC and OpenImages any contour counts, not the largest alone (`multi_contour_eval`): its
GT-known is MaxBoxAcc at IoU 0.5, and not that of methods with one box.

Departures. The released code stops early: the best epochs by boxes or masks of `val` for the head, and by
accuracy for U, which one file mixes. Here a run has a fixed length without boxes (`core/token_recipes.py`).
Channel 0 is the foreground, as the losses make it; a comment of the code calls it background. The released
configuration for OpenImages is `--image-size 448 --set recipe=trilite_openimages --set alpha=3 --set
dropout=0 --set test_scale=1`.

Not checked: the text of the paper, and any published number. No pretrained weights were at hand.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.base.pooled_recognizer import take_out
from reference_models.base.token_localizer import TokenLocalizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import MANY_CLASSES, Recipe
from reference_models.core.token_recipes import TOKEN_RECIPES
from reference_models.layers.heads import cross_entropy
from wsolbench.ranges import Positive, Range, ShareBelow1, Weight
from wsolbench.system.progress import note
from wsolbench.types import Dataset

PAPER = "trilite"

PUBLISHED: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "cub": MappingProxyType({"alpha": 100.0, "dropout": 0.5, "class_dropout": 0.5, "class_rate": 10.0}),
        "ilsvrc": MappingProxyType(
            {"alpha": 500.0, "dropout": 0.25, "class_dropout": 0.25, "class_rate": 50.0}
        ),
    }
)
"""Settings of the released configurations."""

SIDE = 224
"""Default side of training crops: released configurations for CUB and ILSVRC."""


@dataclass(frozen=True, kw_only=True)
class TriLiteConfig(MethodConfig):
    """Settings of `trilite`.

    None stands for the released value for CUB, or for ILSVRC if there are 500 classes or more.
    """

    at_test: ClassVar[frozenset[str]] = frozenset({"test_scale"})

    alpha: Weight | None = None
    """Weight of the background term of (5): 100 (CUB) or 500 (ILSVRC)."""
    dropout: ShareBelow1 | None = None
    """Dropout of the region features in (3): 0.5 or 0.25."""
    class_dropout: ShareBelow1 | None = None
    """Dropout of the class token in (4): 0.5 or 0.25."""
    class_rate: Positive | None = None
    """Learning rate of U, relative to the other layers: 10 or 50."""
    test_scale: Annotated[float, Range(0.25, 8)] = 2.0
    """Side of the input of a loaded model, relative to that in training: 448 of 224 in the released code.

    It is rounded to whole patches.
    """


def split_regions(logits: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Return P, which adds up to 1 in each patch, in float32, eq. (1)."""
    return logits.float().softmax(dim=1)  # (1)


def pool_region(region: Float[Tensor, "b h w"], features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d"]:
    """Return f_r, the mean of the features weighted by a region, in float32, eq. (2)."""
    with torch.autocast(region.device.type, enabled=False):
        weights = region.float()[:, None]
        return (weights * features.float()).sum(dim=(2, 3)) / (weights.sum(dim=(2, 3)) + 1e-6)  # (2)


def background_loss(logits: Float[Tensor, "b c"], labels: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    """Return the mean of -log(1 - p_y + 1e-7), from 0 for p_y = 0 to 16.1 for p_y = 1, eq. (5)."""
    right = logits.float().softmax(dim=1).gather(1, labels[:, None])
    return -(1 - right + 1e-7).log().mean()


class TriLite(TokenLocalizer):
    """See the module."""

    method_name = "trilite"
    Config = TriLiteConfig
    config: TriLiteConfig
    map_kind = "unit"
    recipes = MappingProxyType(
        {name: TOKEN_RECIPES[name] for name in ("trilite_cub", "trilite_ilsvrc", "trilite_openimages")}
    )

    def __init__(self, backbone: Backbone, num_classes: int, config: TriLiteConfig) -> None:
        published = PUBLISHED["cub" if num_classes < MANY_CLASSES else "ilsvrc"]
        values: dict[str, Any] = {
            name: value if getattr(config, name) is None else getattr(config, name)
            for name, value in published.items()
        }
        super().__init__(backbone, num_classes, replace(config, **values))
        self.alpha, self.class_rate = values["alpha"], values["class_rate"]
        width = backbone.channels[-1]
        self.backbone.requires_grad_(False)
        self.region_head = nn.Sequential(nn.Conv2d(width, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
        self.drop_regions, self.drop_class = (
            nn.Dropout(values["dropout"]),
            nn.Dropout(values["class_dropout"]),
        )
        self.patch_classifier, self.global_classifier = (
            nn.Linear(width, num_classes),
            nn.Linear(width, num_classes),
        )

    @classmethod
    def default_size(cls, backbone: str, num_classes: int) -> int | None:  # noqa: ARG003 - one size for all
        """Return 224. The size that DINOv2 was trained with is 518."""
        return SIDE

    @classmethod
    def load(
        cls, checkpoint: Path, *, device: str = "auto", settings: Mapping[str, str] = MappingProxyType({})
    ) -> TriLite:
        """Load a trained model for images that are `test_scale` times as large as in training."""
        model = super().load(checkpoint, device=device, settings=settings)
        spec, patch = model.input_spec, model.backbone.layout[-1].stride
        side = patch * max(1, round(spec.size * model.config.test_scale / patch))
        model.input_spec = replace(spec, size=side)
        return model

    def before_training(self, train: Dataset) -> None:
        """Say so if the features, which never change, are random."""
        del train
        if self.backbone.weights.sha256 is None:
            note("trilite keeps its backbone as it is, and the weights of this one are random")

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Keep the whole backbone out of training."""
        del epoch, epochs
        self.backbone.requires_grad_(False).eval()

    def read(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[OrderedDict[str, Tensor], Float[Tensor, "b d h w"], Float[Tensor, "b d"]]:
        """Return the stages, X and c_0 from one pass. In training they have no graph."""
        last, kept = self.backbone.blocks[-1], dict[str, Tensor]()

        def keep(name: str, x: Tensor) -> Tensor:
            if name == last:
                kept[name] = x
            return x

        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            stages = self.backbone.stages(images, keep)
        return stages, stages[last], kept[last][:, 0]

    def score_regions(
        self, features: Float[Tensor, "b d h w"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b c"], Float[Tensor, "b c"]]:
        """Return P, and the class scores of the foreground and of the background."""
        regions = split_regions(self.region_head(features))
        front, back = (
            self.patch_classifier(self.drop_regions(pool_region(regions[:, channel], features)))  # (3)
            for channel in (0, 1)
        )
        return regions, front, back

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return the logits of the class token, and P_fg as the map of every class."""
        stages, features, class_token = self.read(images)
        regions = split_regions(self.region_head(features))
        return ForwardPass(
            logits=self.global_classifier(self.drop_class(class_token)),  # (4)
            maps_of=lambda class_ids: regions[:, :1].expand(-1, class_ids.shape[1], -1, -1),
            stages=stages,
            penultimate=features,
            extra_maps={"background": regions[:, 1], "third": regions[:, 2]},
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of eq. (5)."""
        _, features, class_token = self.read(batch.images)
        _, front, back = self.score_regions(features)
        logits = self.global_classifier(self.drop_class(class_token))  # (4)
        return {
            "cross_entropy": cross_entropy(logits, batch.labels),
            "foreground": cross_entropy(front, batch.labels),
            "background": self.alpha * background_loss(back, batch.labels),
        }  # (5)

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Return the groups of `Model`, with U at `class_rate` times the rate of the others."""
        groups = super().parameter_groups(recipe)
        take_out(groups, "classifier", list(self.global_classifier.parameters()), factor=self.class_rate)
        return groups
