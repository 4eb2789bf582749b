"""Boost-CNN: rounds as stages of a run, sums of networks, and runs that are interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from reference_models.core.pooled_recipes import POOLED
from reference_models.core.recipes import RECIPES
from reference_models.core.weights import Weights
from reference_models.recognition.b_cnn import BCnn, BCnnConfig
from reference_models.recognition.boost_cnn.boosting import boost_risk, boost_weights, line_search
from reference_models.recognition.boost_cnn.method import BoostCnn, BoostCnnConfig
from reference_models.training.run_folder import BEST, LAST, STATE
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import DataError, UsageError
from wsolbench.methods import TrainRequest
from wsolbench.testing import squares

CLASSES = 3


def model(*, pretrained: bool = False, **settings) -> BoostCnn:
    backbone = toy_backbone()
    if pretrained:
        backbone.weights = Weights("some", "0" * 64)
    return BoostCnn(backbone, CLASSES, BoostCnnConfig(**settings)).train()


def one_step(net: BoostCnn) -> set[str]:
    """Update once; return what has moved, statistics included."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    optimizer.zero_grad()
    sum(net.loss(toy_batch(4, classes=CLASSES)).values()).backward()
    optimizer.step()
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def finish(net: BoostCnn, scores: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """End every round of a run of as many epochs, with these scores of the training images."""
    monkeypatch.setattr(net, "_scores_of", scores.__getitem__)
    net.before_training(squares(len(scores[0])))
    for epoch in range(len(scores)):
        net.after_epoch(epoch, len(scores))


# --- stages -------------------------------------------------------------------------------------------------


def test_each_round_trains_its_network_first_the_head_then_everything():
    net = model(pretrained=True, rounds=2, stage_epochs=(1, 1))
    for epoch, (number, whole) in enumerate([(0, False), (0, True), (1, False), (1, True)]):
        net.train()
        net.on_epoch(epoch, 4)
        moved = one_step(net)
        own = f"networks.{number}."
        assert all(name.startswith(own) for name in moved)
        assert any(name.startswith(f"{own}backbone.") for name in moved) is whole
        assert f"{own}classifier.weight" in moved


def test_frozen_stages_are_frozen_in_every_network():
    net = model(pretrained=True, rounds=2, stage_epochs=(0, 1))
    net.backbone.freeze(1)
    for epoch in (0, 1):
        net.train()
        net.on_epoch(epoch, 2)
        moved = one_step(net)
        start = f"networks.{epoch}.backbone.steps."
        assert not [name for name in moved if name.startswith(f"{start}one.")]
        assert [name for name in moved if name.startswith(f"{start}two.")]


def test_rates_are_those_of_the_base_in_every_round():
    net = model(pretrained=True, rounds=2, recipe="bcnn")
    base = BCnn(net.backbone, CLASSES, BCnnConfig(recipe="bcnn"))
    recipe = POOLED["bcnn"]
    for share in (0.0, 0.3, 0.55, 0.8, 0.95):
        expected = base.lr_factor(recipe, share)
        assert net.lr_factor(recipe, share / 2) == pytest.approx(expected)
        assert net.lr_factor(recipe, (1 + share) / 2) == pytest.approx(expected)
    heads = [group for group in net.parameter_groups(recipe) if group["name"].endswith("classifier weights")]
    assert [group["name"] for group in heads] == [f"round {n}: classifier weights" for n in (1, 2)]
    one, two = (group["params"][0] for group in heads)
    assert one.shape == two.shape
    assert not torch.equal(one, two)  # heads of their own
    backbones = [
        {key: value for key, value in net.state_dict().items() if key.startswith(f"networks.{n}.backbone.")}
        for n in (0, 1)
    ]
    for left, right in zip(*(found.values() for found in backbones), strict=True):
        assert torch.equal(left, right)  # the same start


def test_rounds_share_the_epochs_of_the_recipe_or_have_their_own():
    assert BoostCnn.recipe_for("vgg16", 200, {}) == POOLED["bcnn"]
    assert BoostCnn.recipe_for("vgg16", 200, {"round_epochs": "20"}).epochs == 60
    assert BoostCnn.recipe_for("tiny", 200, {}) == RECIPES["tiny"]
    net = model(rounds=3)
    assert [net.round_at(epoch, 9).stage for epoch in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [net.round_at(epoch, 2).stage for epoch in range(2)] == [0, 1]  # fewer epochs than rounds


# --- boosting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shrinkage", [0.1, 1.0])
def test_steps_sums_and_logits_follow_the_equations(shrinkage, monkeypatch):
    net, train = model(rounds=3, shrinkage=shrinkage), squares(12)
    labels = torch.tensor([sample.label for sample in train.samples])
    good = torch.eye(CLASSES)[labels]
    scores = [good + 0.8 * torch.randn(12, CLASSES) for _ in range(3)]
    finish(net, scores, monkeypatch)
    f = torch.zeros(12, CLASSES)
    for number, g in enumerate(scores):
        alpha = line_search(f.double(), g.double(), labels, net.config.cap).float()
        assert alpha > 0
        torch.testing.assert_close(net.steps[number], alpha)
        after = f + shrinkage * alpha * g
        assert boost_risk(after, labels) < boost_risk(f, labels)
        f = after
    torch.testing.assert_close(net.sums, f)
    torch.testing.assert_close(net.size, boost_weights(f, labels).norm(dim=1).mean())
    images = torch.randn(4, 3, 32, 32)
    net.eval()
    logits = net.localize(images).logits
    with torch.no_grad():
        expected = sum(
            shrinkage * step * network.score(images)
            for step, network in zip(net.steps, net.networks, strict=True)
        )
    torch.testing.assert_close(logits, expected)


def test_a_batch_has_the_weights_of_its_images(monkeypatch):
    net = model(rounds=2, shrinkage=1.0)
    scores = [torch.eye(CLASSES)[torch.arange(12) % CLASSES] + 0.8 * torch.randn(12, CLASSES)] * 2
    finish(net, scores[:1], monkeypatch)
    net.train()
    net._select(1)
    given = toy_batch(4, classes=CLASSES)
    g = net.networks[1].score(given.images)
    target = -boost_weights(net.sums[:4], given.labels) / net.size
    loss = net.loss(given)["fit"]
    torch.testing.assert_close(loss, (g - target).square().sum(dim=1).mean() / 4)
    start = model(rounds=2, shrinkage=1.0)  # before training all sums are 0
    assert float(start.size) == pytest.approx(6**0.5)
    torch.testing.assert_close(boost_weights(torch.zeros(4, 3), given.labels).norm(dim=1).mean(), start.size)


def test_a_round_without_descent_does_not_count_and_the_first_alone_does(monkeypatch):
    labels = torch.arange(12) % CLASSES
    good, bad = torch.eye(CLASSES)[labels], -torch.eye(CLASSES)[labels]
    net = model(rounds=3)
    assert net.shares().tolist() == [1, 0, 0]  # before the first round ends
    finish(net, [bad, good, good], monkeypatch)
    assert net.steps[0] == 0
    assert (net.steps[1:] > 0).all()
    torch.testing.assert_close(net.shares(), 0.1 * net.steps)
    one = model(rounds=1)
    finish(one, [bad], monkeypatch)
    assert one.shares().tolist() == [1]


def test_a_single_round_has_the_classes_of_its_network(monkeypatch):
    net = model(rounds=1, fit="cs_log")
    scores = torch.eye(CLASSES)[torch.arange(12) % CLASSES] + torch.randn(12, CLASSES)
    finish(net, [scores], monkeypatch)
    images = torch.randn(9, 3, 32, 32)
    net.eval()
    base = net.networks[0].localize(images).logits
    logits = net.localize(images).logits
    assert net.steps > 0
    assert torch.equal(logits.argmax(dim=1), base.argmax(dim=1))
    net.train()
    given = toy_batch(4, classes=CLASSES)  # before boosting, its loss is that of the base
    torch.testing.assert_close(
        model_like(net).loss(given)["fit"], net.networks[0].loss(given)["cross_entropy"]
    )


def model_like(net: BoostCnn) -> BoostCnn:
    """The same network without sums, as before its training."""
    fresh = model(rounds=1, fit="cs_log")
    fresh.load_state_dict(net.state_dict())
    return fresh


def test_the_control_averages_networks_that_do_not_see_each_other(monkeypatch):
    net = model(rounds=2, combine="mean")
    net.before_training(squares(12))
    assert net.sums is None
    images = torch.randn(4, 3, 32, 32)
    for epoch in range(2):
        net.after_epoch(epoch, 2)
        net.eval()
        with torch.no_grad():
            expected = torch.stack([network.score(images) for network in net.networks[: epoch + 1]])
        torch.testing.assert_close(net.localize(images).logits, expected.mean(dim=0))
    assert net.steps.tolist() == [1, 1]


@pytest.mark.parametrize("combine", ["boost", "mean"])
def test_the_mean_of_a_map_and_the_sum_of_biases_make_a_score(combine):
    net = model(rounds=3, combine=combine).eval()
    net.steps.copy_(torch.tensor([0.7, 2.0, 0.4]))
    for network in net.networks:
        torch.nn.init.normal_(network.classifier.weight)
        torch.nn.init.normal_(network.classifier.bias)
    images = torch.randn(2, 3, 32, 32)
    result = net.localize(images)
    maps = result.score_maps(torch.arange(CLASSES).expand(2, -1))
    bias = (net.shares()[:, None] * torch.stack([network.classifier.bias for network in net.networks])).sum(0)
    torch.testing.assert_close(maps.mean(dim=(2, 3)) + bias, result.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("base", ["kernel-pooling", "hbp", "isqrt-cov", "deep-kspd"])
def test_other_pooled_classifiers_can_be_combined(base, tmp_path):
    path = BoostCnn.fit(request(tmp_path, epochs=2, settings={"base": base, "rounds": "2"}))
    net = BoostCnn.load(path, device="cpu")
    assert {network.method_name for network in net.networks} == {base}
    assert net.localize(torch.randn(1, 3, 32, 32)).logits.isfinite().all()


@pytest.mark.parametrize("base", ["baseline", "boost-cnn"])
def test_other_methods_are_refused(base):
    with pytest.raises(UsageError, match=rf"base of method 'boost-cnn' is {base}.*for instance base=b-cnn"):
        model(base=base)


def test_many_classes_are_refused_unless_logits_are_averaged():
    with pytest.raises(UsageError, match=r"1,000 classes are too many; expected fewer than 500, or comb"):
        BoostCnn(toy_backbone(), 1000, BoostCnnConfig())
    assert len(BoostCnn(toy_backbone(), 1000, BoostCnnConfig(combine="mean", rounds=2)).networks) == 2


# --- runs ---------------------------------------------------------------------------------------------------


def request(out: Path, **changes) -> TrainRequest:
    values = {
        "train": squares(24),
        "val": squares(9, seed=1, split="val"),
        "backbone": "tiny",
        "weights": "none",
        "image_size": 32,
        "epochs": 6,
        "batch_size": 8,
        "device": "cpu",
        "workers": 0,
        "settings": {"rounds": "3", "shrinkage": "1"},
    }
    return TrainRequest(out=out, **{**values, **changes})


def weights_of_another_method(folder: Path) -> str:
    """A checkpoint whose backbone counts as pretrained, so that rounds have two stages."""
    return str(BCnn.fit(request(folder, epochs=1, settings={})))


class KilledError(Exception):
    """Where a run is broken off."""


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    return weights_of_another_method(tmp_path_factory.mktemp("start"))


def from_start(folder: Path, start: str, combine: str) -> TrainRequest:
    settings = {"rounds": "3", "shrinkage": "1", "combine": combine}
    return request(folder, weights=start, epochs=9, settings=settings)


@pytest.fixture(scope="module")
def unbroken(start, tmp_path_factory) -> dict[str, Path]:
    """The checkpoint of an unbroken run for each way to combine."""
    return {
        combine: BoostCnn.fit(from_start(tmp_path_factory.mktemp(combine), start, combine))
        for combine in ("boost", "mean")
    }


@pytest.mark.parametrize("where", ["first step", "middle of a round", "end of a round", "in the pass"])
@pytest.mark.parametrize("combine", ["boost", "mean"])
def test_an_interrupted_run_ends_with_the_bytes_of_an_unbroken_one(
    where, combine, start, unbroken, tmp_path, monkeypatch
):
    whole, killed = unbroken[combine], from_start(tmp_path, start, combine)
    # Epochs 3 to 5 are the second round. Its pass is at the end of epoch 5.
    breaks = {
        "first step": (3, 0),
        "middle of a round": (4, 1),
        "end of a round": (6, 0),
        "in the pass": (5, 9),
    }
    epoch, step = breaks[where]
    loss, after = BoostCnn.loss, BoostCnn.after_epoch

    def broken_loss(self, batch):
        if (batch.epoch, batch.step - batch.epoch * 3) == (epoch, step):
            raise KilledError
        return loss(self, batch)

    def broken_after(self, number, epochs):
        if where == "in the pass" and number == epoch:
            raise KilledError
        after(self, number, epochs)

    with monkeypatch.context() as patch:
        patch.setattr(BoostCnn, "loss", broken_loss)
        patch.setattr(BoostCnn, "after_epoch", broken_after)
        with pytest.raises(KilledError):
            BoostCnn.fit(killed)
    assert (tmp_path / STATE).exists()
    assert BoostCnn.fit(killed).read_bytes() == whole.read_bytes()
    assert (tmp_path / BEST).read_bytes() == whole.with_name(BEST).read_bytes()
    net = BoostCnn.load(whole, device="cpu")
    assert (net.steps > 0).all()


def test_boosting_changes_what_later_rounds_learn(tmp_path):
    """The first networks of both runs are equal; the second ones only differ because of the weights."""
    nets = []
    for combine in ("boost", "mean"):
        settings = {"rounds": "2", "shrinkage": "1", "combine": combine}
        path = BoostCnn.fit(request(tmp_path / combine, epochs=4, settings=settings))
        nets.append(BoostCnn.load(path, device="cpu"))
    boosted, averaged = (net.networks for net in nets)
    assert torch.equal(boosted[0].classifier.weight, averaged[0].classifier.weight)
    assert not torch.equal(boosted[1].classifier.weight, averaged[1].classifier.weight)


def test_a_checkpoint_has_each_network_once_and_cannot_start_another_method(tmp_path):
    path = BoostCnn.fit(request(tmp_path / "boost"))
    described = json.loads(json.dumps(BoostCnn.load(path, device="cpu").describe()))
    one = BCnn.create(backbone="tiny", num_classes=CLASSES, weights="none", settings={}, image_size=32)
    assert described["parameters"] == 3 * sum(each.numel() for each in one.parameters())
    with pytest.raises(DataError, match="contains no backbone"):
        BCnn.fit(request(tmp_path / "other", weights=str(path), settings={}))


def test_accuracy_counts_finished_rounds(tmp_path):
    """The log's last row is the accuracy of the sum of all rounds."""
    given = request(tmp_path, epochs=6)
    net = BoostCnn.load(BoostCnn.fit(given), device="cpu")
    rows = (tmp_path / "log.csv").read_text().splitlines()
    column = rows[0].split(",").index("val_accuracy")
    found = [float(row.split(",")[column]) for row in rows[1:]]
    right = 0
    for sample in given.val.samples:
        image = torch.from_numpy(sample.image()).permute(2, 0, 1)[None] / 255
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (net.input_spec.mean, net.input_spec.std)
        )
        right += int(net.localize((image - mean) / std).logits.argmax()) == sample.label
    assert found[-1] == pytest.approx(right / 9)
    assert found[2] == found[1]  # in the second round the sum is the first network
    assert (tmp_path / LAST).exists()
