"""Checks that every method must pass, for the tests of whoever writes one.

    from wsolbench.testing import check_method

    def test_my_method() -> None:
        check_method("my-method")

A method is found by its name, as the commands find it (`wsolbench list methods`). It is created with a small
backbone and random weights, so all checks together take seconds on a CPU. They cover the contract of maps and
logits, gradients, determinism, saving and loading, mixed precision, and an evaluation with its record. What a
method claims, its equations and numbers, is for its own tests.

`CHECKS` has the single checks by name, for tests that show each of them. Checks of the loss are for methods
that train by `loss(batch)`, as those that inherit from the base classes of the reference models do.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from wsolbench.methods import Localization, Method, TrainRequest
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.records import read_record
from wsolbench.testing.gpu import check_fake_gpu, check_gpu
from wsolbench.testing.subject import (
    CLASSES,
    SIDE,
    MethodUnderTest,
    learns_by_loss,
    random_images,
    require,
    small_backbone,
    squares,
)

if TYPE_CHECKING:
    from torch import Tensor

_STEPS = 30
"""Training steps in which every parameter must be reached."""


# --- every method -------------------------------------------------------------------------------------------


def check_maps(method: MethodUnderTest) -> None:
    """Maps are float32, finite and without a gradient, and there is one for every class that is asked for."""
    import torch

    model = method.create()
    require(isinstance(model, Method), "it lacks a part of the contract `wsolbench.methods.Method`")
    for images in (random_images(2), torch.zeros(1, 3, SIDE, SIDE)):
        count = len(images)
        result = model.localize(images)
        require(
            isinstance(result, Localization),
            "its result lacks a part of the contract `wsolbench.methods.Localization`",
        )
        maps = result.score_maps(torch.tensor([[2, 0]]).expand(count, 2))
        require(
            maps.ndim == 4 and maps.shape[:2] == (count, 2),
            f"maps have shape {tuple(maps.shape)}; expected ({count}, 2, h, w)",
        )
        require(maps.dtype == torch.float32, f"maps are {maps.dtype}; expected torch.float32")
        require(not maps.requires_grad, "maps keep the graph of the gradients; expected them without")
        require(bool(torch.isfinite(maps).all()), "maps hold NaN or Inf")
        require(
            result.logits is None or result.logits.shape == (count, CLASSES),
            f"logits have another shape than ({count}, {CLASSES})",
        )


def check_independence(method: MethodUnderTest) -> None:
    """The maps of an image and a class do not depend on the other images and classes of the call."""
    import torch

    model, images = method.create(), random_images(3)
    asked = torch.tensor([[0, 2], [1, 0], [2, 1]])
    together = model.localize(images).score_maps(asked)
    for row in range(3):
        for column in range(2):
            one = slice(row, row + 1), slice(column, column + 1)
            alone = model.localize(images[one[0]]).score_maps(asked[one])
            torch.testing.assert_close(alone[0, 0], together[row, column], atol=1e-5, rtol=1e-4)


def check_determinism(method: MethodUnderTest) -> None:
    """Localizing twice gives the same maps, changes no weight and draws no random number."""
    import torch

    model, images, asked = method.create(), random_images(2), torch.tensor([[0], [1]])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    one, two = (model.localize(images).score_maps(asked) for _ in range(2))
    require(torch.equal(one, two), "a second call gives other maps")
    require(torch.equal(random_state, torch.get_rng_state()), "it draws from the global generator")
    changed = [key for key, value in model.state_dict().items() if not torch.equal(before[key], value)]
    require(not changed, f"localizing changes {changed}")


def check_description(method: MethodUnderTest) -> None:
    """`describe` gives plain JSON with everything that a record needs."""
    described = json.loads(json.dumps(method.create().describe(), allow_nan=False))
    require(described["method"] == method.name, f"it describes itself as {described['method']!r}")
    missing = {"variant", "config", "image_size"} - described.keys()
    require(not missing, f"its description lacks {sorted(missing)}")
    if method.kind.trainable:
        wanted = method.backbone if getattr(method.kind, "needs_backbone", True) else "none"
        require(described["backbone"] == wanted, "its description names another backbone")
        require(
            described["weights"] == {"name": "none", "sha256": None},
            f"its description says {described['weights']} of weights that are random",
        )


def check_evaluation(method: MethodUnderTest) -> None:
    """An evaluation leaves a record that can be read again."""
    from wsolbench.evaluation.evaluate import evaluate
    from wsolbench.evaluation.request import RunOptions
    from wsolbench.maps.sources import ModelSource

    protocol = EvalProtocol(taus=tau_grid(0.1), frame_size=SIDE)
    source = ModelSource(method.create(), protocol, num_classes=CLASSES, device="cpu", batch_size=4)
    options = RunOptions(batch_size=4, resamples=100)
    record = evaluate(squares(6, size=SIDE), source, protocol, options=options).record
    with tempfile.TemporaryDirectory() as folder:
        again = read_record(record.write(Path(folder)))
    require(again.digest == record.digest, "the record that was read has another digest")
    require(again.metric("gt_known") is not None, "the record has no GT-known")


# --- methods that are trained -------------------------------------------------------------------------------


def check_checkpoint(method: MethodUnderTest) -> None:
    """Training writes a checkpoint, and each model that is loaded from it gives the same maps."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        request = TrainRequest(
            train=squares(12),
            out=Path(folder),
            backbone=method.backbone,
            weights="none",
            epochs=1 if learns_by_loss(method.kind) else None,
            batch_size=6,
            image_size=32,
            workers=0,
            settings=method.settings,
        )
        path = method.kind.fit(request)
        one, two = (method.kind.load(path, device="cpu", settings={}) for _ in range(2))
    images, asked = random_images(2, 32), torch.tensor([[0], [2]])
    require(
        torch.equal(*(model.localize(images).score_maps(asked) for model in (one, two))),
        "two models of one checkpoint give different maps",
    )
    names = ("class 0", "class 1", "class 2")
    require(one.class_names == names, f"the classes of the loaded model are {one.class_names}")
    json.dumps(one.describe(), allow_nan=False)


