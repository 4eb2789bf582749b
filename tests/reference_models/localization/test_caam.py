"""Where-to-Look: the two views, the attention between and within them, the loss that makes their maps
agree."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reference_models.core.outputs import Batch
from reference_models.layers.heads import class_activation_maps
from reference_models.localization.caam import (
    Caam,
    CaamConfig,
    ChannelAttention,
    SpatialAttention,
    channel_attention,
    fusion_loss,
    spatial_attention,
)
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError

CLASSES = 5
EYE, OTHER = torch.eye(2)[None], torch.tensor([[[1.0, 1], [0, 2]]])


def caam(*, gates: float = 0.0, **settings) -> Caam:
    """A model whose classifiers are not near zero, and with the attention at `gates`."""
    model = Caam(toy_backbone(), CLASSES, CaamConfig(**settings))
    for classifier in model.classifiers:
        torch.nn.init.normal_(classifier.weight, std=0.5)
        torch.nn.init.normal_(classifier.bias, std=0.5)
    for part in (model.channel, model.spatial):
        if part is not None:
            torch.nn.init.constant_(part.scale, gates)
    return model.eval()


def same_branches(model: Caam) -> Caam:
    """The second view gets the layers of the first."""
    for layers in (model.binds, model.classifiers):
        layers[1].load_state_dict(layers[0].state_dict())
    return model


def batch(count: int = 4, *, seed: int = 0) -> Batch:
    return toy_batch(count, classes=CLASSES, seed=seed)


def views_of(model: Caam, given_batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What the backbone is shown in training."""
    seen: list[torch.Tensor] = []
    handle = model.backbone.steps["one"].register_forward_pre_hook(
        lambda _step, arguments: seen.append(arguments[0])
    )
    model.loss(given_batch)
    handle.remove()
    first, second = seen[0].chunk(2)
    return first, second


