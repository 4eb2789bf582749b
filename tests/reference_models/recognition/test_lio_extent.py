"""LIO's object extent: correlations of images of one class, their mean, and the released code's values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reference_models.recognition.lio.class_groups import find_positives
from reference_models.recognition.lio.method import Structure, correlation, pseudo_mask
from tests.oracles.golden import golden
from tests.reference_models.recognition.test_lio import OFFICIAL, mask_of


def stored(name: str) -> torch.Tensor:
    return torch.from_numpy(golden("lio")[name].copy())


def test_known_correlations():
    one = torch.tensor([[1.0, 0], [0, 2], [1, 1], [3, 0]]).T[None]
    two = torch.tensor([[2.0, 0], [0, 1], [1, 1], [0, 0]]).T[None]
    assert correlation(one, two).tolist() == [[1, 1, 1, 3]]
    assert correlation(one, one).tolist() == [[1.5, 2, 1.5, 4.5]]


def test_the_correlation_with_itself_is_at_least_the_length_and_places_in_the_other_image_do_not_matter():
    f, other = torch.randn(2, 6, 5, 5), torch.randn(2, 6, 5, 5)
    assert (correlation(f.flatten(2), f.flatten(2)) >= f.flatten(2).square().sum(dim=1) / 6 - 1e-6).all()
    expected = correlation(f.flatten(2), other.flatten(2))
    for moved in (
        other.flip(3),
        other.rot90(1, (2, 3)),
        other.flatten(2)[..., torch.randperm(25)].view_as(other),
    ):
        torch.testing.assert_close(correlation(f.flatten(2), moved.flatten(2)), expected)


def test_the_mask_is_the_mean_over_the_other_images_of_the_class():
    features = torch.randn(8, 6, 3, 3)
    found = mask_of(features, 4)
    for image in range(8):
        others = [place for place in range(image // 4 * 4, image // 4 * 4 + 4) if place != image]
        phi = [
            correlation(features[image : image + 1].flatten(2), features[place : place + 1].flatten(2))
            for place in others
        ]
        torch.testing.assert_close(found[image], torch.cat(phi).mean(dim=0).view(3, 3))


def test_three_equal_positives_are_one():
    leader, positive = torch.randn(1, 6, 3, 3), torch.randn(1, 6, 3, 3)
    three = mask_of(torch.cat([leader, positive, positive, positive]), 4)
    torch.testing.assert_close(three[0], mask_of(torch.cat([leader, positive]), 2)[0])


@pytest.mark.parametrize("case", range(3))
def test_the_released_mask_is_matched(case):
    features, size = stored(f"rela_feat_{case}"), int(stored(f"rela_num_positive_{case}")) + 1
    found = mask_of(features, size)
    torch.testing.assert_close(found, stored(f"rela_mask_{case}"), rtol=1e-5, atol=1e-6)
    squares = (stored(f"rela_pred_mask_{case}") - found).square()
    torch.testing.assert_close(squares, stored(f"rela_loss_{case}"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", range(2))
def test_the_released_head_is_matched_from_the_features_on(case):
    head = Structure(12, replace(OFFICIAL, c1=8))
    names = {
        "strutureg.1": "context.project",
        "coord_predictor.predictor.0": "context.predictor",
        "maskg.1": "extent",
    }
    state = {
        f"{ours}.{kind}": stored(f"scl_param_{case}_{theirs}.{kind}")
        for theirs, ours in names.items()
        for kind in ("weight", "bias")
    }
    head.load_state_dict(state)
    f = F.adaptive_avg_pool2d(stored(f"scl_feature_in_{case}"), 7)
    torch.testing.assert_close(f, stored(f"scl_feature_out_{case}"), rtol=1e-5, atol=1e-6)
    mask = head.extent_map(f)
    torch.testing.assert_close(mask, stored(f"scl_mask_{case}"), rtol=1e-5, atol=1e-6)
    inside = mask > mask.mean(dim=(1, 2), keepdim=True)
    loss_map = stored(f"scl_loss_map_{case}")
    cells = torch.eye(49).view(49, 7, 7)
    for image in range(2):
        many = head.context(
            head.enter(f[image : image + 1]).expand(49, 12, 7, 7), cells, None, inside[image].expand(49, 7, 7)
        )
        torch.testing.assert_close(
            49 * (many.distance + many.angle), loss_map[image].flatten(), rtol=1e-5, atol=1e-6
        )


def test_with_the_released_order_the_target_compares_different_classes():
    """Each class has a feature of its own: the product of a class with itself is its square."""
    labels = torch.arange(4).repeat_interleave(4)
    value = torch.tensor([1.0, 2, 4, 8])[labels]
    features = value[:, None, None, None].expand(16, 3, 2, 2)
    right = pseudo_mask(features, features, *find_positives(labels, 4, "correct"))
    assert torch.equal(right[:, 0, 0], value**2)
    wrong = pseudo_mask(features, features, *find_positives(labels, 4, "interleaved_bug"))
    assert wrong[0, 0, 0] == 1 * (2 + 4 + 8) / 3
    assert (wrong != right).float().mean() > 0.9
