"""LIO's `variant=official` against a restatement of one step of the released program, from the images to the
loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reference_models.recognition.lio.method import Lio
from tests.reference_models.recognition.test_lio import OFFICIAL, batch, strided_backbone


def structure_loss(model: Lio, features: Tensor) -> tuple[Tensor, Tensor]:
    """The extent of each image, and the released mean of the weighted squares over images and cells."""
    head = model.structure["7"]
    f = features.relu()
    extent = head.extent(f)[:, 0]
    h = head.context.project(f).relu()
    (count, width, side, _), rows = h.shape, []
    for image in range(count):
        inside = (extent[image] > extent[image].mean()).float().flatten()
        cells = h[image].flatten(1).T  # (N N, C1)
        reference = int((cells.mean(dim=1) * inside).argmax())
        predicted = head.context.predictor(
            torch.cat([cells[reference].expand(side**2, width), cells], dim=1)
        ).relu()
        predicted = torch.where(torch.arange(side**2)[:, None] == reference, 0.0, predicted)
        place = torch.tensor([(row, column) for row in range(side) for column in range(side)]).float()
        away = (place - place[reference]) / side
        gap = predicted[:, 1] - (torch.atan2(away[:, 1], away[:, 0]) / math.pi + 1) / 2
        gap = torch.where(gap < 0, gap + 1, gap)
        rows.append(((predicted[:, 0] - away.norm(dim=1)) ** 2 + (gap - gap.mean()) ** 2) * inside)
    return extent, torch.stack(rows).mean()


def object_masks(features: Tensor, size: int) -> Tensor:
    """M: consecutive images are a group; each one's cells are compared with those of the others in its
    group."""
    flat = features.flatten(2).mT  # (B, N N, C)
    masks = []
    for image in range(len(flat)):
        first = image // size * size
        others = [other for other in range(first, first + size) if other != image]
        phi = [(flat[image] @ flat[other].T / flat.shape[2]).amax(dim=1) for other in others]
        masks.append(torch.stack(phi).mean(dim=0))
    return torch.stack(masks).view(len(features), *features.shape[2:])


def released_step(
    model: Lio, images: Tensor, labels: Tensor, positives: int, *, stack_by_role: bool = True
) -> Tensor:
    """Images and labels are groups of one class; they go through the network as leaders and as others, in two
    passes."""
    size = positives + 1
    leads = torch.arange(len(images)) % size == 0
    losses, features, extents = [], [], []
    for chosen in (leads, ~leads):
        maps = model.backbone.run(images[chosen])
        logits = model.head.classifier(maps.mean(dim=(2, 3)))
        averaged = F.avg_pool2d(maps, 2)
        extent, coordinates = structure_loss(model, averaged)
        losses.append(F.cross_entropy(logits, labels[chosen]) + 0.1 * coordinates)
        features.append(averaged)
        extents.append(extent)
    if stack_by_role:
        for others in (features, extents):
            by_leader = others[1].view(int(leads.sum()), positives, *others[1].shape[1:])
            others[1] = by_leader.transpose(0, 1).flatten(0, 1)
    wrong = (torch.cat(extents) - object_masks(torch.cat(features), size)) ** 2
    return losses[0] + losses[1] + 0.1 * wrong.mean()


def sixteen_groups() -> tuple[Lio, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Lio(strided_backbone(linear=True), 16, OFFICIAL).eval()
    images = torch.randn(64, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    images += torch.randn(16, 3, 1, 1, generator=torch.Generator().manual_seed(2)).repeat_interleave(
        4, dim=0
    )  # classes differ
    return model, images, torch.arange(16).repeat_interleave(4)


def test_the_official_loss_of_sixteen_groups_is_that_of_the_released_step() -> None:
    model, images, labels = sixteen_groups()
    assert (model.backbone.run(images) < 0).any()
    own = sum(model.loss(replace(batch(*labels.tolist()), images=images)).values())
    torch.testing.assert_close(own, released_step(model, images, labels, 3), rtol=1e-6, atol=1e-6)
    leader_by_leader = released_step(model, images, labels, 3, stack_by_role=False)
    assert abs(own - leader_by_leader) > 1e-5


@pytest.mark.parametrize("positives", [1, 2, 5])
def test_it_is_the_released_step_for_other_numbers_of_positives_and_an_epoch_s_last_batch(
    positives: int,
) -> None:
    torch.manual_seed(positives)
    model = Lio(strided_backbone(linear=True), 5, replace(OFFICIAL, num_positives=positives)).eval()
    labels = torch.tensor([0, 3, 1, 4, 2]).repeat_interleave(positives + 1)
    images = torch.randn(len(labels), 3, 112, 112)
    own = sum(model.loss(replace(batch(*labels.tolist()), images=images)).values())
    torch.testing.assert_close(own, released_step(model, images, labels, positives), rtol=1e-6, atol=1e-6)


def test_the_gradient_is_that_of_the_released_step_which_reaches_the_target_too() -> None:
    model, images, labels = sixteen_groups()
    own = sum(model.loss(replace(batch(*labels.tolist()), images=images)).values())
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(own, parameters),
        torch.autograd.grad(released_step(model, images, labels, 3), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