# --- equations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q_tilde", "expected"),
    [
        ("softmax_ET", [[0.5, 0.119203], [0.5, 0.880797]]),
        ("transpose", [[0.731059, 0.268941], [0.268941, 0.731059]]),
    ],
)
def test_channel_attention_of_two_known_views(q_tilde, expected):
    one, two = channel_attention(EYE, OTHER, q_tilde)
    torch.testing.assert_close(
        one[0], torch.tensor([[0.731059, 1.268941], [0.268941, 1.731059]]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(two[0], torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("q_tilde", ["softmax_ET", "transpose"])
def test_channel_attention_is_the_sum_of_equations_4_and_6(q_tilde):
    first, second = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    found = channel_attention(first, second, q_tilde)
    for image in range(2):
        product = [[float((first[image, i] * second[image, j]).sum()) for j in range(3)] for i in range(3)]
        q = [[math.exp(product[i][j]) / sum(map(math.exp, product[i])) for j in range(3)] for i in range(3)]
        transposed = [list(row) for row in zip(*product, strict=True)]
        q_second = [
            [math.exp(transposed[i][j]) / sum(map(math.exp, transposed[i])) for j in range(3)]
            for i in range(3)
        ]
        if q_tilde == "transpose":
            q_second = [list(row) for row in zip(*q, strict=True)]
        for result, weights, source in ((found[0], q, second), (found[1], q_second, first)):
            for i in range(3):
                for j in range(5):
                    expected = sum(weights[k][i] * float(source[image, k, j]) for k in range(3))
                    assert abs(float(result[image, i, j]) - expected) < 1e-5


def test_rows_of_q_add_up_to_1_so_the_sum_over_the_channels_stays():
    first, second = torch.randn(3, 6, 9), torch.randn(3, 6, 9)
    one, two = channel_attention(first, second, "softmax_ET")
    torch.testing.assert_close(one.sum(1), second.sum(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(two.sum(1), first.sum(1), atol=1e-5, rtol=0)


def test_swapping_the_views_swaps_the_outputs_as_the_equations_say_but_not_with_the_transpose():
    first, second = torch.randn(2, 6, 9), torch.randn(2, 6, 9)
    for q_tilde, swaps in (("softmax_ET", True), ("transpose", False)):
        one, two = channel_attention(first, second, q_tilde)
        second_now, first_now = channel_attention(second, first, q_tilde)
        assert torch.allclose(one, first_now, atol=1e-5) == swaps
        assert torch.allclose(two, second_now, atol=1e-5) == swaps


def test_equal_views_assist_each_other_equally():
    features = torch.randn(2, 6, 9)
    one, two = channel_attention(features, features, "softmax_ET")
    torch.testing.assert_close(one, two)


def test_spatial_attention_is_the_mean_of_the_values_weighted_by_the_softmax_of_each_row():
    query, key, value = torch.randn(2, 2, 5), torch.randn(2, 2, 5), torch.randn(2, 4, 5)
    found = spatial_attention(query, key, value)
    for image in range(2):
        for place in range(5):
            scores = [
                math.exp(float((query[image, :, place] * key[image, :, other]).sum())) for other in range(5)
            ]
            for channel in range(4):
                expected = sum(
                    score * float(value[image, channel, other]) for other, score in enumerate(scores)
                ) / sum(scores)
                assert abs(float(found[image, channel, place]) - expected) < 1e-5
    ones = torch.ones(2, 4, 5)
    torch.testing.assert_close(spatial_attention(query, key, ones), ones)  # rows of K add up to 1


@pytest.mark.parametrize("shared", [True, False])
def test_closed_gates_leave_features_as_they_are_and_open_ones_do_not(shared):
    first, second = torch.rand(2, 16, 4, 4), torch.rand(2, 16, 4, 4)
    for part in (ChannelAttention("softmax_ET"), SpatialAttention(16, shared=shared)):
        one, two = part(first, second)
        assert torch.equal(one, first)
        assert torch.equal(two, second)
        with torch.no_grad():
            part.scale.copy_(torch.tensor([0.0, 1.0]))
        one, two = part(first, second)
        assert torch.equal(one, first)
        assert not torch.equal(two, second)


def test_attention_is_computed_in_float32_under_autocast_too():
    first, second = torch.rand(2, 16, 4, 4) * 100, torch.rand(2, 16, 4, 4) * 100
    for part in (ChannelAttention("softmax_ET"), SpatialAttention(16, shared=True)):
        torch.nn.init.ones_(part.scale)
        plain = part(first, second)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = part(first, second)
        assert all(torch.equal(one, two) for one, two in zip(plain, mixed, strict=True))
        assert all(torch.isfinite(one).all() for one in part(first.half(), second.half()))


def test_the_fusion_loss_of_two_known_maps():
    one, two = torch.tensor([[[1.0, 2], [2, 0]]]), torch.tensor([[[2.0, 1], [2, 0]]])
    assert abs(float(fusion_loss(one, two, "sum")) - 0.222222) < 1e-5
    assert abs(float(fusion_loss(one, two, "mean")) - 0.222222 / 196) < 1e-8


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.integers(0, 99))
def test_the_fusion_loss_sees_directions_only(a, b, seed):
    one, two = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    loss = fusion_loss(one, two, "sum")
    torch.testing.assert_close(fusion_loss(a * one, b * two, "sum"), loss, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        loss, (2 - 2 * F.cosine_similarity(one.flatten(1), two.flatten(1))).mean(), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(fusion_loss(one, two, "mean") * 196, loss)
    assert float(fusion_loss(one, a * one, "sum")) < 1e-6
    assert abs(float(fusion_loss(one, -b * one, "sum")) - 4) < 1e-5


def test_the_fusion_loss_of_a_map_of_zeros_is_finite_and_so_is_its_gradient():
    zeros, other = torch.zeros(2, 4, 4, requires_grad=True), torch.rand(2, 4, 4)
    loss = fusion_loss(zeros, other, "sum")
    torch.testing.assert_close(loss.detach(), torch.tensor(1.0))
    (gradient,) = torch.autograd.grad(loss, zeros)
    assert torch.isfinite(gradient).all()


# --- the network --------------------------------------------------------------------------------------------


def test_the_two_views_hide_complementary_patches():
    given_batch = batch(32)
    before = given_batch.images.clone()
    first, second = views_of(caam(patch=(56,)), given_batch)  # 56 of 224 is 8 of 32
    assert torch.equal(first + second, before)
    assert not ((first != 0) & (second != 0)).any()
    shown = (first != 0).all(1)
    assert torch.equal(shown, ~(second != 0).all(1))
    assert torch.equal(shown, shown[:, ::8, ::8].repeat_interleave(8, 1).repeat_interleave(8, 2))
    assert 0.4 < shown.float().mean() < 0.6
    assert torch.equal(given_batch.images, before)


def test_the_patch_of_each_image_is_one_of_several():
    first, _ = views_of(caam(), batch(200))
    shown = (first != 0).all(1)
    sides = (2, 5, 6, 8)  # 16, 32, 44, 56 at 32 pixels
    grids = [
        shown[:, ::side, ::side].repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :32, :32]
        for side in sides
    ]
    fits = torch.stack([(shown == grid).flatten(1).all(1) for grid in grids])
    assert fits.any(0).all()
    largest = (fits * torch.arange(1, 5)[:, None]).argmax(0)  # patches of 6 and 8 also are patches of 2
    assert all(abs(float((largest == row).float().mean()) - 0.25) < 0.12 for row in range(4))


def test_the_loss_is_two_cross_entropies_and_the_weighted_distance_of_the_maps_of_the_label():
    model, given_batch = caam(gates=0.1, beta=7.0), batch()
    terms = model.loss(given_batch)
    assert set(terms) == {"cross_entropy", "cross_entropy_complement", "fusion"}
    features = [model.backbone.run(view) for view in views_of(model, batch())]
    maps = []
    for number, name in enumerate(("cross_entropy", "cross_entropy_complement")):
        channel, spatial = (part(*features)[number] for part in (model.channel, model.spatial))
        bound = model.binds[number](channel + spatial)
        logits = model.classifiers[number](bound.mean((2, 3)))
        torch.testing.assert_close(terms[name], F.cross_entropy(logits, given_batch.labels))
        maps.append(
            torch.stack(
                [
                    (model.classifiers[number].weight[c][:, None, None] * f).sum(0)
                    for c, f in zip(given_batch.labels, bound, strict=True)
                ]
            )
        )
    torch.testing.assert_close(terms["fusion"], 7 / 196 * fusion_loss(*maps, "sum"))


def test_training_on_two_equal_views_is_the_test_with_twice_the_features():
    model, images = same_branches(caam(patch=(224,))), torch.randn(3, 3, 32, 32)
    features = model.backbone.run(images)
    one, two = model.add_attention(features, features)
    logits = [model.classify(model.bind(x, view), view) for view, x in enumerate((one, two))]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], model.localize(images).logits)
    other = model.backbone.run(torch.randn(3, 3, 32, 32))
    one, two = model.add_attention(features, other)
    assert not torch.equal(model.classify(model.bind(one, 0), 0), model.classify(model.bind(two, 1), 1))


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({}, 2),
        ({"test_agg": "single"}, 1),
        ({"caam": False}, 1),
        ({"ssam": False}, 1),
        ({"caam": False, "ssam": False}, 1),
    ],
)
def test_at_test_the_convolution_gets_what_closed_gates_would_give_it(settings, factor):
    model, images = caam(gates=0.7, **settings), torch.randn(2, 3, 32, 32)
    bound = model.binds[0](factor * model.backbone.run(images))
    result = model.localize(images)
    assert torch.equal(result.logits, model.classifiers[0](bound.mean((2, 3))))
    assert torch.equal(result.penultimate, bound)
    assert list(result.stages) == ["one", "two", "three"]
    assert torch.equal(result.stages["three"], model.backbone.run(images))


