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

import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from wsolbench.methods import Localization, Method, TrainRequest, load_method
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.records import read_record
from wsolbench.types import Dataset, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from wsolbench.testing.fake_cuda import FakeCuda

CLASSES = 3
"""Classes of the models that are checked."""
SIDE = 64
"""Side in pixels of the images that are checked."""
_STEPS = 30
"""Training steps in which every parameter must be reached."""


def squares(
    count: int = 24, *, classes: int = CLASSES, size: int = 32, seed: int = 0, split: str = "train"
) -> Dataset:
    """Make a data set in memory: noise with a bright square, whose colour is the class.

    >>> data = squares(6)
    >>> len(data.samples), data.samples[4].label, data.class_names
    (6, 1, ('class 0', 'class 1', 'class 2'))
    """
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        label = number % classes
        pixels = rng.integers(0, 80, (size, size, 3), dtype=np.uint8)
        x, y = rng.integers(0, size // 2, 2)
        side = size // 3
        pixels[y : y + side, x : x + side, [label % 3, (label // 3) % 3]] = 255
        box = np.array([[x, y, x + side, y + side]], dtype=np.float64)
        samples.append(
            Sample(id=f"{split}/{number}.png", label=label, size=(size, size), array=pixels, boxes=box)
        )
    return Dataset(
        name="squares",
        split=split,
        samples=samples,
        class_names=tuple(f"class {label}" for label in range(classes)),
        fingerprint=f"{count}-{classes}-{size}-{seed}",
    )


@dataclass(frozen=True)
class MethodUnderTest:
    """A method by its name, and how its models are made here.

    Attributes:
        name: name of the method.
        backbone: a small backbone that the method accepts.
        settings: settings of all models, as `--set name=value` gives them.
    """

    name: str
    backbone: str
    settings: Mapping[str, str]

    @cached_property
    def kind(self) -> type[Any]:
        """The class of the method."""
        return load_method(self.name)

    def create(self, **changed: str) -> Any:
        """Make a model with random weights; `changed` are further settings."""
        return self.kind.create(
            backbone=self.backbone,
            num_classes=CLASSES,
            weights="none",
            settings={**self.settings, **changed},
            image_size=SIDE,
        )

    def batch(self, count: int = 4) -> Any:
        """Make a random batch, of the type that the method's `loss` is annotated with."""
        import torch

        labels = torch.arange(count) % CLASSES
        return _type_of_batch(self.kind)(
            images=torch.randn(count, 3, SIDE, SIDE),
            labels=labels,
            indices=torch.arange(count),
            epoch=0,
            epochs=10,
            step=0,
            generator=torch.Generator().manual_seed(0),
        )


def _type_of_batch(kind: type[Any]) -> type[Any]:
    """The annotated type of the argument of `loss`, of the first class in the order of inheritance that has
    one.
    """
    for each in kind.__mro__:
        loss = vars(each).get("loss")
        if loss is None:
            continue
        argument = list(inspect.signature(loss).parameters)[1]
        if isinstance(found := get_type_hints(loss).get(argument), type):
            return found
    raise TypeError("no `loss` says with an annotation what a batch is")


def _require(condition: bool, message: str) -> None:
    """Raise `AssertionError` unless the condition holds; an `assert` would not under `python -O`."""
    if not condition:
        raise AssertionError(message)


def _images(count: int, side: int = SIDE) -> Tensor:
    import torch

    return torch.randn(count, 3, side, side)


# --- every method -------------------------------------------------------------------------------------------


def check_maps(method: MethodUnderTest) -> None:
    """Maps are float32, finite and without a gradient, and there is one for every class that is asked for."""
    import torch

    model = method.create()
    _require(isinstance(model, Method), "it lacks a part of the contract `wsolbench.methods.Method`")
    for images in (_images(2), torch.zeros(1, 3, SIDE, SIDE)):
        count = len(images)
        result = model.localize(images)
        _require(
            isinstance(result, Localization),
            "its result lacks a part of the contract `wsolbench.methods.Localization`",
        )
        maps = result.score_maps(torch.tensor([[2, 0]]).expand(count, 2))
        _require(
            maps.ndim == 4 and maps.shape[:2] == (count, 2),
            f"maps have shape {tuple(maps.shape)}; expected ({count}, 2, h, w)",
        )
        _require(maps.dtype == torch.float32, f"maps are {maps.dtype}; expected torch.float32")
        _require(not maps.requires_grad, "maps keep the graph of the gradients; expected them without")
        _require(bool(torch.isfinite(maps).all()), "maps hold NaN or Inf")
        _require(
            result.logits is None or result.logits.shape == (count, CLASSES),
            f"logits have another shape than ({count}, {CLASSES})",
        )


def check_independence(method: MethodUnderTest) -> None:
    """The maps of an image and a class do not depend on the other images and classes of the call."""
    import torch

    model, images = method.create(), _images(3)
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

    model, images, asked = method.create(), _images(2), torch.tensor([[0], [1]])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    one, two = (model.localize(images).score_maps(asked) for _ in range(2))
    _require(torch.equal(one, two), "a second call gives other maps")
    _require(torch.equal(random_state, torch.get_rng_state()), "it draws from the global generator")
    changed = [key for key, value in model.state_dict().items() if not torch.equal(before[key], value)]
    _require(not changed, f"localizing changes {changed}")


def check_description(method: MethodUnderTest) -> None:
    """`describe` gives plain JSON with everything that a record needs."""
    described = json.loads(json.dumps(method.create().describe(), allow_nan=False))
    _require(described["method"] == method.name, f"it describes itself as {described['method']!r}")
    missing = {"variant", "config", "image_size"} - described.keys()
    _require(not missing, f"its description lacks {sorted(missing)}")
    if method.kind.trainable:
        wanted = method.backbone if getattr(method.kind, "needs_backbone", True) else "none"
        _require(described["backbone"] == wanted, "its description names another backbone")
        _require(
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
    _require(again.digest == record.digest, "the record that was read has another digest")
    _require(again.metric("gt_known") is not None, "the record has no GT-known")


def check_gpu(method: MethodUnderTest) -> None:
    """A GPU gives the maps of the processor, up to rounding. Nothing is checked without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return
    model, images, asked = method.create(), _images(3), torch.tensor([[0, 1], [1, 2], [2, 0]])
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        expected = model.localize(images).score_maps(asked)
        shown, wanted = images.to("cuda"), asked.to("cuda")
        found = model.to("cuda").localize(shown).score_maps(wanted).cpu()
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def check_fake_gpu(method: MethodUnderTest) -> None:
    """A GPU could run the method, in full and in mixed precision, and would never wait for the host.

    Maps, proposals, extra maps, every post-process that fits, and a training step run on a fake GPU, with the
    values of the CPU. Nothing is checked for a method that is not a `torch.nn.Module`.
    """
    import torch

    from wsolbench.testing.fake_cuda import FakeCuda

    images, asked = _images(4), torch.arange(4)[:, None] % CLASSES
    for mixed in (False, True):
        model: Any = method.create()
        if not hasattr(model, "modules"):
            return
        expected = model.localize(images).score_maps(asked)
        with FakeCuda() as gpu, torch.autocast("cuda", torch.bfloat16, enabled=mixed):
            gpu.move(model)
            result = model.localize(gpu.tensor(images))
            maps = result.score_maps(gpu.tensor(asked))
            if not mixed and not gpu.made_up_gradients:
                torch.testing.assert_close(gpu.values(maps), expected)
            others = dict(result.extra_maps)
            if result.propose is not None:
                others["the proposals' boxes"] = result.propose().boxes
            others |= {f"maps of {name}": made for name, made in _processed(result, gpu.tensor(asked))}
            for name, tensor in {"maps": maps, **others}.items():
                _require(tensor.device.type == "cuda", f"{name} are on {tensor.device}; expected the GPU")
            _require(not gpu.events, f"on a GPU, maps need a {', a '.join(gpu.summary())}")
            if method.kind.trainable and _learns_by_loss(method.kind):
                _train_on(gpu, method, model, gpu.tensor(images), gpu.tensor(asked[:, 0]))
                _require(not gpu.events, f"on a GPU, a training step needs a {', a '.join(gpu.summary())}")


def _processed(result: Localization, asked: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the maps of every post-process that can be used with this result."""
    from wsolbench.exceptions import UsageError
    from wsolbench.methods import list_posts, load_post

    for row in list_posts():
        post = load_post(row.name).create({})
        if not post.needs_gradients:
            try:
                yield row.name, post.maps(result, asked)
            except UsageError:  # it needs features that the method does not give
                continue


def _train_on(gpu: FakeCuda, method: MethodUnderTest, model: Any, images: Tensor, labels: Tensor) -> None:
    """Run one training step of each objective on the fake GPU, with gradients of 1."""
    import torch

    model.train()
    model.on_epoch(0, 10)
    batch = _type_of_batch(method.kind)(
        images=images,
        labels=labels,
        indices=labels,
        epoch=0,
        epochs=10,
        step=0,
        generator=gpu.generator(),
    )
    recipe = model.recipe_for(method.backbone, CLASSES, method.settings)
    for objective in model.objectives(recipe):
        terms = objective.loss(batch)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        _require(total.device.type == "cuda", f"the loss is on {total.device}; expected the GPU")
        parameters = [parameter for group in objective.groups for parameter in group["params"]]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        torch.optim.AdamW(parameters, lr=1e-3).step()


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
            epochs=1 if _learns_by_loss(method.kind) else None,
            batch_size=6,
            image_size=32,
            workers=0,
            settings=method.settings,
        )
        path = method.kind.fit(request)
        one, two = (method.kind.load(path, device="cpu", settings={}) for _ in range(2))
    images, asked = _images(2, 32), torch.tensor([[0], [2]])
    _require(
        torch.equal(*(model.localize(images).score_maps(asked) for model in (one, two))),
        "two models of one checkpoint give different maps",
    )
    names = ("class 0", "class 1", "class 2")
    _require(one.class_names == names, f"the classes of the loaded model are {one.class_names}")
    json.dumps(one.describe(), allow_nan=False)


# --- methods that are trained by `loss` ---------------------------------------------------------------------


def check_evaluation_mode(method: MethodUnderTest) -> None:
    """A model in training mode refuses to localize: its batch statistics would depend on the other images."""
    try:
        method.create().train().localize(_images(2))
    except RuntimeError as error:
        _require("eval" in str(error), f"the error does not say what to do: {error}")
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
            _require(bool(terms), "the loss has no term")
            wrong = [key for key, term in terms.items() if term.ndim != 0 or not torch.isfinite(term)]
            _require(not wrong, f"terms of the loss are not finite scalars: {wrong}")
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
    _require(
        sorted(grouped) == sorted(id(parameter) for parameter in model.parameters()),
        "the groups of the optimisers leave a parameter out, or have one twice",
    )


def check_batches(method: MethodUnderTest) -> None:
    """An epoch shows the images of the data set, in batches that the seed determines."""
    model, labels = method.create(), np.arange(25) % CLASSES
    one, two = (model.batches(labels, 8, np.random.default_rng(3)) for _ in range(2))
    same = len(one) == len(two) and all(map(np.array_equal, one, two))
    _require(same, "one seed gives two orders of the images")
    valid = all(len(part) > 1 and part.min() >= 0 and part.max() < len(labels) for part in one)
    _require(valid, "a batch has fewer than two images, or an image that is not there")
    shown = len(set(np.concatenate(one).tolist()))
    _require(shown >= len(labels) - 1, f"an epoch shows {shown} of {len(labels)} images")


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
        _require(
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
    _require(all(bool(torch.isfinite(term)) for term in terms.values()), "a term of the loss is not finite")
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    _require(all(bool(torch.isfinite(each).all()) for each in gradients), "a gradient is not finite")
    images, asked = _images(2), torch.tensor([[0], [1]])
    with torch.autocast("cpu", torch.bfloat16):
        result = model.eval().localize(images)
        maps = result.score_maps(asked)
    _require(maps.dtype == torch.float32, f"maps are {maps.dtype}; expected torch.float32")
    later = result.score_maps(asked)  # outside of the block
    _require(torch.equal(maps, later), "maps that are asked for outside of autocast differ")
    _require(bool(torch.isfinite(maps).all()), "maps hold NaN or Inf")


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
    kind = load_method(name)
    applied = [*_EVERY, *(_TRAINED if kind.trainable else ())]
    applied += _BY_LOSS if kind.trainable and _learns_by_loss(kind) else ()
    return [check for check, function in CHECKS.items() if function in applied]


def _learns_by_loss(kind: type[Any]) -> bool:
    """Whether a method is trained by the gradients of its loss, not by a pass that collects statistics."""
    return hasattr(kind, "loss") and getattr(kind, "learns_from", "gradients") == "gradients"


def run_check(
    name: str, check: str, *, backbone: str = "tiny", settings: Mapping[str, str] | None = None
) -> None:
    """Run one check of `CHECKS` on a method; see `check_method`."""
    import torch

    method = MethodUnderTest(name, backbone, settings or {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            CHECKS[check](method)
        except Exception as error:
            reason = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"method {name!r} fails the check {check!r}: {reason}") from error


def check_method(name: str, *, backbone: str = "tiny", settings: Mapping[str, str] | None = None) -> None:
    """Run all checks that apply to a method.

    Args:
        name: as `wsolbench list methods` has it.
        backbone: a small backbone that the method accepts; `tiny` comes with the reference models.
        settings: settings to check the method with, as `--set name=value` gives them.

    Raises `UsageError` for an unknown method, and `AssertionError` with the names of the method and of the
    first check that fails.
    """
    for check in checks_of(name):
        run_check(name, check, backbone=backbone, settings=settings)
