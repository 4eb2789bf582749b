"""Hide-and-Seek: CAM that is trained on images with hidden patches. The patches themselves:
test_hide_patches.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reference_models.base.head_localizer import HeadConfig
from reference_models.core.config import parse_settings
from reference_models.core.outputs import Batch
from reference_models.localization.cam import Cam
from reference_models.localization.has import Has, HasConfig
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError

CLASSES = 5


def has(**settings) -> Has:
    return Has(toy_backbone(), CLASSES, HasConfig(**settings)).train()


def batch(count: int = 8, *, seed: int = 0) -> Batch:
    return toy_batch(count, classes=CLASSES, seed=seed)


def loss_and_images(model: Has, given: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the images that the network was shown."""
    seen: list[torch.Tensor] = []
    handle = model.register_forward_pre_hook(lambda _model, arguments: seen.append(arguments[0]))
    (loss,) = model.loss(given).values()
    handle.remove()
    return loss, seen[0]


def test_the_loss_is_the_cross_entropy_of_images_with_hidden_patches():
    model, given = has(patch=(32,)), batch()
    before = given.images.clone()
    loss, shown = loss_and_images(model, given)
    torch.testing.assert_close(loss, F.cross_entropy(model(shown).logits, given.labels))
    hidden = (shown == 0).all(1)
    assert 0.3 < hidden.float().mean() < 0.7
    assert torch.equal(shown[~hidden[:, None].expand_as(shown)], before[~hidden[:, None].expand_as(shown)])
    assert torch.equal(given.images, before)


def test_sides_are_scaled_to_the_size_of_the_image():
    _, shown = loss_and_images(has(patch=(56,)), batch(16))  # 56 of 224 is 8 of 32
    hidden = (shown == 0).all(1)
    assert torch.equal(hidden, hidden[:, ::8, ::8].repeat_interleave(8, 1).repeat_interleave(8, 2))
    changes = [
        column for column in range(1, 32) if not torch.equal(hidden[:, :, column], hidden[:, :, column - 1])
    ]
    assert changes == [8, 16, 24]


@pytest.mark.parametrize(("p", "hidden"), [(0.0, 0.0), (1.0, 1.0)])
def test_p_0_is_cam_and_p_1_shows_nothing(p, hidden):
    model, given = has(p=p), batch()
    loss, shown = loss_and_images(model, given)
    assert float((shown == 0).all(1).float().mean()) == hidden
    images = given.images if p == 0 else torch.zeros_like(given.images)
    assert torch.equal(loss, F.cross_entropy(model(images).logits, given.labels))


def test_black_patches_are_black_before_normalisation():
    model = has(p=1.0, fill="black")
    _, shown = loss_and_images(model, batch())
    spec = model.input_spec
    pixels = shown * torch.tensor(spec.std)[:, None, None] + torch.tensor(spec.mean)[:, None, None]
    torch.testing.assert_close(pixels, torch.zeros_like(pixels), atol=1e-6, rtol=0)


def test_all_randomness_comes_from_the_generator_of_the_batch():
    model, state = has(patch=(0, 16, 32, 44, 56)), torch.get_rng_state()
    one, two, other = (loss_and_images(model, batch(seed=seed))[1] for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_nothing_is_hidden_at_test():
    model, cam = has(p=1.0).eval(), Cam(toy_backbone(), CLASSES, HeadConfig()).eval()
    cam.load_state_dict(model.state_dict())
    images, asked = batch().images, torch.arange(CLASSES).expand(8, CLASSES)
    assert torch.equal(model.localize(images).logits, cam.localize(images).logits)
    assert torch.equal(model.score_maps(images, asked), cam.score_maps(images, asked))


def test_by_default_half_of_the_patches_of_32_pixels_are_hidden_by_the_mean_colour():
    assert (HasConfig().patch, HasConfig().p, HasConfig().fill) == ((32,), 0.5, "mean")


def test_settings_are_read_from_text_and_impossible_ones_refused():
    config = parse_settings(
        HasConfig, {"patch": "0,16,32,44,56", "p": "0.25", "head": "fc"}, what="method 'has'"
    )
    assert (config.patch, config.p, config.head) == ((0, 16, 32, 44, 56), 0.25, "fc")
    with pytest.raises(UsageError, match="p of method 'has' is -1"):
        has(p=-1.0)
    with pytest.raises(UsageError, match="patch of method 'has' is -4"):
        has(patch=(-4,))