def test_with_its_modules_at_test_the_image_is_both_views():
    model, images = caam(gates=0.3, test_modules=True), torch.randn(2, 3, 32, 32)
    features = model.backbone.run(images)
    bound = model.binds[0](model.channel(features, features)[0] + model.spatial(features, features)[0])
    torch.testing.assert_close(model.localize(images).logits, model.classifiers[0](bound.mean((2, 3))))
    assert not torch.allclose(caam(gates=0.3).localize(images).logits, model.localize(images).logits)


@pytest.mark.parametrize("branch", ["x", "mean"])
@pytest.mark.parametrize("classifier", ["separate", "shared"])
def test_the_mean_of_a_map_plus_the_bias_is_the_logit(branch, classifier):
    model, images = caam(test_branch=branch, classifier=classifier), torch.randn(3, 3, 32, 32)
    result = model.localize(images)
    maps = result.score_maps(torch.arange(CLASSES).expand(3, CLASSES))
    biases = [layer.bias for layer in model.classifiers][: 1 if branch == "x" else 2]
    torch.testing.assert_close(
        maps.mean((2, 3)) + torch.stack(list(biases)).mean(0), result.logits, atol=1e-5, rtol=0
    )


def test_the_mean_of_both_branches_is_the_mean_of_their_maps_and_scores():
    model, images, asked = caam(test_branch="mean"), torch.randn(2, 3, 32, 32), torch.tensor([[0, 4], [3, 3]])
    result = model.localize(images)
    bound = [model.bind(model.skip_attention(model.backbone.run(images)), view) for view in (0, 1)]
    maps = [class_activation_maps(f, model.classifiers[view].weight, asked) for view, f in enumerate(bound)]
    torch.testing.assert_close(result.score_maps(asked), (maps[0] + maps[1]) / 2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.logits, (model.classify(bound[0], 0) + model.classify(bound[1], 1)) / 2)


