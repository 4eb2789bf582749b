"""Running statistics per kind of input: whose they are, when they move, and what does not depend on them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from reference_models.core.config import from_json, parse_settings, to_json
from reference_models.core.model import Model
from reference_models.layers.norm_statistics import BUFFERS, PartStatistics
from reference_models.recognition.focus_discriminate import FocusDiscriminate
from reference_models.recognition.nts_net import NtsNet
from reference_models.recognition.ssanet.method import Ssanet
from reference_models.recognition.tasn.method import Tasn
from reference_models.training.checkpoint import load_checkpoint
from reference_models.training.loop import fit
from reference_models.training.parallel import synchronise_batch_norm
from tests.reference_models.conftest import squares, toy_backbone, toy_batch
from tests.reference_models.training.test_loop import request
from wsolbench.exceptions import DataError, UsageError
from wsolbench.testing import run_check

CLASSES = 5
METHODS = (NtsNet, Ssanet, FocusDiscriminate)
EVERY = (*METHODS, Tasn)
"""Also the method whose parts are seen in training only."""
PLAIN = {"ssanet": {"dsm": "none", "op": "false"}}


def create(method: type[Model], seed: int = 0, **settings: str) -> Model:
    torch.manual_seed(seed)
    config = parse_settings(
        method.Config, {**PLAIN.get(method.method_name, {}), **settings}, what=method.method_name
    )
    return method(toy_backbone(), CLASSES, config)


def pair(method: type[Model]) -> tuple[Model, Model]:
    """The same weights with shared statistics, and with statistics per input."""
    return create(method), create(method, norm_statistics="per_input")


def of_images(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.backbone.named_buffers()}


def of_parts(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.part_statistics.named_buffers()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, two[name]) for name, value in one.items())


# --- the switch ---------------------------------------------------------------------------------------------


def test_only_the_statistics_of_the_kind_that_passed_move():
    backbone = toy_backbone().train()
    own = PartStatistics(backbone, "per_input")
    images, parts = ({n: b.clone() for n, b in module.named_buffers()} for module in (backbone, own))
    backbone.run(torch.randn(4, 3, 32, 32))
    assert same(parts, dict(own.named_buffers()))
    images = {name: value.clone() for name, value in backbone.named_buffers()}
    with own.in_use(backbone):
        backbone.run(torch.randn(4, 3, 32, 32))
    assert same(images, dict(backbone.named_buffers()))
    assert all(not torch.equal(parts[name], value) for name, value in own.named_buffers())
    assert len(parts) == len(BUFFERS) * 3


def test_parts_have_the_mean_and_variance_of_parts():
    """With a momentum of 1, running statistics are those of the last batch: an oracle for both kinds."""
    backbone = toy_backbone().train()
    first = backbone.steps["one"]
    first[1].momentum = 1.0
    own = PartStatistics(backbone, "per_input")
    images, parts = torch.randn(4, 3, 32, 32), 3 * torch.randn(6, 3, 16, 16) + 1
    with own.in_use(backbone):
        backbone.run(parts)
    backbone.run(images)
    for buffers, seen in ((own.layers["steps/one/1"], parts), (first[1], images)):
        values = first[0](seen).transpose(0, 1).flatten(1)
        torch.testing.assert_close(buffers.running_mean, values.mean(1))
        torch.testing.assert_close(buffers.running_var, values.var(1))


def test_evaluation_normalises_each_kind_by_its_own_statistics():
    backbone, images = toy_backbone().eval(), torch.randn(2, 3, 32, 32)
    own, other = PartStatistics(backbone, "per_input"), toy_backbone().eval()
    other.load_state_dict(backbone.state_dict())
    for name, layer in own.layers.items():
        layer.running_mean += torch.rand_like(layer.running_mean)
        other.get_submodule(name.replace("/", ".")).running_mean.copy_(layer.running_mean)
    before = backbone.run(images)
    with own.in_use(backbone):
        torch.testing.assert_close(backbone.run(images), other.run(images), rtol=0, atol=0)
    assert torch.equal(backbone.run(images), before)
    assert not torch.equal(before, other.run(images))


def test_an_error_in_a_pass_leaves_each_kind_its_statistics():
    backbone = toy_backbone().train()
    own = PartStatistics(backbone, "per_input")
    before = [buffer.data_ptr() for buffer in (*backbone.buffers(), *own.buffers())]
    with pytest.raises(RuntimeError), own.in_use(backbone):
        backbone.run(torch.randn(2, 4, 32, 32))
    assert [buffer.data_ptr() for buffer in (*backbone.buffers(), *own.buffers())] == before


def test_shared_statistics_are_the_backbone_s_alone():
    backbone = toy_backbone().train()
    own = PartStatistics(backbone, "shared")
    assert not own.state_dict()
    before = of_images(create(NtsNet))
    with own.in_use(backbone):
        backbone.run(torch.randn(2, 3, 32, 32))
    assert not same(before, dict(backbone.named_buffers()))


def test_synchronised_batch_norm_keeps_both_kinds():
    backbone = toy_backbone()
    own = PartStatistics(backbone, "per_input")
    pointers = [buffer.data_ptr() for buffer in own.buffers()]
    backbone = synchronise_batch_norm(backbone)
    assert isinstance(backbone.steps["one"][1], torch.nn.SyncBatchNorm)
    with own.in_use(backbone):
        assert [buffer.data_ptr() for buffer in backbone.buffers()] == pointers


# --- the methods --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EVERY)
def test_a_new_model_predicts_the_same_with_either_setting(method):
    shared, own = (model.eval() for model in pair(method))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(shared.localize(images).logits, own.localize(images).logits)


@pytest.mark.parametrize("method", EVERY)
def test_steps_with_the_statistics_of_the_batch_give_the_same_weights_with_either_setting(method):
    trained = []
    for model in pair(method):
        model.train().on_epoch(0, 300)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for seed in range(3):
            optimizer.zero_grad()
            sum(
                model.loss(replace(toy_batch(4, classes=CLASSES), generator=seeded(seed))).values()
            ).backward()
            optimizer.step()
        trained.append(model)
    shared, own = trained
    assert same(dict(shared.named_parameters()), dict(own.named_parameters()))
    # Both kinds have moved away from each other, and shared ones have moved twice as often.
    assert not same(of_images(shared), of_images(own))
    for name, layer in own.part_statistics.layers.items():
        image = own.backbone.get_submodule(name.replace("/", "."))
        assert not torch.equal(image.running_mean, layer.running_mean)
        assert image.num_batches_tracked == layer.num_batches_tracked == 3
        assert shared.backbone.get_submodule(name.replace("/", ".")).num_batches_tracked == 6
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(shared.eval().localize(images).logits, own.eval().localize(images).logits)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("method", EVERY)
def test_equal_inputs_of_both_kinds_give_the_shared_statistics(method):
    """A momentum of 1 keeps only the last batch; of equal batches it does not matter whose it is."""
    shared, own = pair(method)
    images = torch.randn(2, 3, 32, 32)
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0]]).expand(2, 1, 4)  # the whole image, at its own size
    for model in (shared, own):
        for layer in model.backbone.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        model.train()
        model.part_size = 32  # ssanet
        if method is not Tasn:
            object.__setattr__(model.config, "part_size", 32)
        with torch.no_grad():
            features = model.backbone.run(images)
            if method is Ssanet:
                model.look(images, features, boxes)
            elif method is Tasn:
                model.look_at_detail(images)
            else:
                (model.look if method is NtsNet else model.region_features)(images, boxes)
    for name, layer in own.part_statistics.layers.items():
        for module in (own.backbone, shared.backbone):
            other = module.get_submodule(name.replace("/", "."))
            torch.testing.assert_close(layer.running_mean, other.running_mean)
            torch.testing.assert_close(layer.running_var, other.running_var)


@pytest.mark.parametrize("method", METHODS)
def test_parts_at_test_are_seen_with_the_statistics_of_parts(method):
    model = create(method, norm_statistics="per_input").eval()
    images = torch.randn(2, 3, 32, 32)
    before = model.localize(images)
    for layer in model.part_statistics.layers.values():
        layer.running_mean += 1
    after = model.localize(images)
    assert torch.equal(before.penultimate, after.penultimate)
    assert not torch.equal(before.logits, after.logits)


def test_views_of_details_take_no_part_at_test():
    model, images = create(Tasn, norm_statistics="per_input").eval(), torch.randn(2, 3, 32, 32)
    before = model.localize(images).logits
    for layer in model.part_statistics.layers.values():
        layer.running_mean += 1
    assert torch.equal(before, model.localize(images).logits)
    model.backbone.steps["one"][1].running_mean += 1
    assert not torch.equal(before, model.localize(images).logits)


@pytest.mark.parametrize("name", [method.method_name for method in EVERY])
@pytest.mark.parametrize("check", ["fake_gpu", "checkpoint"])
def test_statistics_per_input_pass_the_checks_of_every_method(name, check):
    run_check(name, check, settings={"norm_statistics": "per_input"})


# --- runs and records ---------------------------------------------------------------------------------------


def test_the_default_is_not_written_so_that_older_runs_stay_the_same_run():
    for method in EVERY:
        plain, own = method.Config(), method.Config(norm_statistics="per_input")
        assert "norm_statistics" not in to_json(plain)
        assert to_json(own) == {**to_json(plain), "norm_statistics": "per_input"}
        for config in (plain, own):
            assert from_json(method.Config, to_json(config)) == config


def test_a_run_stores_both_kinds_and_its_parts_can_be_used_by_another_run(tmp_path):
    settings = {**PLAIN["ssanet"], "norm_statistics": "per_input", "proposals": "4", "recipe.lr": "0.01"}
    first = request(tmp_path / "first", train=squares(8), epochs=1, batch_size=4, settings=settings)
    path = fit(Ssanet, first)
    stored = load_file(path)
    kinds = {
        prefix: [n for n in stored if n.startswith(prefix)] for prefix in ("backbone.", "part_statistics.")
    }
    assert any("running_mean" in name for name in kinds["part_statistics."])
    assert not any("part" in name for name in kinds["backbone."])
    loaded = load_checkpoint(Ssanet, path)
    assert same(
        loaded.part_statistics.state_dict(),
        {
            name.removeprefix("part_statistics."): value
            for name, value in stored.items()
            if name.startswith("part_statistics.")
        },
    )
    # Modules on these parts read the statistics, which do not move any more.
    more = {"norm_statistics": "per_input", "dsm_feature": "gap", "part_net": str(path), "op": "false"}
    second = request(tmp_path / "second", train=squares(8), epochs=2, batch_size=4, settings=more)
    after = load_checkpoint(Ssanet, fit(Ssanet, second))
    assert same(of_parts(loaded), of_parts(after))
    assert same(of_images(loaded), of_images(after))
    with pytest.raises(DataError, match=r"part_statistics .* has \d+ that are not expected"):
        fit(Ssanet, replace(second, out=tmp_path / "third", settings={**more, "norm_statistics": "shared"}))


def test_regions_of_the_features_have_no_statistics_of_their_own():
    with pytest.raises(UsageError, match="use part_source=crop"):
        create(Ssanet, part_source="roi", norm_statistics="per_input")


def test_a_step_changes_the_buffers_that_several_processes_synchronise():
    """`synchronised_step` compares the tensors of `model.buffers()` before and after a step."""
    model = create(NtsNet, norm_statistics="per_input").train()
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    sum(model.loss(toy_batch(4, classes=CLASSES)).values()).backward()
    assert all(one is two for one, two in zip(buffers, model.buffers(), strict=True))
    assert not any(map(torch.equal, before, buffers))
    assert len(buffers) == 2 * 3 * len(BUFFERS)
