"""Boost-CNN: networks trained one after the other on boosting weights.

M. Moghimi, S. Belongie, M. Saberian, J. Yang, N. Vasconcelos, L.-J. Li, "Boosted convolutional neural
networks", BMVC 2016. Released code: mmoghimi/BoostCNN (Caffe; an example on CIFAR-10).

Idea. A sum of networks is built in rounds. The images with small margins in the sum so far have large
boosting weights, and the next network fits the negative gradient of an exponential risk, which these weights
are. A line search gives the network's step.

    paper       name                    shape
    f           sums                    (n, Y)          scores of the sum so far, for all n training images
    g           network.score(..)       (B, Y)          scores of the network that learns
    w           boost_weights(..)       (n, Y)
    alpha_t     steps                   (T,)            a buffer; 0 before the end of round t
    nu, T       shrinkage, rounds

    (1)  R(f) = (1 / n) sum_i sum_{j != y} exp(-(f_y - f_j) / 2)
    (2)  w_j = exp(-(f_y - f_j) / 2) for j != y, w_y = -sum_j w_j
    (3)  dR / df = w / (2 n)
    (4)  fit=sqr:     L = (1 / 4) mean_i |g + w / s|^2, s = mean_i |w_i| over all training images
         fit=cs_log:  L = mean_i log(1 + sum_{j != y} w_j exp(g_j - g_y)) = CE(g + f / 2)
    (5)  alpha = argmin_{a >= 0} R(f + a g)
    (6)  f <- f + nu alpha g
         logits = sum_t nu alpha_t g_t

This is a re-reading, not a reproduction. We do not know the base network, the rounds and epochs of the
published row, nor what its networks share, and the released example has no fine-grained data. Here T copies
of a classifier on pooled products (`base`, B-CNN) start from the same backbone, each with its own new head.
So report it as boost-cnn[b-cnn, T], next to two controls: `combine=mean` has the same networks and losses
with f = 0 in every round, and averages their logits; `rounds=1` is a single network. With the defaults, nu =
0.1 and three rounds, w changes little from round to round and the result is close to `combine=mean`. Report
`shrinkage=1`, too.

At an equal number of images, each network has a T-th of the epochs. On generated birds at 64 pixels the sum
of three (`shrinkage=1`) gained accuracy in each round, and stayed below the baseline trained in one piece; at
128 pixels, with the defaults, it is not significantly different from it (one seed each).

A run has T stages of equal length, each with the recipe of the base: first the head, then everything. The
other networks are frozen in evaluation mode. When a round ends, all training images pass through its network,
whole and without augmentation, in float32; then (5) and (6). A round without descent has alpha = 0, and the
next one fits the same weights again. A round that is not finished does not count, except the first. A run
with fewer epochs than rounds has as many rounds as epochs. Only alpha is stored: a resumed run computes f
again from the finished networks.

Maps. The class map is sum_t nu alpha_t M_c^t of the networks' class maps. So if the mean of a map and its
bias are a network's score, as for B-CNN, that also holds for the sum. Stages for post-processes are those of
the first network.

Departures
    (4)        Released is `cs_log` (`variant=official`); the paper has least squares. Since alpha g does not
               depend on the scale of g, targets are divided by s: on 200 classes |w_i| starts at 200. The
               factor 1 / 4 makes the curvature 1 / 2, the largest of cross-entropy, whose rates the recipe
               has.
    (5)        A fine-tuned network can classify all training images, and then R falls for ever. Released is
               a doubling of a until exp underflows. Here a is at most `cap` over the mean margin of g,
               weighted by w. By Jensen's inequality, the risk after a step is at least R exp(-cap / 2).
    rounds     The paper lets a round choose among candidate networks; here there is one. The run does not
               stop after a round without descent, since its length is fixed.
    recipe     `bcnn`, also with another base. The rounds share its epochs (`round_epochs`).
    weights    A checkpoint has T networks, so it cannot be the `--weights` of another method.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.base.pooled_recognizer import PooledConfig, PooledRecognizer, is_published
from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone, read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.pooled_recipes import POOLED
from reference_models.core.recipes import MANY_CLASSES, Recipe
from reference_models.recognition.boost_cnn.boosting import Fit, boost_weights, fit_loss, line_search
from reference_models.training.passes import Passes
from reference_models.training.stages import Place, stage_at
from wsolbench.exceptions import UsageError
from wsolbench.methods import load_method
from wsolbench.ranges import CountOrZero, Positive, Range
from wsolbench.system.distributed import gathered
from wsolbench.types import Dataset

PAPER = "boost-cnn"


@dataclass(frozen=True, kw_only=True)
class BoostCnnConfig(PooledConfig):
    """Settings of `boost-cnn`. Those of stages and rates are for each round."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"paper": {}, "official": {"fit": "cs_log"}}
    )

    variant: Literal["paper", "official"] = "paper"
    """`official`: the loss of the released example."""
    base: str = "b-cnn"
    """Method whose networks are combined, with its default settings: one that pools products of features."""
    rounds: Annotated[int, Range(1, 20)] = 3
    """T. The paper's number is not known."""
    round_epochs: CountOrZero = 0
    """Epochs of a round. 0: the rounds share the epochs of the recipe."""
    combine: Literal["boost", "mean"] = "boost"
    """`mean`: a control. The networks are trained independently, and their logits are averaged."""
    fit: Fit = "sqr"
    """Loss of a round, eq. (4)."""
    shrinkage: Annotated[float, Range(0, 1, open_low=True)] = 0.1
    """nu: released code."""
    cap: Positive = 8.0
    """Largest step, in units of 1 / (mean weighted margin of g). This value is ours."""


