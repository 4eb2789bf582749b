"""F-CAM: train a decoder of full resolution on pixels sampled from CAM.

S. Belharbi, A. Sarraf, M. Pedersoli, I. Ben Ayed, L. McCaffrey, E. Granger, "F-CAM: Full resolution class
activation maps via guided parametric upscaling", WACV 2022. Values and steps are those of the authors' code
(sbelharbi/fcam-wsol), for CUB and ResNet-50.

Idea. Class activation maps are coarse, and interpolation adds no boundary. A U-Net decoder on the features of
the classifier gives a map of the image's size. It is fitted to the CAM of the label, but only at few pixels:
in each step one of the foreground and one of the background. As each step draws other pixels, the
decoder has to agree with all of them, and follows the features in between.

    paper      name                                shape
    f          penultimate                         (B, D, h, w)    input of the linear layer of the classifier
    A          cam                                 (B, H, W)       CAM of the label, in [0, 1]
    Y+, Y-     foreground, background              (B, H, W)       drawn pixels (`seeds.py`)
    S          decoder(f, skips)                   (B, 2, H, W)    background and foreground
    S_0, S_1   areas                               (B, 2)          in pixels
    t          barrier                             ()              buffer
    lambda     config.area

    (1)  A = CAM of the label, min-max normalised, then enlarged to the image
    (2)  Y+: a square of 3 pixels around one pixel of the region above Otsu's threshold of A, which is eroded
         by a square of 11 pixels; Y-: around one of the lowest 10 % of A; pixels of both are dropped
    (3)  L_seeds = mean over all pixels of Y+ and Y- in the batch of the cross-entropy of S
    (4)  ELB(z) = -log(-z) / t if z <= -1 / t^2, else t z - log(1 / t^2) / t + 1 / t
    (5)  L = L_seeds + lambda mean over the images of (ELB(-S_1) + ELB(-S_0)) / 2, with S_c the sum of
         softmax(S)_c over the pixels
    (6)  M = softmax(S) of the foreground; the same map for every class
    (7)  with `crf` above 0, L has the further term crf E, where E is the energy of a dense CRF
         (`dense_crf.py`): the price of different labels of pixels that are near and alike in colour

The numbers of the equations are those of this file. The paper's text was not at hand. ELB is the extension of
the log-barrier by H. Kervadec et al., "Constrained deep networks: Lagrangian optimization via log-barrier
extensions", 2019. It asks for areas above 0 here; slopes rise with t, which is multiplied by 1.01 after each
epoch of the second stage, up to 10.

**Stages.** A run has two, with the relative lengths `stage_epochs`. The first one trains the classifier,
which is CAM, by the recipe. The second one trains the decoder with SGD at the constant rate `decoder_lr`;
parameters and statistics of the classifier do not change. A run of one epoch trains both at once. No epoch is
validated: the accuracy of the classifier does not depend on the decoder, so `best.safetensors` would have an
untrained one.

Decoder (`decoder.py`). It reads the steps with the role `skips`. On ResNet-50 and VGG-16 they are those of
the released decoder; on VGG-16 two convolutions come first. Networks whose steps cannot be read inside have
the ends of their stages.

Departures. The dense CRF term of the released loss is off: it needs a compiled filter there, and a coarser
grid here. `--set crf=2e-9` is its released weight, on a sum over all pairs of pixels.
Features are enlarged straight to the grid of the next skip; the released decoder doubles them first, and goes
back where that grid is the same. The released first stage is chosen by boxes of the validation images, the
released decoder, too; here each stage ends with its last epoch. VGG-16 has its default grid here; the
released one has `grid=std28`. Inception here ends with Mixed_6e, the released one with two more layers. The
released classifier of other networks has rates that are not published, so they have the recipe of CAM. If no
image of a batch has a pixel, L_seeds is 0, in the released code NaN.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.core.backbone import Backbone, read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.objectives import Objective
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import Recipe
from reference_models.layers.heads import HeadKind, HeadOutput, class_activation_maps
from reference_models.layers.maps import min_max
from reference_models.localization.f_cam.decoder import UNetDecoder
from reference_models.localization.f_cam.dense_crf import dense_crf_loss
from reference_models.localization.f_cam.seeds import draw_seeds
from reference_models.training.stages import Place, stage_if_any, stage_lr_factor
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest
from wsolbench.ranges import Channels, Count, LearningRate, Positive, PositiveShare, Range, Side, Weight

PAPER = "f-cam"

HEAD_PER_DECODER = 4
"""Width of the hidden layers of a head relative to the decoder's first block: 1024 to 256."""

