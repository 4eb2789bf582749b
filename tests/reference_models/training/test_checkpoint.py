"""Checkpoints: bit for bit there and back, and clear about files that are something else."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file

from reference_models.base.head_localizer import HeadConfig
from reference_models.localization.cam import Cam
from reference_models.training.checkpoint import HEADER, load_checkpoint, read_header, save_checkpoint
from wsolbench.exceptions import DataError, UsageError
from wsolbench.methods import load_method


@pytest.fixture
def saved(tmp_path):
    model = Cam.create(
        backbone="tiny", num_classes=3, weights="none", settings={"head": "conv", "width": "8"}, image_size=64
    )
    model.class_names = ("a", "b", "c")
    for buffer in model.buffers():
        if buffer.is_floating_point():
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, model, {"epoch": 3, "seed": 7})
    return model, path


def rewritten(path, change):
    """The same file with another header."""
    facts = read_header(path)
    change(facts)
    save_file(load_file(path), path, metadata={HEADER: json.dumps(facts)})
    return path


def test_a_model_comes_back_to_the_bit(saved):
    model, path = saved
    loaded = load_checkpoint(Cam, path)
    assert not loaded.training
    assert loaded.config == model.config
    assert loaded.input_spec == model.input_spec
    assert loaded.class_names == ("a", "b", "c")
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    images, asked = torch.randn(2, 3, 64, 64), torch.tensor([[0], [2]])
    assert torch.equal(model.score_maps(images, asked), loaded.score_maps(images, asked))


def test_the_header_says_what_the_model_is_and_the_json_beside_it_also_on_what_it_ran(saved):
    _, path = saved
    facts = read_header(path)
    assert (facts["method"], facts["num_classes"], facts["backbone"]["name"]) == ("cam", 3, "tiny")
    assert facts["training"] == {"epoch": 3, "seed": 7}
    beside = json.loads(path.with_suffix(".json").read_text())
    assert {"python", "torch", "torchvision", "timm", "wsolbench"} <= beside.pop("versions").keys()
    assert beside == {**facts, "run": {}}


def test_a_loaded_model_describes_how_it_was_trained(saved):
    described = load_checkpoint(Cam, saved[1]).describe()
    assert described["training"]["seed"] == 7
    assert len(described["training"]["checkpoint"]["sha256"]) == 64


def test_loading_draws_no_random_numbers(saved):
    before = torch.get_rng_state()
    load_checkpoint(Cam, saved[1])
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def attentive(tmp_path):
    model = load_method("caam").create(
        backbone="tiny", num_classes=3, weights="none", settings={"beta": "2"}, image_size=64
    )
    torch.nn.init.ones_(model.channel.scale)
    save_checkpoint(tmp_path / "last.safetensors", model, {"epoch": 3})
    return tmp_path / "last.safetensors"


def test_settings_of_the_use_can_be_changed_and_are_described(attentive):
    method, images, asked = load_method("caam"), torch.randn(2, 3, 64, 64), torch.tensor([[0], [1]])
    trained, changed = (
        method.load(attentive, device="cpu"),
        method.load(attentive, device="cpu", settings={"test_modules": "true"}),
    )
    assert changed.describe()["config"] == {**trained.describe()["config"], "test_modules": True}
    assert not torch.allclose(changed.score_maps(images, asked), trained.score_maps(images, asked))
    same = method.load(attentive, device="cpu", settings={"beta": "2", "test_modules": "false"})
    assert torch.equal(same.score_maps(images, asked), trained.score_maps(images, asked))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"beta": "3"},
            r"has been trained: setting beta cannot be changed any more; .*: test_agg, test_branch, "
            r"test_modules",
        ),
        ({"recipe.lr": "0.1"}, r"setting recipe\.lr cannot be changed"),
        ({"test_module": "true"}, r"did you mean 'test_modules'"),
    ],
)
def test_other_settings_of_a_trained_model_are_refused(attentive, settings, message):
    with pytest.raises(UsageError, match=message):
        load_method("caam").load(attentive, device="cpu", settings=settings)


def test_a_checkpoint_of_another_method_is_refused(saved):
    @dataclass(frozen=True, kw_only=True)
    class OtherConfig(HeadConfig):
        pass

    class Other(Cam):
        method_name = "other"
        Config = OtherConfig

    with pytest.raises(DataError, match=r"is of method 'cam', expected 'other'; use --method cam"):
        load_checkpoint(Other, saved[1])


def test_a_checkpoint_whose_tensors_are_for_another_number_of_classes_is_refused(saved):
    path = rewritten(saved[1], lambda facts: facts.update(num_classes=5))
    with pytest.raises(DataError, match=r"head.classifier.* has shape \(3,.*expected \(5,"):
        load_checkpoint(Cam, path)


def test_a_checkpoint_with_settings_of_another_version_is_refused(saved):
    path = rewritten(saved[1], lambda facts: facts["config"].update(colour="red"))
    with pytest.raises(DataError, match=r"another version of 'cam' \(unknown settings colour\); train again"):
        load_checkpoint(Cam, path)


def test_a_truncated_checkpoint_is_refused(saved):
    path = saved[1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated or not a safetensors file"):
        load_checkpoint(Cam, path)


def test_a_pointer_or_a_web_page_in_place_of_a_checkpoint_is_named(tmp_path):
    path = tmp_path / "net.safetensors"
    for content, message in (
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "web page"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_header(path)


def test_a_pickled_checkpoint_is_refused(tmp_path):
    path = tmp_path / "last.safetensors"
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(DataError, match=r"pickled PyTorch file.*expected a safetensors file"):
        load_checkpoint(Cam, path)


def test_a_safetensors_file_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weights": torch.zeros(3)}, path)
    with pytest.raises(DataError, match="not a checkpoint of this package"):
        load_checkpoint(Cam, path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no checkpoint .*wsolbench train"):
        load_checkpoint(Cam, tmp_path / "missing.safetensors")
    with pytest.raises(DataError, match=r"is a folder; give the checkpoint in it"):
        load_checkpoint(Cam, tmp_path)