def load_base(name: str) -> type[PooledRecognizer]:
    """Return the class of the method whose networks are combined.

    Raises `UsageError` if it is none that pools products of features.
    """
    kind = load_method(name)
    if not (isinstance(kind, type) and issubclass(kind, PooledRecognizer)):
        raise UsageError(
            f"setting base of method 'boost-cnn' is {name}; expected a method that pools products of "
            "features, for instance base=b-cnn or base=hbp"
        )
    return kind


# --- the method ---------------------------------------------------------------------------------------------


class BoostCnn(Recognizer):
    """See the module."""

    method_name = "boost-cnn"
    Config = BoostCnnConfig
    config: BoostCnnConfig
    recipes = POOLED
    steps: Tensor
    """alpha of each round, (T,), 0 before its end. With `combine=mean`, 1 after it."""
    size: Tensor
    """s of the sum so far, ()."""
    round: int
    """Number of the network that learns, from 0."""

    def __init__(self, backbone: Backbone, num_classes: int, config: BoostCnnConfig) -> None:
        super().__init__(backbone, num_classes, config)
        if config.combine == "boost" and num_classes >= MANY_CLASSES:
            raise UsageError(
                f"method 'boost-cnn' keeps the scores of all training images, and {num_classes:,} classes "
                f"are too many; expected fewer than {MANY_CLASSES}, or combine=mean"
            )
        kind = load_base(config.base)
        published = config.recipe == "default" and is_published(backbone.profile, num_classes)
        own = kind.Config(
            grid=config.grid,
            recipe="bcnn" if published else config.recipe,
            stage_epochs=config.stage_epochs,
            head_rate=config.head_rate,
            head_factor=config.head_factor,
        )
        copies = [backbone, *(copy.deepcopy(backbone) for _ in range(config.rounds - 1))]
        self.networks = nn.ModuleList(kind(each, num_classes, own) for each in copies)
        # The first network's backbone has a second name here, without a second copy in checkpoints.
        del self.backbone
        object.__setattr__(self, "backbone", backbone)
        self.register_buffer("steps", torch.zeros(config.rounds))
        self.sums: Tensor | None = None
        self.labels: Tensor | None = None
        start = torch.tensor(float(num_classes * (num_classes - 1))).sqrt()  # of f = 0
        self.register_buffer("size", start, persistent=False)
        self._select(0)

    @property
    def _rounds(self) -> list[PooledRecognizer]:
        return [cast("PooledRecognizer", network) for network in self.networks]

    # --- defaults for a backbone ----------------------------------------------------------------------------
    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """Return the variant that the base needs."""
        assert isinstance(config, BoostCnnConfig)
        return load_base(config.base).grid_for(backbone, config)

    @classmethod
    def default_size(cls, backbone: str, num_classes: int) -> int | None:
        """Return 448 on the networks of the papers, as for other pooled classifiers."""
        return PooledRecognizer.default_size(backbone, num_classes)

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return `bcnn` on the networks of the papers, else the backbone's."""
        if is_published(read_profile(backbone), num_classes):
            return "bcnn"
        return super().recipe_name(backbone, num_classes)

    @classmethod
    def adjust_recipe(cls, name: str, recipe: Recipe, config: MethodConfig) -> Recipe:  # noqa: ARG003 - the same for all
        """Return the recipe with the length of all rounds, if `round_epochs` gives it."""
        assert isinstance(config, BoostCnnConfig)
        return replace(recipe, epochs=config.rounds * config.round_epochs) if config.round_epochs else recipe

    # --- the rounds of a run --------------------------------------------------------------------------------
    def round_at(self, epoch: int | float, epochs: int) -> Place:
        """Return the round of a time, its first epoch, and the epoch after its last."""
        return stage_at(epoch, epochs, [1] * min(len(self.networks), epochs))

    def _select(self, number: int) -> None:
        """Let one network learn, and freeze the others in evaluation mode."""
        self.round = number
        for index, network in enumerate(self._rounds):
            network.backbone.frozen = self.backbone.frozen
            network.requires_grad_(index == number).train(index == number and self.training)
            network.backbone.requires_grad_(index == number)  # except its frozen steps

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Choose the network that learns, and its stage."""
        place = self.round_at(epoch, epochs)
        self._select(place.stage)
        self._rounds[place.stage].on_epoch(epoch - place.start, place.stop - place.start)

    def lr_factor(self, recipe: Recipe, progress: float) -> float:
        """Apply the rates of the base to each round."""
        time = progress * recipe.epochs
        place = self.round_at(time, recipe.epochs)
        length = place.stop - place.start
        return self._rounds[place.stage].lr_factor(
            replace(recipe, epochs=length), (time - place.start) / length
        )

    def group_factor(self, group: Mapping[str, Any], recipe: Recipe, progress: float) -> float:
        """Return the factor of a group's rate, as the network that learns has it."""
        time = progress * recipe.epochs
        place = self.round_at(time, recipe.epochs)
        length = place.stop - place.start
        network = self._rounds[place.stage]
        return network.group_factor(group, replace(recipe, epochs=length), (time - place.start) / length)

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Return the groups of every network."""
        return [
            {**group, "name": f"round {index + 1}: {group['name']}"}
            for index, network in enumerate(self._rounds)
            for group in network.parameter_groups(recipe)
        ]

    # --- boosting -------------------------------------------------------------------------------------------
    def before_training(self, train: Dataset) -> None:
        """Prepare the networks, and compute f of the rounds that a resumed run has finished."""
        for network in self._rounds:
            network.before_training(train)
        if self.config.combine == "mean":
            return
        device = self.steps.device
        self.passes = Passes(train=train, model=self, device=device, cache=0.0)
        self.labels = torch.tensor([sample.label for sample in train.samples], device=device)
        self._add(torch.zeros(len(train), self.num_classes, device=device), self.steps.new_zeros(()))
        for number, step in enumerate(self.steps.cpu().tolist()):
            if step:
                self._add(self._scores_of(number), self.steps[number])

    @torch.no_grad()
    def _scores_of(self, number: int) -> Float[Tensor, "n k"]:
        """Return the scores of a network for all training images, in evaluation mode."""
        network = self._rounds[number].eval()
        return torch.cat([network.score(batch.images) for batch in self.passes()])

    def _add(self, g: Float[Tensor, "n k"], step: Float[Tensor, ""]) -> None:
        """Add a network to the sum, eq. (6), and measure the new weights."""
        assert self.labels is not None
        self.sums = self.config.shrinkage * step * g + (0 if self.sums is None else self.sums)
        self.size = boost_weights(self.sums, self.labels).norm(dim=1).mean()

    def after_epoch(self, epoch: int, epochs: int) -> None:
        """Finish a round after its last epoch: its step, eq. (5), and the new sum, eq. (6)."""
        place = self.round_at(epoch, epochs)
        if epoch + 1 < place.stop:
            return
        if self.config.combine == "mean":
            self.steps[place.stage] = 1
            return
        assert self.sums is not None
        assert self.labels is not None
        g = self._scores_of(place.stage)
        found = line_search(
            self.sums.cpu().double(), g.cpu().double(), self.labels.cpu(), self.config.cap
        )  # on the CPU, since not every device has float64
        self.steps[place.stage] = gathered(float(found))[0]  # the same in all processes
        self._add(g, self.steps[place.stage])

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the network that learns, eq. (4)."""
        g = self._rounds[self.round].score(batch.images)
        f = torch.zeros_like(g) if self.sums is None else self.sums[batch.indices]
        return {"fit": fit_loss(self.config.fit, g, f, batch.labels, self.size)}

    # --- prediction -----------------------------------------------------------------------------------------
    def shares(self) -> Float[Tensor, " t"]:
        """Return the factor of each network in the sum."""
        if self.config.combine == "boost":
            factors = self.config.shrinkage * self.steps
        else:
            factors = self.steps / self.steps.sum().clamp_min(1)
        first = (torch.arange(len(self.steps), device=self.steps.device) == 0).to(factors)
        return torch.where((self.steps > 0).any(), factors, first)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return the sums of logits and maps."""
        results = [network(images) for network in self._rounds]
        shares = self.shares()

        def combine(each: Sequence[Tensor]) -> Tensor:
            stacked = torch.stack(list(each))  # (T, ...)
            return (shares.view(-1, *[1] * (stacked.ndim - 1)) * stacked).sum(dim=0)

        return ForwardPass(
            logits=combine([result.logits for result in results]),
            maps_of=lambda class_ids: combine([result.maps_of(class_ids).float() for result in results]),
            stages=results[0].stages,
            penultimate=results[0].penultimate,
        )