_CUB = Recipe(
    source="sbelharbi/fcam-wsol, CUB, ResNet-50",
    epochs=100,
    batch_size=32,
    lr=1.7e-3,
    weight_decay=1e-4,
    milestones=(0.3, 0.6, 0.9),  # of the first stage
    bias_factor=1.0,
    last_stage_is_new=True,
)


@dataclass(frozen=True, kw_only=True)
class FCamConfig(HeadConfig):
    """Settings of `f-cam`."""

    head: HeadKind = "fc"
    """Released code: a linear layer on the mean of the features, on VGG after a 3x3 convolution."""
    stage_epochs: tuple[Count, ...] = (50, 50)
    """Relative lengths of the two stages, classifier and decoder: released code."""
    decoder_lr: LearningRate = 0.01
    """Learning rate of the decoder: released command."""
    decoder_width: Channels = 0
    """Channels of the decoder's first block. 0: 256 (released code), or less if the backbone is small."""
    erosion: Side = 11
    """Side of the square that erodes the foreground region, an odd number of pixels: released command."""
    background: PositiveShare = 0.1
    """Share of the pixels, those with the lowest values, that background is drawn from: released command."""
    dilation: Side = 3
    """Side of the square around a drawn pixel, an odd number of pixels: released command."""
    area: Weight = 0.1
    """lambda, the weight of the term that asks for both areas: released command."""
    barrier_start: Positive = 1.0
    """t at the start of the second stage: released command."""
    barrier_growth: Annotated[float, Range(1, 10)] = 1.01
    """Factor of t after each epoch of the second stage: released command."""
    barrier_limit: Positive = 10.0
    """Largest t: released command."""
    crf: Weight = 0.0
    """Weight of the dense CRF term. 2e-9: released command. 0: no such term (this project)."""
    crf_colour: Positive = 15.0
    """Standard deviation of colours in [0, 255] in this term: released command."""
    crf_distance: Positive = 100.0
    """Standard deviation of distances in this term, in pixels of the input: released command."""
    crf_side: Side = 56
    """Most cells of a side of the grid that this term is computed on: this project.

    Time grows with its fourth power. The side of the input: every pixel, as released.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.stage_epochs) != 2:
            raise UsageError(
                f"setting stage_epochs={','.join(map(str, self.stage_epochs))} of method 'f-cam' has "
                f"{len(self.stage_epochs)} lengths; expected those of the two stages: stage_epochs=50,50"
            )
        for name in ("erosion", "dilation"):
            if getattr(self, name) % 2 == 0:
                raise UsageError(
                    f"setting {name}={getattr(self, name)} of method 'f-cam': expected an odd number of "
                    "pixels, so that the square has a centre"
                )
        if self.barrier_start > self.barrier_limit:
            raise UsageError(
                f"settings barrier_start={self.barrier_start:g} and barrier_limit={self.barrier_limit:g} of "
                "method 'f-cam': expected a start that is not above the limit"
            )


def log_barrier(z: Float[Tensor, "*b"], t: Float[Tensor, ""]) -> Float[Tensor, "*b"]:
    """Return ELB, a smooth price of z > 0 that is steeper for larger t, eq. (4)."""
    knee = 1 / t.square()
    feasible = z <= -knee
    inside = -torch.where(feasible, -z, knee).log() / t
    return torch.where(feasible, inside, t * z - knee.log() / t + 1 / t)  # (4)


def seed_loss(
    scores: Float[Tensor, "b 2 H W"], foreground: Bool[Tensor, "b H W"], background: Bool[Tensor, "b H W"]
) -> Float[Tensor, ""]:
    """Return L_seeds, or 0 if no image has a pixel, eq. (3)."""
    log = scores.log_softmax(dim=1)
    taken = torch.where(foreground, log[:, 1], 0.0) + torch.where(background, log[:, 0], 0.0)
    return -taken.sum() / (foreground.sum() + background.sum()).clamp(min=1)  # (3)


def area_loss(scores: Float[Tensor, "b 2 H W"], t: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the price of small areas of foreground and background, the second term of eq. (5)."""
    areas = scores.softmax(dim=1).sum(dim=(2, 3))  # (B, 2), in pixels
    return log_barrier(-areas, t).mean()


