"""Batches of class groups: an image (the leader) and some others of the same class.

Membership, and means over groups. Position i of a batch is in group i // size; the first image of a group is
its leader. Used as in LIO (CVPR 2020).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GroupOrder = Literal["correct", "interleaved_bug"]
Reduction = Literal["mean", "split"]


def draw_class_groups(
    labels: Int[np.ndarray, " n"], batch_size: int, others: int, rng: np.random.Generator
) -> list[Int[np.ndarray, " _"]]:
    """Draw shuffled batches of `batch_size` groups, as positions. Every image leads one group.

    The last batch has the remaining groups. The `others` of a leader are drawn from the rest of its class,
    without repetition if the class is large enough. The only image of a class is its own companion.
    """
    order = np.argsort(labels, kind="stable")
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    first, many = np.repeat(first, counts), np.repeat(counts, counts)  # of the class of each image in `order`
    enough = many > others
    steps = np.zeros(
        (len(labels), 0), dtype=np.int64
    )  # how far each of the others is from its leader, along the class and round
    for drawn in range(others):
        step = rng.integers(0, np.maximum(many - 1 - drawn * enough, 1))
        for earlier in np.sort(steps, axis=1).T:  # counted without those already drawn
            step += (step >= earlier) & enough
        steps = np.concatenate([steps, step[:, None]], axis=1)
    rank = np.arange(len(labels)) - first
    company = order[first[:, None] + (rank[:, None] + 1 + steps) % many[:, None]]
    groups = rng.permutation(np.concatenate([order[:, None], company], axis=1))
    return [groups[start : start + batch_size].reshape(-1) for start in range(0, len(groups), batch_size)]


def order_by_role(count: int, size: int, device: torch.device) -> Int[Tensor, " {count}"]:
    """Return positions by role: the leaders of all groups, then the first others of all, then the second."""
    place = torch.arange(count, device=device)
    return (place % size * count + place // size).argsort()


def find_positives(
    labels: Int[Tensor, " b"], size: int, order: GroupOrder
) -> tuple[Int[Tensor, "b p"], Bool[Tensor, "b p"]]:
    """Return positions of the `size` - 1 others in the group of each image, and whether they count.

    Args:
        labels: of a batch. Images that are missing from an incomplete last group do not count, nor do images
            of another class.
        size: of a group.
        order: `interleaved_bug`: the images are stacked as in `order_by_role` and then cut into consecutive
            groups of `size`. Most of these mix several classes, which all count.
    """
    count, place = len(labels), torch.arange(len(labels), device=labels.device)
    turn = place if order == "correct" else order_by_role(count, size, labels.device)
    slot = turn.argsort()[:, None]  # where each image stands when groups are cut
    others = slot // size * size + (slot + torch.arange(1, size, device=labels.device)) % size
    present, index = others < count, turn[others.clamp(max=count - 1)]
    return index, present & (labels[index] == labels[:, None]) if order == "correct" else present


def reduce_groups(values: Float[Tensor, " b"], size: int, reduction: Reduction) -> Float[Tensor, ""]:
    """Return the mean over the images, or (`split`) the mean over leaders plus that over the others."""
    if reduction == "mean":
        return values.mean()
    leads = (torch.arange(len(values), device=values.device) % size == 0).to(values.dtype)
    # Not a matrix product, which autocast would compute in half precision.
    return (values * (leads / leads.sum() + (1 - leads) / (1 - leads).sum().clamp(min=1))).sum()