@pytest.mark.parametrize(
    ("settings", "gone", "terms"),
    [
        ({"caam": False}, "channel.", 3),
        ({"ssam": False}, "spatial.", 3),
        ({"beta": 0.0}, None, 2),
        ({"caam": False, "ssam": False, "beta": 0.0}, "channel.", 2),
    ],
)
def test_each_part_can_be_left_out(settings, gone, terms):
    model = caam(gates=0.1, **settings).train()
    losses = model.loss(batch())
    assert len(losses) == terms
    sum(losses.values()).backward()
    names = [name for name, _ in model.named_parameters()]
    assert gone is None or not any(name.startswith(gone) for name in names)
    assert [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ] == []


def test_layers_are_shared_by_the_views_or_separate():
    assert (len(caam().binds), len(caam().classifiers), len(caam().spatial.query)) == (2, 2, 1)
    model = caam(gates=0.1, agg_conv="shared", classifier="shared", ssam_convs="separate")
    assert (len(model.binds), len(model.classifiers), len(model.spatial.query)) == (1, 1, 2)
    sum(model.loss(batch()).values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(("target", "free"), [("x", 1), ("complement", 0)])
def test_a_map_can_be_a_target_without_gradient(target, free):
    model = caam(fuse_detach=target)
    model.loss(batch())["fusion"].backward()
    assert model.classifiers[free].weight.grad.any()
    assert model.classifiers[1 - free].weight.grad is None


def test_the_convolution_that_binds_has_the_asked_kernel_width_and_activation():
    assert [layer.weight.shape for layer in caam().modules() if isinstance(layer, torch.nn.Conv2d)][-1] == (
        16,
        16,
        3,
        3,
    )
    model = caam(agg_kernel=1, agg_width=6, agg_relu=False)
    assert model.binds[0][0].weight.shape == (6, 16, 1, 1)
    features = torch.randn(2, 16, 4, 4)
    assert (model.bind(features, 0) < 0).any()
    assert (caam().bind(features, 0) >= 0).all()


def test_mixed_precision_gives_nearly_the_same_loss():
    model = caam(gates=0.05)
    plain = model.loss(batch())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.loss(batch())
    for name, value in plain.items():
        assert mixed[name].dtype == torch.float32
        torch.testing.assert_close(mixed[name], value, atol=0.1, rtol=0.1)


def test_networks_with_a_choice_get_the_grid_of_14_and_resnet_a_smaller_batch():
    assert [Caam.grid_for(name, CaamConfig()) for name in ("resnet50", "inception_v3", "vgg16", "tiny")] == [
        "std14",
        "std14",
        "default",
        "default",
    ]
    assert Caam.grid_for("resnet50", CaamConfig(grid="std28")) == "std28"
    assert Caam.recipe_for("resnet50", 200, {}).batch_size == 16
    assert Caam.recipe_for("vgg16", 200, {}).batch_size == 30
    assert Caam.recipe_for("resnet50", 1000, {}).epochs == 20


def test_a_network_of_timm_can_be_trained():
    model = Caam.create(
        backbone="timm:resnet10t",
        num_classes=CLASSES,
        weights="none",
        settings={"agg_width": "8"},
        image_size=32,
    ).train()
    terms = model.loss(batch(2))
    assert all(torch.isfinite(term) for term in terms.values())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"patch": (0, 16)}, "patch of method 'caam' is 0,16"),
        ({"beta": -1.0}, "beta of method"),
        ({"agg_width": -1}, "agg_width of method"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(UsageError, match=message):
        caam(**setting)