# --- methods that are trained by `loss` ---------------------------------------------------------------------


def check_evaluation_mode(method: MethodUnderTest) -> None:
    """A model in training mode refuses to localize: its batch statistics would depend on the other images."""
    try:
        method.create().train().localize(random_images(2))
    except RuntimeError as error:
        require("eval" in str(error), f"the error does not say what to do: {error}")
    else:
        raise AssertionError("a model in training mode localizes; expected a RuntimeError that names eval()")


def check_gradients(method: MethodUnderTest) -> None:
    """The terms of the loss are finite scalars, and their sum reaches every parameter."""
    import torch

    model = method.create().train()
    objectives = model.objectives(model.recipe_for(method.backbone, CLASSES, method.settings))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    missing = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    # A parameter behind a gate that starts at 0 is reached after the first step, one behind a choice when it
    # is chosen.
    for _ in range(_STEPS):
        optimizer.zero_grad()
        for objective in objectives:
            terms = objective.loss(method.batch())
            require(bool(terms), "the loss has no term")
            wrong = [key for key, term in terms.items() if term.ndim != 0 or not torch.isfinite(term)]
            require(not wrong, f"terms of the loss are not finite scalars: {wrong}")
            sum(terms.values()).backward()
        missing -= {
            key
            for key, parameter in model.named_parameters()
            if parameter.grad is not None and parameter.grad.any()
        }
        if not missing:
            return
        optimizer.step()
    raise AssertionError(f"the loss does not reach {sorted(missing)}")


def check_groups(method: MethodUnderTest) -> None:
    """Every parameter is in exactly one group of one optimiser."""
    model = method.create()
    objectives = model.objectives(model.recipe_for(method.backbone, CLASSES, method.settings))
    groups = [group for objective in objectives for group in objective.groups]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    require(
        sorted(grouped) == sorted(id(parameter) for parameter in model.parameters()),
        "the groups of the optimisers leave a parameter out, or have one twice",
    )


def check_batches(method: MethodUnderTest) -> None:
    """An epoch shows the images of the data set, in batches that the seed determines."""
    model, labels = method.create(), np.arange(25) % CLASSES
    one, two = (model.batches(labels, 8, np.random.default_rng(3)) for _ in range(2))
    same = len(one) == len(two) and all(map(np.array_equal, one, two))
    require(same, "one seed gives two orders of the images")
    valid = all(len(part) > 1 and part.min() >= 0 and part.max() < len(labels) for part in one)
    require(valid, "a batch has fewer than two images, or an image that is not there")
    shown = len(set(np.concatenate(one).tolist()))
    require(shown >= len(labels) - 1, f"an epoch shows {shown} of {len(labels)} images")


