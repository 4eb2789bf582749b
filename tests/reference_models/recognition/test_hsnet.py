"""HSnet: boxes of a search, what an LSTM sees in them, and the loss that lets it learn where to look."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reference_models.recognition.hsnet import (
    Hsnet,
    HsnetConfig,
    Memory,
    Search,
    heuristic_map,
    next_box,
    ranked_boxes,
    region_means,
    rise_loss,
    to_corners,
)
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError

CLASSES = 5
WHOLE = [0.5, 0.5, 1.0, 1.0]


def hsnet(**settings) -> Hsnet:
    model = Hsnet(toy_backbone(), CLASSES, HsnetConfig(**{"hidden": 12, **settings}))
    nn.init.normal_(model.classifier.weight)
    if model.successor is not None:
        nn.init.normal_(model.successor.weight)
    return model.eval()


# --- boxes --------------------------------------------------------------------------------------------------


def test_boxes_stay_valid_whatever_the_moves():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([WHOLE]).repeat(200, 1)
    for step in range(30):
        moves = torch.rand(200, 4, generator=generator) * 2 - 1
        if step % 3 == 0:
            moves = moves.sign()  # the largest ones
        boxes = next_box(boxes, moves)
        corners = to_corners(boxes)
        assert corners.min() >= -1e-6
        assert corners.max() <= 1 + 1e-6
        assert boxes[:, 2:].min() >= 1 / 8
        assert boxes[:, 2:].max() <= 1
    assert boxes[:, 2:].min() == 1 / 8
    assert len(boxes.unique(dim=0)) > 150


def test_a_move_shifts_by_half_a_side_and_scales_by_the_root_of_e():
    box = torch.tensor([[0.4, 0.5, 0.2, 0.3]], dtype=torch.float64)
    right = next_box(box, torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64))
    assert right[0].tolist() == pytest.approx([0.5, 0.5, 0.2, 0.3])
    wide = next_box(box, torch.tensor([[0.0, 0, 1, -1]], dtype=torch.float64))
    assert wide[0].tolist() == pytest.approx([0.4, 0.5, 0.2 * 2.718281828**0.5, 0.3 / 2.718281828**0.5])
    still = next_box(box, torch.zeros_like(box))
    assert torch.equal(still, box)


def test_the_mean_of_a_box_counts_each_cell_by_its_share_inside():
    features = torch.rand(1, 2, 4, 5, dtype=torch.float64)
    fine = features.repeat_interleave(10, 2).repeat_interleave(8, 3)  # 40x40 pixels
    for x0, y0, x1, y1 in ((0, 0, 40, 40), (3, 7, 21, 8), (10, 10, 12, 39), (39, 0, 40, 40)):
        box = torch.tensor([[(x0 + x1) / 80, (y0 + y1) / 80, (x1 - x0) / 40, (y1 - y0) / 40]]).double()
        expected = fine[0, :, y0:y1, x0:x1].mean(dim=(1, 2))
        torch.testing.assert_close(region_means(features, box)[0], expected)


def test_the_mean_is_differentiable_in_the_box_and_the_features():
    features = torch.rand(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.43, 0.52, 0.31, 0.44], [0.3, 0.63, 0.22, 0.57]], dtype=torch.float64)
    assert torch.autograd.gradcheck(region_means, (features, boxes.requires_grad_()))


def test_the_memory_is_torch_s_lstm_cell():
    memory, cell = Memory(7, 5), nn.LSTMCell(7, 5)
    with torch.no_grad():
        cell.weight_ih.copy_(memory.of_input.weight)
        cell.weight_hh.copy_(memory.of_state.weight)
        cell.bias_ih.copy_(memory.of_input.bias)
        cell.bias_hh.zero_()
    mine = theirs = None
    for _ in range(3):
        x = torch.randn(4, 7)
        mine, theirs = memory(x, mine), cell(x, theirs)
        for one, two in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, two)


# --- the search ---------------------------------------------------------------------------------------------


def test_without_a_successor_all_boxes_are_the_image_and_the_lstm_sees_its_mean():
    model, features = hsnet(successor="none"), torch.rand(3, 16, 8, 8)
    found = model.search(features)
    assert (found.boxes == torch.tensor(WHOLE)).all()
    state = None
    for step in range(4):
        state = model.memory(features.mean(dim=(2, 3)), state)
        torch.testing.assert_close(found.scores[:, step], model.classifier(state[0]), atol=1e-5, rtol=1e-4)


def test_one_step_is_the_baseline_through_an_lstm_cell():
    model, images = hsnet(steps=1), torch.randn(3, 3, 32, 32)
    pooled = model.backbone.run(images).mean(dim=(2, 3))
    expected = model.classifier(model.memory(pooled)[0])
    torch.testing.assert_close(model.localize(images).logits, expected, atol=1e-5, rtol=1e-4)
    assert model.localize(images).propose().boxes.shape == (3, 0, 4)
    assert set(model.loss(toy_batch(4, classes=CLASSES))) == {"fused", "steps", "maps"}


def test_each_step_sees_the_box_that_the_state_before_it_asked_for():
    model, features = hsnet(), torch.rand(2, 16, 8, 8)
    found, state, box = model.search(features), None, torch.tensor([WHOLE]).expand(2, 4)
    for step in range(4):
        torch.testing.assert_close(found.boxes[:, step], box)
        state = model.memory(region_means(features, box), state)
        torch.testing.assert_close(found.values[:, step], model.value(state[0])[:, 0].sigmoid())
        box = next_box(box, model.successor(state[0]).tanh())


def test_weights_of_the_steps_sum_to_1():
    scores, values = torch.ones(2, 4, 3), torch.rand(2, 4)
    torch.testing.assert_close(Search(torch.rand(2, 4, 4), values, scores).fused(), torch.ones(2, 3))
    scores[:, 1] = 2
    share = values.exp()[:, 1] / values.exp().sum(1)
    torch.testing.assert_close(Search(torch.rand(2, 4, 4), values, scores).fused()[:, 0], 1 + share)


def test_where_a_step_looks_gets_the_gradient_of_finite_differences():
    model, features = hsnet(steps=2).double(), torch.rand(1, 16, 8, 8, dtype=torch.float64)
    state = model.memory(features.mean(dim=(2, 3)))
    whole = torch.tensor([WHOLE], dtype=torch.float64)

    def cost(move: torch.Tensor) -> torch.Tensor:
        seen, _ = model.memory(region_means(features, next_box(whole, move)), state)
        return F.cross_entropy(model.classifier(seen), torch.tensor([2]))

    move = torch.tensor([[0.1, -0.2, -0.63, -0.47]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(cost(move), move)
    assert (gradient != 0).all()
    for entry in range(4):
        step = torch.zeros_like(move)
        step[0, entry] = 1e-6
        slope = (cost(move + step) - cost(move - step)) / 2e-6
        assert gradient[0, entry].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-9)


def test_the_first_move_shrinks_the_box_of_a_new_model():
    model = Hsnet(toy_backbone(), CLASSES, HsnetConfig())
    found = model.search(torch.rand(4, 16, 8, 8))
    sides = found.boxes[..., 2:]
    assert (sides[:, 1:] < sides[:, :-1]).all()  # at the side of the image there would be no gradient
    found.scores[:, 1].sum().backward()
    assert model.successor.weight.grad.abs().sum() > 0


# --- the loss -----------------------------------------------------------------------------------------------


def test_each_step_has_to_be_surer_than_the_one_before():
    sure = torch.tensor([[0.3, 0.5, 0.5, 0.4]], dtype=torch.float64)
    scores = torch.stack([sure, 1 - sure], dim=2).log().requires_grad_()
    loss = rise_loss(scores, torch.tensor([0]), 0.05)
    assert loss.item() == pytest.approx(0.05 + 0.15)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient[0, :, 0].sign().tolist() == [0, 0, -1, -1]


def test_terms_of_the_loss():
    model, batch = hsnet(rise_weight=0.3, margin=0.2), toy_batch(4, classes=CLASSES)
    found, terms = model.search(model.backbone.run(batch.images)), model.loss(batch)
    torch.testing.assert_close(terms["fused"], F.cross_entropy(found.fused(), batch.labels))
    each = [F.cross_entropy(found.scores[:, step], batch.labels) for step in range(4)]
    torch.testing.assert_close(terms["steps"], sum(each) / 4)
    sure = found.scores.softmax(2)[torch.arange(4), :, batch.labels]
    rise = (sure[:, :-1] - sure[:, 1:] + 0.2).relu().sum(1).mean()
    torch.testing.assert_close(terms["rise"], 0.3 * rise)
    assert "rise" not in hsnet(rise_weight=0.0).loss(batch)


def test_the_classifier_of_the_maps_does_not_train_the_features():
    model = hsnet().train()
    model.loss(toy_batch(4, classes=CLASSES))["maps"].backward()
    assert {name.split(".")[0] for name, each in model.named_parameters() if each.grad is not None} == {
        "image_classifier"
    }


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_every_parameter_learns(steps):
    model = hsnet(steps=steps).train()
    sum(model.loss(toy_batch(4, classes=CLASSES)).values()).backward()
    assert [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()] == []


def test_the_search_is_in_single_precision():
    model, features = hsnet(), torch.rand(2, 16, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.search(features)
    plain = model.search(features.float())
    assert torch.equal(mixed.boxes, plain.boxes)
    assert torch.equal(mixed.scores, plain.scores)


def test_a_few_steps_of_training_lower_the_loss():
    model = Hsnet(toy_backbone(), CLASSES, HsnetConfig(hidden=32)).train()
    batch, losses = toy_batch(8, classes=CLASSES), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(25):
        terms = model.loss(batch)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        losses.append(float(terms["fused"].detach()))
    assert losses[-1] < 0.6 * losses[0]


# --- results ------------------------------------------------------------------------------------------------


def test_proposals_are_the_boxes_after_the_image_by_value():
    boxes = torch.tensor([[WHOLE, [0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 0.5, 0.25], [0.25, 0.25, 0.5, 0.5]]])
    proposals = ranked_boxes(Search(boxes, torch.tensor([[0.9, 0.2, 0.8, 0.5]]), torch.zeros(1, 4, 2)), 32)
    assert proposals.boxes[0].tolist() == [[8, 12, 24, 20], [0, 0, 16, 16], [0, 0, 16, 16]]
    assert proposals.scores[0].tolist() == pytest.approx([0.8, 0.5, 0.2])
    assert proposals.padded[0].tolist() == [False, False, True]


def test_the_heuristic_map_adds_up_the_values_of_the_boxes_around_a_cell():
    boxes = torch.tensor([[WHOLE, [0.25, 0.25, 0.5, 0.5]]])
    found = Search(boxes, torch.tensor([[0.4, 0.8]]), torch.zeros(1, 2, 2))
    expected = [[0.6, 0.6, 0.2, 0.2], [0.6, 0.6, 0.2, 0.2], [0.2] * 4, [0.2] * 4]
    torch.testing.assert_close(heuristic_map(found, (4, 4))[0], torch.tensor(expected))
    assert set(hsnet().localize(torch.randn(2, 3, 32, 32)).extra_maps) == {"heuristic", "parts", "union"}


def test_the_recipe_and_invalid_settings():
    recipe = Hsnet.recipe_for("resnet50", 200, {})
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.new_factor, recipe.weight_decay) == (
        *(90, 16, 1e-3, 10),
        1e-4,
    )
    assert [round(recipe.lr_factor(epoch / 90), 9) for epoch in (0, 59.9, 60, 89)] == [1, 1, 0.1, 0.1]
    for settings, message in (
        ({"steps": 0}, "steps"),
        ({"margin": 2.0}, "margin"),
        ({"hidden": -1}, "hidden"),
    ):
        with pytest.raises(UsageError, match=f"setting {message} .* is {next(iter(settings.values()))}"):
            HsnetConfig(**settings)
