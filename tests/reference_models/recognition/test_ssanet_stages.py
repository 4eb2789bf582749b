"""SSANET: what each stage of a run trains, and rows that share a stage."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from reference_models.core.config import parse_settings, split_settings
from reference_models.core.recipes import RECIPES
from reference_models.layers.navigator import rank_loss
from reference_models.recognition.ssanet.method import Ssanet, SsanetConfig
from reference_models.recognition.ssanet.part_agreement import mac_loss
from reference_models.recognition.ssanet.run_stages import stages_of
from tests.reference_models.conftest import squares, toy_backbone, toy_batch
from tests.reference_models.recognition.ssanet_models import (
    CLASSES,
    at_stage,
    batch,
    proposed,
    seen_parts,
    ssanet,
)
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest

LEARNS = [
    {"backbone", "navigator", "part_classifier", "global_classifier"},
    {"heads.mining"},
    {"heads.orienting", "global_classifier"},
    {"navigator", "part_classifier"},
]


def part_of(name: str) -> str:
    return ".".join(name.split(".")[:2]) if name.startswith("heads") else name.split(".", maxsplit=1)[0]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_stage_trains_its_parts_and_leaves_the_others_to_the_bit(stage):
    model = at_stage(stage)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    sum(model.loss(batch()).values()).backward()
    optimizer.step()
    moved = {
        part_of(name) for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == LEARNS[stage]
    assert {
        part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad
    } == LEARNS[stage]
    assert model.backbone.training == (stage == 0)


def test_the_first_stage_has_the_terms_of_equation_1_and_those_that_it_lacks():
    model, given_batch = at_stage(0, mac_weight=0.7), batch()
    model.eval()  # the same numbers in two passes
    terms = model.loss(given_batch)
    found = proposed(model, given_batch.images, 6)
    parts = seen_parts(model, given_batch.images, found.boxes).mean((3, 4))
    costs = torch.stack(
        [
            F.cross_entropy(model.part_classifier(parts[:, j]), given_batch.labels, reduction="none")
            for j in range(6)
        ],
        dim=1,
    )
    whole = model.global_classifier(model.backbone.run(given_batch.images).mean((2, 3)))
    expected = {
        "global": F.cross_entropy(whole, given_batch.labels),
        "part": costs[:, :4].sum(1).mean(),
        "rank": rank_loss(found.scores, costs),
        "mac": 0.7 * mac_loss(parts[:, :4], with_self=False, reduction="mean"),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, atol=1e-5, rtol=1e-4)


def test_later_stages_have_the_cross_entropy_of_each_part_and_of_their_sum():
    given_batch, losses = batch(), {}
    for stage in (1, 2):
        model = at_stage(stage)
        boxes = proposed(model, given_batch.images, 6).boxes[:, :4]
        reading = model.heads(
            lambda boxes, model=model: [seen_parts(model, given_batch.images, boxes)],
            boxes,
            given_batch.labels,
        )
        name, scores = (("scale", reading.scales), ("orientation", reading.orientations))[stage - 1]
        losses = {
            name: sum(F.cross_entropy(scores[:, part], given_batch.labels) for part in range(4)),
            f"{name}_sum": F.cross_entropy(scores.sum(1), given_batch.labels),
        }
        if stage == 2:
            whole = model.global_classifier(model.backbone.run(given_batch.images).mean((2, 3)))
            losses["global"] = F.cross_entropy(whole, given_batch.labels) / 3
        terms = model.loss(given_batch)
        assert terms.keys() == losses.keys()
        for key, value in losses.items():
            torch.testing.assert_close(terms[key], value, atol=1e-5, rtol=1e-4)


def test_the_last_stage_tunes_by_parts_and_their_order():
    assert set(at_stage(3).loss(batch())) == {"part", "rank"}


def test_terms_can_be_left_out():
    assert set(at_stage(0, mac_weight=0.0).loss(batch())) == {"global", "part", "rank"}
    assert set(at_stage(0, aux_global=False).loss(batch())) == {"part", "rank", "mac"}
    model = at_stage(0, rank_loss="none", aux_global=False)
    assert set(model.loss(batch())) == {"part", "mac"}
    assert not any(
        parameter.requires_grad
        for parameter in [*model.navigator.parameters(), *model.global_classifier.parameters()]
    )


def test_pooled_scale_mining_takes_over_the_classifier_of_parts_when_its_stage_begins_and_only_then():
    model = ssanet(dsm_feature="gap").train()
    model.on_epoch(0, 271)
    with torch.no_grad():
        model.part_classifier.weight.copy_(torch.randn(CLASSES, 16))
    model.on_epoch(90, 271)
    expected = (model.part_classifier.weight / 5)[None, :, None].expand(-1, -1, 5, -1)
    torch.testing.assert_close(model.heads.mining.weight, expected, atol=2e-3, rtol=0)
    with torch.no_grad():
        model.heads.mining.weight.zero_()
    model.on_epoch(91, 271)
    assert not model.heads.mining.weight.any()


def test_the_control_of_the_modules_trains_the_classifier_of_parts_again_on_frozen_parts():
    model, given_batch = at_stage(1, dsm="fc", op=False), batch()
    assert {part_of(name) for name, p in model.named_parameters() if p.requires_grad} == {"heads.pyramid"}
    assert not model.backbone.training
    again = model.heads.pyramid.classifier
    assert torch.equal(again.weight, model.part_classifier.weight)
    # At first it predicts what the part classifier predicts, and it learns by the loss of DSM's stage.
    model.eval()
    images = given_batch.images
    parts = seen_parts(model, images, proposed(model, images, 6).boxes[:, :4]).mean((3, 4))
    scores = model.part_classifier(parts)
    torch.testing.assert_close(model.localize(images).logits, scores.sum(1), atol=1e-5, rtol=1e-4)
    terms = model.loss(given_batch)
    assert terms.keys() == {"scale", "scale_sum"}
    torch.testing.assert_close(terms["scale_sum"], F.cross_entropy(scores.sum(1), given_batch.labels))
    before = model.state_dict()["part_classifier.weight"].clone()
    sum(terms.values()).backward()
    assert again.weight.grad.any()
    assert torch.equal(model.part_classifier.weight, before)


def test_runs_in_fewer_stages():
    names = [sorted(names) for names, _ in stages_of(SsanetConfig(stage1="joint"))]
    assert names == [["1a", "1b"], ["2"], ["3"]]
    assert [sorted(names) for names, _ in stages_of(SsanetConfig(training="one_stage"))] == [
        ["1a", "1b", "2"]
    ]
    assert [sorted(names) for names, _ in stages_of(SsanetConfig(stage1="joint", dsm="none"))] == [
        ["1a"],
        ["2"],
        ["3"],
    ]
    assert [length for _, length in stages_of(SsanetConfig(stage_epochs=(9, 8, 7, 0)))] == [9, 8, 7]
    for model in (
        at_stage(0, training="one_stage"),
        at_stage(0, stage1="joint", op=False, stage_epochs=(1, 1, 1, 0)),
    ):
        terms = model.loss(batch())
        assert {"part", "rank", "mac", "global", "scale", "scale_sum"} <= terms.keys()
        sum(terms.values()).backward()
        reached = {
            part_of(name)
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and parameter.grad.any()
        }
        assert reached == {part_of(name) for name, _ in model.named_parameters()}


def test_a_run_too_short_for_its_stages_trains_all_at_once():
    model = ssanet().train()
    for epoch in range(3):
        model.on_epoch(epoch, 3)
        assert model.learning == {"1a", "1b", "2"}
        assert all(parameter.requires_grad for parameter in model.parameters())
    model.on_epoch(1, 4)
    assert model.learning == {"1b"}


ONE, TWO, LAST = [1.0] * 60 + [0.1] * 30, [1.0] * 30 + [0.1] * 15, [0.1]
"""Rates of a stage in which the rate falls after 60 epochs, of one in which it falls after 30, and of the
last stage."""


def rates(**settings: str) -> list[float]:
    """The rate in each epoch of the run that these settings ask for, relative to its base."""
    recipe = Ssanet.recipe_for("resnet50", 200, settings)
    model = Ssanet(
        toy_backbone(), CLASSES, parse_settings(SsanetConfig, split_settings(settings)[0], what="ssanet")
    )
    return [
        round(model.lr_factor(recipe, (epoch + 0.5) / recipe.epochs), 6) for epoch in range(recipe.epochs)
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [*ONE, *ONE, *ONE, *LAST]),
        ({"dsm": "none", "op": "false"}, ONE),
        ({"dsm": "none", "op": "false", "mac_weight": "0"}, ONE),
        ({"dsm": "none"}, [*ONE, *ONE, *LAST]),
        ({"op": "false"}, [*ONE, *ONE, *LAST]),
        ({"op": "false", "dsm": "spp"}, [*ONE, *ONE, *LAST]),
        ({"stage1": "joint"}, [*ONE, *ONE, *LAST]),
        ({"training": "one_stage"}, ONE),
        ({"stage_epochs": "90,90,90,0"}, [*ONE, *ONE, *ONE]),
        ({"stage_epochs": "9,9,9,1"}, [*([1.0] * 6 + [0.1] * 3) * 3, *LAST]),
        ({"recipe": "ssanet_aircraft", "dsm": "none", "op": "false"}, ONE),
        ({"recipe": "ssanet_cars"}, [*ONE, *ONE, *TWO, *LAST]),
        ({"recipe": "ssanet_cars", "stage_epochs": "90,90,90,1"}, [*ONE, *ONE, *ONE, *LAST]),
        ({"recipe": "ssanet_cars", "dsm": "none", "op": "false"}, ONE),
        ({"recipe": "ssanet_cars", "dsm": "none"}, [*ONE, *TWO, *LAST]),
        ({"recipe": "ssanet_cars", "op": "false"}, [*ONE, *ONE, *LAST]),
    ],
)
def test_a_run_is_as_long_as_its_stages_and_the_rate_falls_in_each_where_the_paper_has_it(settings, expected):
    assert rates(**settings) == expected


def test_runs_that_take_the_first_stage_from_another_one_are_shorter_by_it(tmp_path):
    parts = tmp_path / "parts.safetensors"
    parts.write_bytes(b"its digest alone matters here")
    assert rates(part_net=str(parts)) == [*ONE, *ONE, *LAST]
    assert rates(part_net=str(parts), op="false") == rates(part_net=str(parts), dsm="none") == [*ONE, *LAST]
    assert rates(part_net=str(parts), recipe="ssanet_cars") == [*ONE, *TWO, *LAST]
    assert rates(part_net=str(parts), training="one_stage") == ONE
    with pytest.raises(UsageError, match="leaves nothing to train"):
        Ssanet.recipe_for("resnet50", 200, {"part_net": str(parts), "dsm": "none", "op": "false"})


def test_another_length_of_the_run_scales_its_stages_and_the_places_where_the_rate_falls():
    assert rates(**{"recipe.epochs": "27", "stage_epochs": "90,90,90,0"}) == ([1.0] * 6 + [0.1] * 3) * 3
    assert rates(**{"recipe.epochs": "30", "dsm": "none", "op": "false"}) == [1.0] * 20 + [0.1] * 10
    for recipe in ("tiny", "finetune"):  # these are as long as they say, whatever the stages
        assert Ssanet.recipe_for("resnet50", 200, {"recipe": recipe, "op": "false"}) == RECIPES[recipe]


def test_the_recipe_has_the_values_of_the_paper():
    recipe, aircraft = (
        Ssanet.recipe_for("resnet50", 200, settings) for settings in ({}, {"recipe": "ssanet_aircraft"})
    )
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (271, 16, 1e-3, 1e-4)
    assert (aircraft.batch_size, aircraft.weight_decay, aircraft.resize) == (24, 5e-4, 1.0)
    assert Ssanet.recipe_for("tiny", 200, {}).optimizer == "adamw"
    assert Ssanet.grid_for("resnet50", SsanetConfig()) == "stock"
    assert (SsanetConfig().stage_epochs, SsanetConfig(recipe="ssanet_cars").stage_epochs) == (
        (90, 90, 90, 1),
        (90, 90, 45, 1),
    )
    slow = ssanet(module_rate=0.05)
    assert [round(slow.lr_factor(recipe, (epoch + 0.5) / 271), 6) for epoch in (0, 90, 180, 270)] == [
        1.0,
        0.05,
        0.05,
        0.1,
    ]
    with pytest.raises(UsageError, match="stage_epochs=90,90 of method 'ssanet': expected four lengths"):
        Ssanet.recipe_for("resnet50", 200, {"stage_epochs": "90,90"})


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_stage_works_in_half_precision(number):
    model = at_stage(number)
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(batch())
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.dtype == torch.float32 and torch.isfinite(term) for term in terms.values())
    assert all(
        torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None
    )


def test_eight_images_can_be_learned_by_heart_stage_by_stage():
    model = Ssanet(toy_backbone(), 4, SsanetConfig(stage_epochs=(25, 35, 20, 0))).train()
    data = squares(8, classes=4)
    images = torch.stack(
        [torch.from_numpy(sample.image()).permute(2, 0, 1) / 128 - 1 for sample in data.samples]
    )
    given_batch = replace(
        toy_batch(8, classes=4), images=images, labels=torch.tensor([sample.label for sample in data.samples])
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses: dict[str, list[float]] = {}
    for epoch in range(80):
        model.train().on_epoch(epoch, 80)
        optimizer.zero_grad()
        terms = model.loss(given_batch)
        sum(terms.values()).backward()
        optimizer.step()
        for name, term in terms.items():
            losses.setdefault(name, []).append(float(term.detach()))
    for name in ("part", "scale", "scale_sum", "orientation", "orientation_sum"):
        assert losses[name][-1] < 0.5 * losses[name][0], name
    assert (model.eval().localize(images).logits.argmax(1) == given_batch.labels).float().mean() > 0.5


def test_a_run_of_the_loop_goes_through_all_stages(tmp_path):
    settings = {"stage_epochs": "1,1,1,1", "variant": "light"}
    request = TrainRequest(
        train=squares(8),
        out=tmp_path,
        backbone="tiny",
        weights="none",
        epochs=4,
        batch_size=4,
        image_size=32,
        workers=0,
        settings=settings,
    )
    path = Ssanet.fit(request)
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    terms = [
        {name for name in ("part", "mac", "rank", "global", "scale", "orientation") if row[name]}
        for row in rows
    ]
    assert terms == [
        {"part", "mac", "rank", "global"},
        {"scale"},
        {"orientation", "global"},
        {"part", "rank"},
    ]
    assert Ssanet.load(path, device="cpu").localize(torch.randn(2, 3, 32, 32)).logits.shape == (2, 3)


@pytest.mark.parametrize("stop_before", [1, 2, 3, 4, 5, 6])
def test_a_run_that_was_stopped_within_a_stage_or_between_two_ends_with_the_same_weights(
    tmp_path, monkeypatch, stop_before
):
    settings = {"stage_epochs": "2,2,2,1", "variant": "light"}
    options = {
        "backbone": "tiny",
        "weights": "none",
        "epochs": 7,
        "batch_size": 4,
        "image_size": 32,
        "workers": 0,
    }
    unbroken, broken = (
        TrainRequest(train=squares(8), out=tmp_path / name, settings=settings, **options)
        for name in ("one", "two")
    )
    begin = Ssanet.on_epoch

    def stop(self, epoch, epochs):
        if epoch == stop_before:
            raise KeyboardInterrupt
        begin(self, epoch, epochs)

    monkeypatch.setattr(Ssanet, "on_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        Ssanet.fit(broken)
    monkeypatch.setattr(Ssanet, "on_epoch", begin)
    one, two = (load_file(Ssanet.fit(request)) for request in (unbroken, broken))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_rows_with_dsm_or_op_share_the_first_stage_of_another_run(tmp_path):
    def asked(out: Path, **settings: str) -> TrainRequest:
        settings |= {"variant": "light"}
        options = {
            "backbone": "tiny",
            "weights": "none",
            "epochs": 2,
            "batch_size": 4,
            "image_size": 32,
            "workers": 0,
        }
        return TrainRequest(train=squares(8), out=out, settings=settings, **options)

    parts = Ssanet.fit(asked(tmp_path / "parts", dsm="none", op="false"))
    path = Ssanet.fit(asked(tmp_path / "mined", part_net=str(parts), op="false", stage_epochs="1,1,1,0"))
    shared, mined = load_file(parts), load_file(path)
    kept = [
        name
        for name in shared
        if name.split(".")[0] in ("backbone", "navigator", "part_classifier", "global_classifier")
    ]
    assert len(kept) > 10
    assert all(torch.equal(shared[name], mined[name]) for name in kept)
    rows = list(csv.DictReader((tmp_path / "mined/log.csv").read_text().splitlines()))
    assert all(row["scale"] for row in rows)
    assert not any("part" in row for row in rows)
    loaded = Ssanet.load(path, device="cpu")
    config = loaded.config
    assert len(config.part_net_sha256) == 64
    epochs = len(rows)  # 8 images each, after 2 epochs of the parts
    assert loaded.describe()["training"]["images_seen"] == 8 * (2 + epochs)
    parts.unlink()
    Ssanet.load(path, device="cpu")  # what was taken over is in the checkpoint

    with pytest.raises(UsageError, match="no file"):
        SsanetConfig(part_net=str(parts))
    with pytest.raises(UsageError, match="leaves nothing to train"):
        ssanet(part_net=str(path), dsm="none", op=False)


def test_a_recipe_of_another_name_keeps_its_length_whatever_it_equals():
    short = SsanetConfig(dsm="none", op=False)
    assert [
        Ssanet.adjust_recipe(name, Ssanet.recipes["ssanet_cub"], short).epochs
        for name in ("ssanet_cub", "mine")
    ] == [90, 271]