def check_settings_of_use(method: MethodUnderTest) -> None:
    """Training does not depend on the settings that may change when a checkpoint is loaded."""
    import torch

    def terms(model: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)  # of the images, and of what the method draws
        model.train().on_epoch(0, 10)
        return dict(model.loss(method.batch()))

    model = method.create()
    for field in sorted(getattr(method.kind.Config, "at_test", ())):
        other = method.create(**{field: _other_value(method.kind.Config, field)})
        require(
            getattr(other.config, field) != getattr(model.config, field), f"the setting {field} has no effect"
        )
        other.load_state_dict(model.state_dict(), strict=True)
        torch.testing.assert_close(terms(other), terms(model))


def _other_value(kind: type[Any], field: str) -> str:
    """A value of a setting that is not its default."""
    hint, default = get_type_hints(kind)[field], getattr(kind(), field)
    if get_origin(hint) is Literal:
        return next(str(choice) for choice in get_args(hint) if choice != default)
    return str(not default) if isinstance(default, bool) else str(default + 1)


def check_half_precision(method: MethodUnderTest) -> None:
    """Loss, gradients and maps stay finite in mixed precision, and maps stay float32."""
    import torch

    model = method.create().train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(method.batch())
    total: Any = torch.stack([term.float() for term in terms.values()]).sum()
    total.backward()
    require(all(bool(torch.isfinite(term)) for term in terms.values()), "a term of the loss is not finite")
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    require(all(bool(torch.isfinite(each).all()) for each in gradients), "a gradient is not finite")
    images, asked = random_images(2), torch.tensor([[0], [1]])
    with torch.autocast("cpu", torch.bfloat16):
        result = model.eval().localize(images)
        maps = result.score_maps(asked)
    require(maps.dtype == torch.float32, f"maps are {maps.dtype}; expected torch.float32")
    later = result.score_maps(asked)  # outside of the block
    require(torch.equal(maps, later), "maps that are asked for outside of autocast differ")
    require(bool(torch.isfinite(maps).all()), "maps hold NaN or Inf")


Check = Callable[[MethodUnderTest], None]

_EVERY: tuple[Check, ...] = (
    check_maps,
    check_independence,
    check_determinism,
    check_description,
    check_evaluation,
    check_gpu,
    check_fake_gpu,
)
_TRAINED: tuple[Check, ...] = (check_checkpoint,)
_BY_LOSS: tuple[Check, ...] = (
    check_evaluation_mode,
    check_gradients,
    check_groups,
    check_batches,
    check_settings_of_use,
    check_half_precision,
)
CHECKS: Mapping[str, Check] = {
    check.__name__.removeprefix("check_"): check for check in (*_EVERY, *_TRAINED, *_BY_LOSS)
}
"""All checks by name."""


def checks_of(name: str) -> list[str]:
    """List the names in `CHECKS` that apply to a method: those of training only if it is trained, those of
    the loss only if it has a `loss`.
    """
    kind = MethodUnderTest(name, "", {}).kind
    applied = [*_EVERY, *(_TRAINED if kind.trainable else ())]
    applied += _BY_LOSS if kind.trainable and learns_by_loss(kind) else ()
    return [check for check, function in CHECKS.items() if function in applied]


def run_check(
    name: str, check: str, *, backbone: str | None = None, settings: Mapping[str, str] | None = None
) -> None:
    """Run one check of `CHECKS` on a method; see `check_method`."""
    import torch

    method = MethodUnderTest(name, backbone or small_backbone(name), settings or {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            CHECKS[check](method)
        except Exception as error:
            reason = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"method {name!r} fails the check {check!r}: {reason}") from error


def check_method(
    name: str, *, backbone: str | None = None, settings: Mapping[str, str] | None = None
) -> None:
    """Run all checks that apply to a method.

    Args:
        name: as `wsolbench list methods` has it.
        backbone: a small backbone that the method accepts. None: `tiny`, which comes with the reference
            models, or a small vision transformer of timm for a method with `needs_tokens`.
        settings: settings to check the method with, as `--set name=value` gives them.

    Raises `UsageError` for an unknown method, and `AssertionError` with the names of the method and of the
    first check that fails.
    """
    for check in checks_of(name):
        run_check(name, check, backbone=backbone, settings=settings)
