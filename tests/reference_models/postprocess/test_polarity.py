"""Signs of post-processes that no class guides: the object is up, the background down, in made-up scenes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch

from reference_models.core.outputs import ForwardPass
from wsolbench.methods import load_post

SCENES, SIDE = 60, 12


def scenes(seed: int, *, rectified: bool) -> tuple[ForwardPass, torch.Tensor]:
    """Objects off the border that cover 6 to 45 % of the image; other features in each image, with noise."""
    source = torch.Generator().manual_seed(seed)
    heights, widths = torch.randint(3, 9, (2, SCENES), generator=source)
    truth = torch.zeros(SCENES, SIDE, SIDE)
    for one, height, width in zip(truth, heights.tolist(), widths.tolist(), strict=True):
        top = int(torch.randint(1, SIDE - height, (1,), generator=source))
        left = int(torch.randint(1, SIDE - width, (1,), generator=source))
        one[top : top + height, left : left + width] = 1.0
    kinds = torch.randn(SCENES, 2, 24, generator=source)
    features = torch.where(
        truth[:, None] > 0, kinds[:, 1, :, None, None], kinds[:, 0, :, None, None]
    ) + 0.5 * torch.randn(SCENES, 24, SIDE, SIDE, generator=source)
    features = features.relu() if rectified else features
    result = ForwardPass(
        logits=None,
        maps_of=lambda class_ids: truth[:, None].expand(-1, class_ids.shape[1], -1, -1),
        stages=OrderedDict(last=features),
        penultimate=features,
    )
    return result, truth


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize(
    ("post", "settings"),
    [
        ("tokencut", {}),
        ("lost", {"patches": "30"}),
        ("pca", {}),
        ("pca", {"polarity": "cam"}),
        ("pc1", {"weights": "none"}),
        ("pc1", {"weights": "none", "polarity": "cam"}),
    ],
    ids=str,
)
def test_maps_are_higher_on_the_object_than_around_it(post, settings, rectified):
    if post == "tokencut" and rectified:
        settings = {**settings, "threshold": "0.6"}  # cosines of features without negative values are higher
    result, truth = scenes(0, rectified=rectified)
    asked = torch.zeros(SCENES, 1, dtype=torch.long)
    turned = replace(result, stages=OrderedDict(last=-result.stages["last"]), penultimate=-result.penultimate)
    for one in (result, turned):
        maps = load_post(post).create(settings).maps(one, asked)[:, 0]
        inside = (maps * truth).sum(dim=(1, 2)) / truth.sum(dim=(1, 2))
        outside = (maps * (1 - truth)).sum(dim=(1, 2)) / (1 - truth).sum(dim=(1, 2))
        assert (inside > outside).float().mean() >= 0.95
