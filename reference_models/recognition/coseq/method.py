"""CoSeq: classify the object and parts found by aligning outlines.

J. Krause, H. Jin, J. Yang, L. Fei-Fei, "Fine-grained recognition without part annotations", CVPR 2015.
Released code: jkrause314/fg_without (MATLAB, Caffe, R-CNN).

**Extra supervision: training reads the ground-truth box of every training image.** Records state it.

Idea. Foreground masks come from co-segmentation inside the boxes. Images of similar pose are aligned by their
outlines along a graph, so that points set in one image travel to all others. Points with similar trajectories
are a part, without any annotation of parts. A linear classifier for each region, the object and the parts,
gives scores, and each region has one weight.

    step                            file                    result
    1  co-segmentation              segmentation.py         masks
    2  graph of similar poses       pose_graph.py           five spanning trees
    3  alignment                    alignment.py            shape contexts, thin-plate splines
    4  points travel, k-means       parts.py                31 parts
    5  boxes around the parts       parts.py                (N, 31, 4)
    6  object and parts at test     transfer.py             boxes
    7  fine-tuning, features        here                    (B, 32, D)
    8  classifiers                  scorers.py              s, (32, N, Y)
    9  combination                  combination.py          v, (32,)

    paper           name                    shape
    boxes           memory.parts            (N, K, 4)       relative to the object; K = 31
    f_p             region_features         (B, K + 1, D)   mean of the last stage on a crop; p = 0: object
    s_p,c           scorers.scores          (B, K + 1, Y)
    v_p             scorers.combination     (K + 1,)

    (1)  logits_c = sum_p v_p s_p,c
    (2)  M_c(l) = sum_p v_p s_p,c 1[l in box_p] / |box_p|       its mean is logits_c, if |box_p| is the share
                                                                of the image
    (3)  L = CE(object crop) + CE(crop of a random part) + CE or box loss of the whole image

A run. Steps 1 to 5 and 9 come before the first epoch, with the features of the initial network, as in the
paper. In all epochs but the last, (3) trains the network. Before the last epoch the backbone is frozen, the
pose features are recomputed, and the region classifiers are fitted (step 8). In that epoch only layers of (3)
learn. A run of one epoch trains no backbone. Until step 8, scores are those of (3). Steps 1 to 5 are cached.

Recipes have no crop, mirror or rotation, because the boxes belong to whole images. The method mirrors images
and crops boxes at random itself.

Maps. The class map is (2). `propose` gives the parts by v_p s_p of the predicted class, without the object.

Controls. `parts=0`: the object alone. `part_boxes=grid`: 31 boxes of a fixed grid, without steps 1 to 5.

Published numbers. CoSeq (+BBox) has the ground-truth box of each test image, too: `test_box=truth`. Records
state it. It can be set on a trained model.

Measured, with one seed (`coseq*/0` of results/plans/toybirds.toml and cub50.toml). On generated birds the
top-1 accuracy is 52.0, and 90.0 with `test_box=truth`; the baseline has 70.3. So what fails is step 6. On 50
classes of CUB it is 72.0, and 77.5 with `test_box=truth`. There the parts make no difference yet: it is 72.3
with `part_boxes=grid` and 71.6 with `parts=0`.

Departures, besides those of 1 and 9 in their files
    2      The features are of the backbone's stage of stride 16, projected to 512 numbers in half precision.
    3      Each pair is aligned only in the direction in which points travel.
    5      A part that shrinks to less than 10 pixels keeps its square, in place of being dropped.
    6      An R-CNN for each region in the paper, with regression of its box.
    7      A VGG-19 for objects and one for parts in the paper, and fc6 of 224 pixels. Here one network, with
           the object at the side of the input and parts at half of it.
    8      Ridge regression in place of support vector machines. Mirror images are not scored. Scores are less
           their mean over the classes, which changes no prediction. One class against the rest scores below 0
           for most classes, often for the true one, and (2) would be lowest on the object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone, read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass, Proposals
from reference_models.core.recipes import FINE_GRAINED, MANY_CLASSES, Recipe
from reference_models.layers.heads import cross_entropy
from reference_models.layers.norm_statistics import PartStatistics
from reference_models.layers.regions import crop_resize
from reference_models.recognition.coseq.combination import learn_combination
from reference_models.recognition.coseq.object_finder import ObjectFinder
from reference_models.recognition.coseq.parts import grid_boxes
from reference_models.recognition.coseq.preparation import object_boxes, prepare
from reference_models.recognition.coseq.regions import Memory, PoseProjection, RegionScorers, pose_stage
from reference_models.recognition.coseq.settings import CoseqConfig
from reference_models.recognition.coseq.transfer import (
    box_coverage,
    mirror_boxes,
    nearest_poses,
    placed_in,
    random_part_of_boxes,
    scaled_boxes,
    transfer_parts,
    valid_boxes,
    whole_images,
)
from reference_models.training.passes import Passes
from wsolbench.exceptions import UsageError
from wsolbench.methods import Supervision
from wsolbench.system.progress import track
from wsolbench.types import Dataset

PAPER = "coseq"

POSE_CONTEXT = 227 / (227 - 2 * 16)
"""Factor of the box that pose features see: 16 of 227 pixels on each side are context."""
CROP = 224 / 256
"""Side of the random crop of a box in training, relative to the box."""
CHUNK = 256
"""Crops in one pass without gradient."""


class Coseq(Recognizer):
    """See the module."""

    method_name = "coseq"
    Config = CoseqConfig
    config: CoseqConfig
    recipes = MappingProxyType({"coseq": FINE_GRAINED["coseq"]})

    grid: Tensor
    """Boxes of the control, (K, 4), relative to the object."""

    def __init__(self, backbone: Backbone, num_classes: int, config: CoseqConfig) -> None:
        super().__init__(backbone, num_classes, config)
        channels, size = backbone.layout[-1].channels, backbone.input_spec.size
        self.object_size, self.part_size = config.object_size or size, config.part_size or size // 2
        self.pose_stage = pose_stage(backbone)
        self.object_statistics = PartStatistics(backbone, config.norm_statistics)
        self.part_statistics = PartStatistics(backbone, config.norm_statistics)
        # Layers of (3).
        self.object_classifier = nn.Linear(channels, num_classes)
        self.part_classifier = nn.Linear(channels, num_classes) if config.parts else None
        self.object_finder = ObjectFinder(config.object_box, channels, num_classes)
        # Results of steps 5, 8 and 9.
        self.memory = Memory(config.parts)
        self.scorers = RegionScorers(config.parts + 1, num_classes, channels)
        self.poses = PoseProjection(self.pose_stage.channels)
        self.register_buffer("grid", torch.from_numpy(grid_boxes(config.parts)).float(), persistent=False)
        self.passes: Passes | None = None

    # --- defaults and recipes -------------------------------------------------------------------------------
    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the paper's recipe on the networks of the papers, else the backbone's."""
        return "coseq" if _is_published(backbone, num_classes) else super().recipe_name(backbone, num_classes)

    @classmethod
    def default_size(cls, backbone: str, num_classes: int) -> int | None:
        """Return 448 on the networks of the papers, except for ImageNet."""
        return 448 if _is_published(backbone, num_classes) else None

    @classmethod
    def adjust_recipe(cls, name: str, recipe: Recipe, config: MethodConfig) -> Recipe:  # noqa: ARG003 - the signature of all methods
        """Return a recipe without crop, mirror and rotation, which would move images off their boxes."""
        return replace(recipe, resize=1.0, flip=0.0, rotation=0.0, short_side=False, rotate_on="host")

    @classmethod
    def recipe_for(cls, backbone: str, num_classes: int, settings: Mapping[str, str]) -> Recipe:
        """Return the recipe; see `Model.recipe_for`. Raises `UsageError` if it would move images."""
        recipe = super().recipe_for(backbone, num_classes, settings)
        if (recipe.resize, recipe.flip, recipe.rotation, recipe.short_side) != (1.0, 0.0, 0.0, False):
            raise UsageError(
                f"recipe of method 'coseq' has resize={recipe.resize:g}, flip={recipe.flip:g}, "
                f"rotation={recipe.rotation:g}, short_side={recipe.short_side}; expected 1, 0, 0 and False, "
                "because its boxes belong to whole images; leave these settings out"
            )
        return recipe

    # --- regions and their features -------------------------------------------------------------------------
    def object_features(
        self, images: Float[Tensor, "b 3 S S"], boxes: Float[Tensor, "b 4"]
    ) -> Float[Tensor, "b d"]:
        """Return the pooled features of the object's crop."""
        crops = crop_resize(images, boxes[:, None], self.object_size)
        with self.object_statistics.in_use(self.backbone):
            pooled: Tensor = self.backbone.run(crops).mean(dim=(2, 3))
        return pooled

    def part_features(
        self, images: Float[Tensor, "b 3 S S"], boxes: Float[Tensor, "b k 4"]
    ) -> Float[Tensor, "b k d"]:
        """Return the pooled features of crops of parts."""
        crops = crop_resize(images, boxes, self.part_size)
        chunks = [crops] if self.backbone.training else torch.split(crops, CHUNK)
        with self.part_statistics.in_use(self.backbone):
            features = torch.cat([self.backbone.run(chunk).mean(dim=(2, 3)) for chunk in chunks])
        return features.view(*boxes.shape[:2], -1)

    def region_features(
        self, images: Float[Tensor, "b 3 S S"], objects: Float[Tensor, "b 4"], parts: Float[Tensor, "b k 4"]
    ) -> Float[Tensor, "b r d"]:
        """Return f of the object and of the parts; boxes are in pixels."""
        own = self.object_features(images, objects)[:, None]
        return torch.cat([own, self.part_features(images, parts)], dim=1) if parts.shape[1] else own

    def describe_poses(
        self, images: Float[Tensor, "b 3 S S"], boxes: Float[Tensor, "b 4"]
    ) -> Float[Tensor, "b 512"]:
        """Return unit vectors that describe the pose of each object."""
        crops = crop_resize(images, scaled_boxes(boxes, POSE_CONTEXT)[:, None], self.part_size)
        with self.object_statistics.in_use(self.backbone):
            features = self.backbone.run(crops, until=self.pose_stage.name)
        return self.poses.project(features)

    # --- forward pass and loss ------------------------------------------------------------------------------
    def find_parts(
        self, images: Float[Tensor, "b 3 S S"], objects: Float[Tensor, "b 4"]
    ) -> Float[Tensor, "b k 4"]:
        """Return the boxes of the parts in pixels, step 6. Without training images they are the grid."""
        if not self.config.parts:
            return objects.new_zeros(len(objects), 0, 4)
        relative = self.grid.expand(len(objects), -1, -1)
        if self.config.part_boxes == "aligned" and len(self.memory):
            both = torch.stack(
                [
                    self.describe_poses(images, objects),
                    self.describe_poses(images.flip(-1), mirror_boxes(objects, images.shape[-1])),
                ],
                dim=1,
            )
            index, mirrored = nearest_poses(both, self.memory.poses, self.config.neighbours)
            relative = transfer_parts(index, mirrored, self.memory.parts)
        return placed_in(relative, objects)

    @property
    def uses_true_boxes(self) -> bool:
        """Whether evaluated images come with their ground-truth boxes."""
        return self.config.test_box == "truth"

    def forward(
        self, images: Float[Tensor, "b 3 S S"], true_boxes: Float[Tensor, "b 4"] | None = None
    ) -> ForwardPass:
        """Return logits (1), maps (2) and the parts.

        `true_boxes` are the objects in pixels of the input. None: they are found.
        """
        stages, size = self.backbone.stages(images), images.shape[-1]
        features = next(reversed(stages.values()))
        # Step 6.
        objects = self.object_finder(features, size) if true_boxes is None else valid_boxes(true_boxes, size)
        parts = self.find_parts(images, objects)
        scores = self.scorers.scores(
            self.region_features(images, objects, parts), self.object_classifier, self.part_classifier
        )
        weighted = self.scorers.combination[:, None] * scores  # (B, R, Y)
        logits = weighted.sum(dim=1)  # (1)
        grid = (features.shape[2], features.shape[3])
        covered = box_coverage(torch.cat([objects[:, None], parts], dim=1).float(), grid, size)

        def maps_of(class_ids: Tensor) -> Tensor:
            own = weighted.take_along_dim(class_ids[:, None], dim=2)  # (B, R, K)
            with torch.autocast(images.device.type, enabled=False):
                return torch.einsum("brk,brhw->bkhw", own, covered)  # (2)

        def propose() -> Proposals:
            best = logits.argmax(dim=1)[:, None, None]
            ranked = weighted[:, 1:].take_along_dim(best, dim=2)[..., 0].sort(dim=1, descending=True)
            return Proposals(
                boxes=parts.take_along_dim(ranked.indices[..., None], dim=1), scores=ranked.values
            )

        return ForwardPass(
            logits=logits, maps_of=maps_of, stages=stages, penultimate=features, propose=propose
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of (3)."""
        images, size, count = batch.images, batch.images.shape[-1], len(batch.images)
        draws = torch.rand(count, 6, generator=batch.generator, device=images.device)
        # Boxes in pixels; without training images the object is the whole image.
        objects = whole_images(count, images)
        relative = self.grid.expand(count, -1, -1)
        if len(self.memory):
            objects = self.memory.objects[batch.indices]
            relative = self.memory.parts[batch.indices]
        # Mirror images and boxes.
        mirrored = draws[:, 0] < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        objects = torch.where(mirrored[:, None], mirror_boxes(objects), objects) * size
        terms = {}
        # The object, and one part.
        crop = random_part_of_boxes(objects, CROP, draws[:, 1:3])
        terms["object"] = cross_entropy(
            self.object_classifier(self.object_features(images, crop)), batch.labels
        )
        if self.part_classifier is not None:
            parts = torch.where(mirrored[:, None, None], mirror_boxes(relative), relative)
            index = (draws[:, 3] * self.config.parts).long().clamp(max=self.config.parts - 1)
            part = placed_in(parts.take_along_dim(index[:, None, None], dim=1), objects)[:, 0]
            part = random_part_of_boxes(part, CROP, draws[:, 4:6])
            features = self.part_features(images, part[:, None])[:, 0]
            terms["part"] = cross_entropy(self.part_classifier(features), batch.labels)
        # The whole image, for the object's box at test.
        if self.object_finder.learns:
            terms |= self.object_finder.losses(self.backbone.run(images), objects / size, batch.labels)
        return terms

    # --- the steps of a run ---------------------------------------------------------------------------------
    def before_training(self, train: Dataset) -> None:
        """Find the parts and the combination, steps 1 to 5 and 9, unless a resumed run has them."""
        self.passes = Passes(train=train, model=self, device=self.memory.objects.device, cache=0.0)
        if len(self.memory):
            return
        device, config, count = self.memory.objects.device, self.config, len(train)
        self.eval()
        self.memory.resize(count)
        boxes = np.tile([0.0, 0, 1, 1], (count, 1)) if config.object_box == "image" else object_boxes(train)
        self.memory.objects.copy_(torch.from_numpy(boxes))
        self.memory.parts.copy_(self.grid.expand(count, -1, -1))
        if config.parts and config.part_boxes == "aligned":
            self._keep_poses()
            found = prepare(train, boxes, self.memory.poses.cpu().numpy(), config)
            self.memory.parts.copy_(torch.from_numpy(found.boxes))
        if config.parts:
            features, labels = self._region_features()
            v = learn_combination(features, labels, self.num_classes, config.part_seed, device)
            self.scorers.combination.copy_(v)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Freeze the backbone before the last epoch, and fit the scorers on its features, step 8."""
        last = epoch == epochs - 1
        self.backbone.requires_grad_(not last).train(self.training and not last)
        if last and self.passes is not None:
            training = self.training
            self.eval()
            if self.config.parts and self.config.part_boxes == "aligned":
                self._keep_poses()
            features, labels = self._region_features()
            self.scorers.fit(features, labels, self.num_classes)
            self.train(training)
            self.backbone.eval()

    def lr_factor(self, recipe: Recipe, progress: float) -> float:
        """Apply the recipe's schedule to the epochs before the last one."""
        return recipe.lr_factor(min(1.0, progress * recipe.epochs / max(1, recipe.epochs - 1)))

    def fit_buffers(self, tensors: Mapping[str, Tensor]) -> None:
        """Make room for the training images of a checkpoint."""
        self.memory.fit_to(tensors, "memory.")

    @torch.no_grad()
    def _keep_poses(self) -> None:
        """Describe the poses of all training images by the present network."""
        assert self.passes is not None
        for batch in track(self.passes(), "describing poses", total=self.passes.count, unit="batches"):
            boxes = self.memory.objects[batch.indices] * batch.images.shape[-1]
            self.memory.poses[batch.indices] = self.describe_poses(batch.images, boxes).half()

    @torch.no_grad()
    def _region_features(self) -> tuple[Tensor, Tensor]:
        """Return the features (N, R, D) of all training images, and their labels, on the host."""
        assert self.passes is not None
        features, labels = [], []
        for batch in track(self.passes(), "features of regions", total=self.passes.count, unit="batches"):
            objects = self.memory.objects[batch.indices] * batch.images.shape[-1]
            parts = placed_in(self.memory.parts[batch.indices], objects)
            features.append(self.region_features(batch.images, objects, parts).cpu())
            labels.append(batch.labels.cpu())
        return torch.cat(features), torch.cat(labels)

    @property
    def supervision(self) -> Supervision | None:
        """Boxes and masks of the training images, if the settings read them."""
        config = self.config
        boxes = config.object_box != "image"
        masks = config.segment == "mask" and config.parts > 0 and config.part_boxes == "aligned"
        if not (boxes or masks):
            return None
        return Supervision(labels=True, boxes=boxes, masks=masks, used_for="training")


def _is_published(backbone: str, num_classes: int) -> bool:
    return read_profile(backbone).kin in ("vgg", "resnet") and num_classes < MANY_CLASSES
