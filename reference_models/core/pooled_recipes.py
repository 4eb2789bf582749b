"""Training recipes of classifiers on pooled products of features: two stages, first the head alone.

A linear classifier on unit vectors has gradients of norm below 1.5 and inputs of size F^-1/2. It needs a rate
near 1, at which a pretrained backbone would be destroyed. So all released programs first train the head on a
frozen backbone, then everything at a small rate.

`Recipe.lr` and its schedule are those of the second stage. `HeadStage` has what the first one adds.

Departures from the sources, in all recipes
    images      become squares; the sources keep their aspect ratio where `aspect kept` is said.
    at test     one view, without the mean over the mirror image, and no support vector machine at the end.
    plateau     The sources that lower the rate on a plateau of the test accuracy lower it at fixed times
                here.
    decay       Heads have one weight decay in both stages: that of the first one in `cbp`, `hbp` and
                `hihca`. At a rate near 1 a decay of 5e-4, which their second stage has for everything, leaves
                the classifier nearly untrained. In the second stage it would shrink heads by a tenth or two.
    batch       One size in both stages: that of the second one in `cbp` and `hbp`, whose first stages have
                batches of 32 and 48.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from reference_models.core.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class HeadStage:
    """First stage of a run: its length, and its rates.

    Attributes:
        lengths: relative lengths of both stages. The first can be 0.
        rate: factor of the recipe's rate in the first stage.
        head_factor: factor of the classifier's rate, in both stages.
        adam: whether `head_factor` is for Adam. With another optimiser than the factor's it is 1.
        milestones, gamma: fractions of the first stage at which the rate is multiplied by `gamma`.
        weight_decay: weight decay of everything but the backbone, in both stages. None: the recipe's.
    """

    lengths: tuple[int, int]
    rate: float = 1.0
    head_factor: float = 1.0
    adam: bool = False
    milestones: tuple[float, ...] = ()
    gamma: float = 0.25
    weight_decay: float | None = None


SHORT = HeadStage(lengths=(1, 2), head_factor=300.0)
"""First stage for short runs with other recipes: a third of the run, and a rate of 0.9 with `finetune`."""

_BCNN = Recipe(
    source="HaoMood/bilinear-cnn, second version (aspect kept); 80 epochs per stage",
    epochs=160,
    batch_size=64,
    lr=1e-2,
    weight_decay=1e-5,
    milestones=(0.5, 0.75),
    new_factor=1.0,
    bias_factor=1.0,
    resize=1.0,
)

_CBP = Recipe(
    source=(
        "solver of compact bilinear pooling in abhimanyudubey/confusion; 60 + 30 epochs in place of 320 + 27"
    ),
    epochs=90,
    batch_size=8,
    lr=1e-3,
    schedule="constant",
    new_factor=1.0,
    bias_factor=1.0,
    resize=1.0,
)

_ISQRT = Recipe(
    source="jiangtaoxie/fast-MPN-COV (aspect kept, centre crop)",
    epochs=100,
    batch_size=10,
    lr=1.2e-3,
    weight_decay=1e-4,
    schedule="constant",
    new_factor=5.0,
    bias_factor=1.0,
    resize=1.0,
)

POOLED: Mapping[str, Recipe] = MappingProxyType(
    {
        "bcnn": _BCNN,
        "bcnn_umass": replace(
            _BCNN,
            source=(
                "cvl-umass/bilinear-cnn (aspect kept; first stage with SGD at rate 1, decay 1e-8); 25 + 45 "
                "epochs, Adam in both"
            ),
            epochs=70,
            batch_size=128,
            lr=1e-4,
            optimizer="adam",
            momentum=0.99,
            milestones=(25 / 45,),
        ),
        "cbp": _CBP,
        "hbp": replace(
            _CBP,
            source=(
                "ChaojianYu/Hierarchical-Bilinear-Pooling (aspect kept on CUB); 120 + 200 epochs in place of "
                "480 + 534"
            ),
            epochs=320,
            batch_size=16,
            schedule="step",
            milestones=(0.25,),
            gamma=0.5,
            bias_factor=2.0,
            resize=512 / 448,
        ),
        "hihca": replace(
            _CBP,
            source="cssjcai/hihca; a first stage of 20 epochs in place of logistic regression",
            epochs=60,
            batch_size=16,
            schedule="step",
            milestones=(0.25,),
        ),
        "isqrt": _ISQRT,
        "isqrt_hawkeye": replace(
            _ISQRT,
            source="Hawkeye (pretrained without covariance pooling); its schedule ends at 110 of 100 epochs",
            batch_size=8,
            lr=1.6e-5,
            optimizer="adam",
            weight_decay=2e-5,
            schedule="cosine",
            warmup=0.1,
        ),
    }
)
"""Recipes by name."""

_STEPS = (1 / 3, 1 / 2, 2 / 3, 5 / 6)

HEAD_STAGES: Mapping[str, HeadStage] = MappingProxyType(
    {
        "bcnn": HeadStage(lengths=(80, 80), rate=100.0),
        "bcnn_umass": HeadStage(lengths=(25, 45), head_factor=100.0, adam=True),
        "cbp": HeadStage(lengths=(60, 30), rate=1000.0, milestones=_STEPS, weight_decay=5e-6),
        "hbp": HeadStage(lengths=(120, 200), rate=1000.0, milestones=_STEPS, weight_decay=5e-6),
        "hihca": HeadStage(lengths=(20, 40), rate=1000.0, weight_decay=5e-6),
        "isqrt": HeadStage(lengths=(0, 100), head_factor=5.0),
        "isqrt_hawkeye": HeadStage(lengths=(0, 100), head_factor=5.0, adam=True),
    }
)
"""First stages by the name of the recipe. Other recipes have the method's `short_stage`."""
