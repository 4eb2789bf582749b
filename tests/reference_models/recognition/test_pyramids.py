"""The pyramids that SSANET compares its scale mining with."""

from __future__ import annotations

import torch

from reference_models.recognition.ssanet.pyramids import FeaturePyramid, SpatialPyramid


def test_a_spatial_pyramid_has_50_maxima_of_each_channel():
    pyramid, features = SpatialPyramid(3, 5), torch.randn(2, 3, 6, 6)
    bins = []
    for side in (1, 2, 3, 6):
        cells = features.view(2, 3, side, 6 // side, side, 6 // side).amax((3, 5))
        bins.append(cells.flatten(1))
    assert sum(part.shape[1] for part in bins) == 50 * 3
    torch.testing.assert_close(pyramid([features]), pyramid.classifier(torch.cat(bins, dim=1)))


def test_a_feature_pyramid_adds_every_stage_to_the_next_finer_one():
    pyramid = FeaturePyramid((4, 6, 8), 5)
    fine, middle, coarse = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4), torch.randn(2, 8, 2, 2)
    top = pyramid.lateral[2](coarse)
    between = pyramid.lateral[1](middle) + top.repeat_interleave(2, 2).repeat_interleave(2, 3)
    bottom = pyramid.lateral[0](fine) + between.repeat_interleave(2, 2).repeat_interleave(2, 3)
    pooled = [pyramid.smooth[level](x).mean((2, 3)) for level, x in ((2, top), (1, between), (0, bottom))]
    torch.testing.assert_close(pyramid([fine, middle, coarse]), pyramid.classifier(torch.cat(pooled, dim=1)))
    assert pyramid.classifier.in_features == 3 * 256