class FCam(HeadLocalizer):
    """See the module. Logits are those of `head_localizer.py`."""

    method_name = "f-cam"
    Config = FCamConfig
    config: FCamConfig
    map_kind = "unit"
    recipes = MappingProxyType({"f_cam_cub": _CUB})
    barrier: Tensor

    def __init__(self, backbone: Backbone, num_classes: int, config: FCamConfig) -> None:
        super().__init__(backbone, num_classes, config)
        self.ready = False  # the decoder is never pretrained
        self.skips = backbone.roles.get("skips", ())
        self.decoder = UNetDecoder(
            self.head.classifier.weight.shape[1],
            [skip.channels for skip in self.skips],
            width=config.decoder_width or backbone.head_width // HEAD_PER_DECODER,
            centre=backbone.profile.kin == "vgg",
        )
        self.register_buffer("barrier", torch.tensor(config.barrier_start))

    # --- defaults for a backbone ----------------------------------------------------------------------------
    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the released recipe for ResNet-50 in place of SPA's for CUB."""
        name = super().recipe_name(backbone, num_classes)
        return "f_cam_cub" if name == "spa_cub" and read_profile(backbone).kin == "resnet" else name

    @classmethod
    def adjust_recipe(cls, name: str, recipe: Recipe, config: MethodConfig) -> Recipe:
        """Give the method's own recipe the length of the stages."""
        assert isinstance(config, FCamConfig)
        return replace(recipe, epochs=sum(config.stage_epochs)) if name in cls.recipes else recipe

    @classmethod
    def choose_images(cls, request: TrainRequest) -> TrainRequest:
        """Return the request without validation; see the module."""
        return replace(request, val=None)

    # --- the stages of a run --------------------------------------------------------------------------------
    def place_in_run(self, epoch: int | float, epochs: int) -> Place | None:
        """Return the stage of a time, or None in a run that is too short for stages."""
        return stage_if_any(epoch, epochs, self.config.stage_epochs)

    def learns(self, part: str, epoch: int, epochs: int) -> bool:
        """Return whether `classifier` or `decoder` learns in an epoch."""
        place = self.place_in_run(epoch, epochs)
        return place is None or part == ("classifier", "decoder")[place.stage]

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Freeze what does not learn, in evaluation mode."""
        for part, modules in (("classifier", (self.backbone, self.head)), ("decoder", (self.decoder,))):
            on = self.learns(part, epoch, epochs)
            for module in modules:
                module.requires_grad_(on).train(on and self.training)
                if not on:
                    module.zero_grad()

    def after_epoch(self, epoch: int, epochs: int) -> None:
        """Raise t if the decoder has learned."""
        if self.learns("decoder", epoch, epochs):
            raised = self.barrier * self.config.barrier_growth
            self.barrier.copy_(raised.clamp(max=self.config.barrier_limit))

    def objectives(self, recipe: Recipe) -> Sequence[Objective]:
        """Return the objectives of both stages. The classifier has the recipe of the run."""
        decoder = {id(parameter) for parameter in self.decoder.parameters()}
        groups = self.parameter_groups(recipe)
        for group in groups:
            group["params"] = [each for each in group["params"] if id(each) not in decoder]
        own = replace(
            recipe,
            optimizer="sgd",
            lr=self.config.decoder_lr,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="constant",
            warmup=0.0,
        )
        return [
            Objective(
                loss=super().loss,
                groups=[group for group in groups if group["params"]],
                recipe=recipe,
                is_due=lambda batch: self.learns("classifier", batch.epoch, batch.epochs),
            ),
            Objective(
                loss=self.decoder_loss,
                groups=[{"name": "decoder", "factor": 1.0, "params": list(self.decoder.parameters())}],
                recipe=own,
                is_due=lambda batch: self.learns("decoder", batch.epoch, batch.epochs),
            ),
        ]

    def lr_factor(self, recipe: Recipe, progress: float) -> float:
        """Apply the schedule of a recipe to each stage."""
        return stage_lr_factor(recipe, progress, self.place_in_run(progress * recipe.epochs, recipe.epochs))

    # --- forward pass and loss ------------------------------------------------------------------------------
    def features(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[OrderedDict[str, Tensor], list[Tensor], HeadOutput]:
        """Return the stages, the skips from fine to coarse, and the result of the head."""
        inner = {skip.name for skip in self.skips} - {stage.name for stage in self.backbone.layout}
        found: dict[str, Tensor] = {}

        def keep(step: str, x: Tensor) -> Tensor:
            if step in inner:
                found[step] = x
            return x

        stages = self.backbone.stages(images, keep if inner else None)
        found |= stages
        return stages, [found[skip.name] for skip in self.skips], self.head(next(reversed(stages.values())))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return the logits of the classifier and the map of the decoder, eq. (6)."""
        stages, skips, head = self.features(images)
        size = images.shape[-2], images.shape[-1]

        def maps_of(class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k H W"]:
            scores = self.decoder(head.penultimate, skips, size)
            foreground: Tensor = scores.float().softmax(dim=1)[:, 1:]  # (6)
            return foreground.expand(-1, class_ids.shape[1], -1, -1)

        return ForwardPass(
            logits=head.logits,
            maps_of=maps_of,
            stages=stages,
            penultimate=head.penultimate,
            weights_of=head.weights_of,
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of both stages."""
        return {**super().loss(batch), **self.decoder_loss(batch)}

    def decoder_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of eq. (5). The classifier gets no gradient."""
        size = batch.images.shape[-2], batch.images.shape[-1]
        with torch.no_grad():
            _, skips, head = self.features(batch.images)
            foreground, background = self.seeds(head.penultimate, batch, size)
        scores = self.decoder(head.penultimate, skips, size)
        with torch.autocast(scores.device.type, enabled=False):
            scores = scores.float()
            terms = {
                "seeds": seed_loss(scores, foreground, background),
                "area": self.config.area * area_loss(scores, self.barrier),
            }
            if self.config.crf > 0:
                terms["crf"] = self.config.crf * dense_crf_loss(
                    self.colours(batch.images),
                    scores.softmax(dim=1),
                    sigma_rgb=self.config.crf_colour,
                    sigma_xy=self.config.crf_distance,
                    side=self.config.crf_side,
                )  # (7)
        return terms

    def colours(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """Return the colours in [0, 255] of normalised images."""
        spec = self.backbone.input_spec
        mean, std = (images.new_tensor(values)[:, None, None] for values in (spec.mean, spec.std))
        return 255 * (images * std + mean)

    def seeds(
        self, f: Float[Tensor, "b d h w"], batch: Batch, size: tuple[int, int]
    ) -> tuple[Bool[Tensor, "b H W"], Bool[Tensor, "b H W"]]:
        """Return Y+ and Y-, eqs. (1) and (2)."""
        with torch.autocast(batch.images.device.type, enabled=False):
            weight = self.head.classifier.weight.flatten(1)  # (C, D)
            own = min_max(class_activation_maps(f.float(), weight, batch.labels[:, None]))
            cam = F.interpolate(own, size=size, mode="bilinear", align_corners=False)[:, 0]  # (1)
            return draw_seeds(
                cam,
                batch.generator,
                erosion=self.config.erosion,
                background=self.config.background,
                side=self.config.dilation,
            )  # (2)
