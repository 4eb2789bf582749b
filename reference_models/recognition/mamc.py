"""MAMC: several channel attentions, tied over images by an N-pair loss.

M. Sun, Y. Yuan, F. Zhou, E. Ding, "Multi-attention multi-class constraint for fine-grained image
recognition", ECCV 2018. There is no released code; Hawkeye has a re-implementation.

Idea. P squeeze-and-excitation branches weigh the channels of one feature map differently (one-squeeze
multi-excitation, OSME), so that each can show another part. Each weighted map becomes a vector. Nothing says
which part a branch shows. So batches hold two images of each class, and an N-pair loss makes the p-th vectors
of a class similar, and different from other branches and other classes.

    paper       name                    shape
    U           penultimate             (B, C, h, w)
    m^p         gates                   (B, P, C)           in (0, 1); P = 2
    f^p         vectors                 (B, P, D)           D = 1024
    V^p, v^p    osme.weight, .bias      (P, D, C g g), (P, D)       V^p = weight / sqrt(C g g)
    A           cell_weights            (h, g)              mean pooling of one axis to g cells
    W, b        classifier              (Y, D), (Y,)
    S           similarity              (B P, B P)          f f^T over all vectors of the batch
    N           class pairs             B / 2

    (1)  m^p = sigmoid(W2^p relu(W1^p mean U)), f^p = V^p vec(m^p o pool(U)) + v^p
    (2)  logits = W sum_p f^p + b
    (3)  For an anchor: SASC, same attention and class, without the anchor itself; SADC, same attention, other
         class; DASC, other attention, same class; DADC, both other. Positives and their negatives: SASC and
         the three others; SADC and DADC; DASC and DADC.
    (4)  L_np = (1 / N) sum_anchors sum_+ log(1 + sum_- exp(S_- - S_+))
    (5)  L = CE + lambda (L_np of SASC + L_np of SADC + L_np of DASC), lambda = 0.5

The numbers of the equations are those of this file. (4) is computed as softplus(logsumexp_- S - S_+), which
does not overflow.

Batches hold pairs of images of one class, of different classes where possible. Every image occurs once in an
epoch, so an epoch has the images and steps of the baseline's. The last images of classes with an odd number
form pairs of different classes, which count in N; if their number is odd, one is left out. `batch_size`
counts images.

Maps. The score is linear in U if the gates are held fixed. So M_c(l) = h w sum_p sum_ch (W_c V^p)_ch,l m^p_ch
U_ch,l, where a location has the weights of its pooled cells, divided by their areas. Its mean, W_c sum_p v^p
and b_c are the score. The extra maps `attention_1`, `attention_2`, ... are sum_ch m^p_ch U_ch.

Variants. `light` (default) pools U to 7x7 before V^p: 206 million weights on ResNet-50 or 101. `paper` does
not pool: 822 million at 448 pixels. `hawkeye` has unit vectors in (4), the anchor as its own positive, the
divisor B P, an ordinary layer V^p, and label smoothing; its recipe is `recipe=mamc_hawkeye` with
`--image-size 224`.

Rows of the paper's ablation: `baseline`; `mamc=none` (OSME alone); `mamc=sasc` (the first term of (5));
the default; `attentions=3`. `mamc=none` is also the control: attention and batches, without the N-pair loss.

Departures and open readings
    (2)        Sum over attentions; concatenation is the other reading (`join`).
    V^p        Entries have variance 1 / inputs at the start, because inner products of 1024 values reach
               thousands otherwise. The parameter is V^p sqrt(inputs), because plain weights diverge with SGD.
               A step of SGD then changes V^p less than in a plain layer, by the number of inputs, so with
               small rates V^p stays close to its random start. `plain_weights` is an ordinary layer.
               S is not normalised (`normalise`).
    small      Networks below 256 channels have D = 4 C, and those below 128 have 8 hidden units in m^p in
               place of C / 16.
    recipe     The paper's is not known here: NTS-Net's.
    processes  With several processes, (4) compares the images of each process.

Weight of the N-pair loss. (4) has 2 P (B - 1) + 4 P (P - 1) terms per class pair, 68 in batches of 16. With
lambda = 0.5 its gradients in the backbone outweigh that of the cross-entropy, at the start by two orders of
magnitude. On generated birds the accuracy is 46.7, where that of the baseline from the same weights is 70.3.
With `npair_weight=0.005` it is 63.3 and with `mamc=none` 64.3, so the loss explains most of the gap, but not
all. On 50 classes of CUB it explains nearly nothing: 59.5 with the loss, 60.6 without, 74.4 for the baseline
of that seed. There the cross-entropy of `mamc=none` is 0.84 after 10,800 images, that of the baseline 0.28:
V^p, which replaces the pooled features, is still close to its random start. Numbers:
docs/decisions/methods.md.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import FINE_GRAINED
from reference_models.layers.cells import cell_weights, pool_cells
from reference_models.layers.second_order import in_full_precision, unit
from wsolbench.ranges import Channels, Range, ShareBelow1, Weight

PAPER = "mamc"

LIGHT_CELLS = 7
"""g of `pool=grid7`."""


@dataclass(frozen=True, kw_only=True)
class MamcConfig(MethodConfig):
    """Settings of `mamc`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "light": MappingProxyType({}),
            "paper": MappingProxyType({"pool": "flatten"}),
            "hawkeye": MappingProxyType(
                {
                    "normalise": True,
                    "own_positive": True,
                    "divisor": "vectors",
                    "label_smoothing": 0.1,
                    "plain_weights": True,
                }
            ),
        }
    )

    variant: Literal["light", "paper", "hawkeye"] = "light"
    """`light`: V^p on 7x7 cells. `paper`: on all cells. `hawkeye`: the loss of that re-implementation."""
    attentions: Annotated[int, Range(1, 16)] = 2
    """P: 2 in most rows of the paper, 3 in one."""
    embedding: Channels = 0
    """D, length of a vector. 0: 1024 (the paper), or 4 C if that is smaller."""
    pool: Literal["flatten", "grid7", "gap"] = "grid7"
    """Cells that V^p has weights for: all of them (the paper), at most 7x7, or 1."""
    join: Literal["sum", "concat"] = "sum"
    """How the classifier gets the P vectors, (2)."""
    mamc: Literal["full", "sasc", "none"] = "full"
    """Terms of (5) next to the cross-entropy: all three, the first one, or none."""
    npair_weight: Weight = 0.5
    """lambda: Hawkeye; as recalled, the paper's, too."""
    normalise: bool = False
    """Whether (4) compares unit vectors (Hawkeye)."""
    own_positive: bool = False
    """Whether an anchor is a positive of its own SASC term (Hawkeye)."""
    divisor: Literal["pairs", "vectors"] = "pairs"
    """What divides (4): the class pairs N, or all vectors B P (Hawkeye)."""
    plain_weights: bool = False
    """Whether V^p is an ordinary linear layer (Hawkeye), in place of the parameter V^p sqrt(C g g)."""
    label_smoothing: ShareBelow1 = 0.0
    """Label smoothing of the cross-entropy: 0.1 in Hawkeye."""


# --- batches ------------------------------------------------------------------------------------------------


def draw_class_pairs(
    labels: Int[np.ndarray, " n"], pairs: int, rng: np.random.Generator
) -> list[Int[np.ndarray, " _"]]:
    """Draw shuffled batches of at most `pairs` pairs of images of one class, as positions.

    Neighbours 2 i and 2 i + 1 of a batch are a pair. A batch holds no class twice unless a class has more
    pairs than there are batches. Every image occurs once. The last images of classes with an odd number are
    put two by two. If their number is odd, one is left out.
    """
    # Cut each class into pairs, in random order.
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    odd = first[counts % 2 == 1] + counts[counts % 2 == 1] - 1
    single = rng.permutation(order[odd])
    single = single[: len(single) // 2 * 2]
    units = np.concatenate([np.delete(order, odd), single]).reshape(-1, 2)
    if not len(units):
        return [order]
    # Deal them: each batch draws from different kinds (a class, or the single images).
    left = np.append(counts // 2, len(single) // 2)  # (Y + 1,) pairs that remain of each kind
    place = np.cumsum(left) - left  # the next of them in `units`
    number = -(-len(units) // pairs)
    sizes = len(units) // number + (np.arange(number) < len(units) % number)
    batches = []
    for done, size in enumerate(sizes):
        taken: list[Int[np.ndarray, " _"]] = []
        while (lacking := size - sum(map(len, taken))) > 0:
            # Kinds with a pair for each remaining batch must come now; others by the number of their pairs.
            chance = rng.random(len(left)) ** (1 / np.maximum(left, 1))
            chance = np.where(left >= number - done, 1.0 + left, chance)
            kinds = np.argsort(-np.where(left > 0, chance, -1.0))[: min(lacking, np.count_nonzero(left))]
            taken.append(place[kinds])
            place[kinds] += 1
            left[kinds] -= 1
        batches.append(units[np.concatenate(taken)].reshape(-1))
    return [batches[i] for i in rng.permutation(number)]


# --- the loss -----------------------------------------------------------------------------------------------


@in_full_precision
def n_pair_terms(
    f: Float[Tensor, "b p d"], labels: Int[Tensor, " b"], own_positive: bool = False
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the sums over anchors and positives of (4) for SASC, SADC and DASC, at least 0.

    A term without positives is 0. An anchor without negatives adds 0. `own_positive` makes each anchor a
    positive of its own SASC term.
    """
    count, attentions = f.shape[:2]
    vectors = f.flatten(0, 1)  # (B P, D), image by image
    similarity = vectors @ vectors.T
    image = torch.arange(count * attentions, device=f.device) // attentions
    attention = torch.arange(count * attentions, device=f.device) % attentions
    same_class = labels[image][:, None] == labels[image]
    same_attention = attention[:, None] == attention
    itself = torch.eye(count * attentions, dtype=torch.bool, device=f.device)
    sasc = same_attention & same_class
    dadc = ~same_attention & ~same_class

    def total(positive: Tensor, negative: Tensor) -> Tensor:
        lowest = torch.finfo(similarity.dtype).min / 4  # finite: the gradient of no negatives is 0
        against = similarity.masked_fill(~negative, lowest).logsumexp(dim=1, keepdim=True)
        return (F.softplus(against - similarity) * positive).sum()

    return (
        total(sasc if own_positive else sasc & ~itself, ~sasc),
        total(same_attention & ~same_class, dadc),
        total(~same_attention & same_class, dadc),
    )


# --- layers -------------------------------------------------------------------------------------------------


class Osme(nn.Module):
    """One-squeeze multi-excitation with a linear layer on each weighted map, eq. (1)."""

    def __init__(
        self, channels: int, attentions: int, cells: int, embedding: int, *, plain: bool = False
    ) -> None:
        super().__init__()
        hidden = max(8, channels // 16)
        self.attentions, self.cells = attentions, cells
        self.squeeze = nn.Conv2d(channels, attentions * hidden, 1)
        self.excite = nn.Conv2d(attentions * hidden, attentions * channels, 1, groups=attentions)
        inputs = channels * cells**2
        # Stored without the factor `scale`, so a step of SGD changes f by as much for any number of inputs.
        # With 62,720 inputs and a rate of 0.03, plain weights diverged in three steps.
        self.scale = 1.0 if plain else inputs**-0.5
        self.weight = nn.Parameter(torch.randn(attentions, embedding, inputs))
        self.bias = nn.Parameter(torch.zeros(attentions, embedding))
        if plain:  # as nn.Linear
            for parameter in (self.weight, self.bias):
                nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5)

    def gates(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b p c"]:
        """Return m^p, in (0, 1)."""
        squeezed = self.squeeze(features.mean(dim=(2, 3), keepdim=True)).relu()
        gates: Tensor = self.excite(squeezed).sigmoid()
        return gates.view(len(features), self.attentions, -1)

    def vectors(
        self, features: Float[Tensor, "b c h w"], gates: Float[Tensor, "b p c"]
    ) -> Float[Tensor, "b p d"]:
        """Return f^p."""
        gated = gates[..., None] * pool_cells(features, self.cells).flatten(2)[:, None]  # (B, P, C, g g)
        return torch.einsum("bpi,pdi->bpd", gated.flatten(2) * self.scale, self.weight) + self.bias

    def maps(
        self,
        features: Float[Tensor, "b c h w"],
        gates: Float[Tensor, "b p c"],
        weights: Float[Tensor, "b k p d"],
    ) -> Float[Tensor, "b k h w"]:
        """Return maps whose means are sum_p <weights_p, f^p - v^p>."""
        of_cells = torch.einsum("bkpd,pdi->bkpi", weights * self.scale, self.weight)  # (B, K, P, C g g)
        of_cells = of_cells.view(*weights.shape[:3], gates.shape[2], self.cells, self.cells)
        of_cells = torch.einsum("bkpcij,bpc->bkcij", of_cells, gates)
        rows, columns = (cell_weights(side, self.cells, features) for side in features.shape[2:])
        of_locations = rows @ of_cells @ columns.T  # (B, K, C, h, w)
        return (of_locations * features[:, None]).sum(dim=2) * features[0, 0].numel()


class Mamc(Recognizer):
    """See the module."""

    method_name = "mamc"
    Config = MamcConfig
    config: MamcConfig
    recipes = FINE_GRAINED

    def __init__(self, backbone: Backbone, num_classes: int, config: MamcConfig) -> None:
        super().__init__(backbone, num_classes, config)
        channels, side = (
            backbone.channels[-1],
            math.ceil(backbone.input_spec.size / backbone.layout[-1].stride),
        )
        cells = {"flatten": side, "grid7": min(side, LIGHT_CELLS), "gap": 1}[config.pool]
        embedding = config.embedding or min(1024, 4 * channels)
        self.osme = Osme(channels, config.attentions, cells, embedding, plain=config.plain_weights)
        self.classifier = nn.Linear(
            embedding * (config.attentions if config.join == "concat" else 1), num_classes
        )

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str:  # noqa: ARG003 - one for all
        """Return NTS-Net's recipe."""
        return "nts"

    def batches(
        self, labels: Int[np.ndarray, " n"], batch_size: int, rng: np.random.Generator
    ) -> list[Int[np.ndarray, " _"]]:
        """Return batches of `batch_size` images: pairs of one class, see `draw_class_pairs`."""
        return draw_class_pairs(labels, max(1, batch_size // 2), rng)

    def attend(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[
        OrderedDict[str, Tensor], Float[Tensor, "b c h w"], Float[Tensor, "b p c"], Float[Tensor, "b p d"]
    ]:
        """Return the stages, U, m and f. Everything behind the backbone is float32, also under autocast."""
        stages = self.backbone.stages(images)
        with torch.autocast(images.device.type, enabled=False):
            features = next(reversed(stages.values())).float()
            gates = self.osme.gates(features)
            return stages, features, gates, self.osme.vectors(features, gates)

    def classify(self, vectors: Float[Tensor, "b p d"]) -> Float[Tensor, "b y"]:
        """Return the logits, eq. (2)."""
        with torch.autocast(vectors.device.type, enabled=False):
            joined = vectors.sum(dim=1) if self.config.join == "sum" else vectors.flatten(1)
            logits: Tensor = self.classifier(joined)
            return logits

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits, the map of any class, and one extra map for each attention."""
        stages, features, gates, vectors = self.attend(images)
        with torch.autocast(images.device.type, enabled=False):
            attended = torch.einsum("bpc,bchw->bphw", gates, features)

        def maps_of(class_ids: Tensor) -> Tensor:
            with torch.autocast(images.device.type, enabled=False):
                weights = self.classifier.weight[class_ids]  # (B, K, D), or (B, K, P D)
                weights = weights.view(*weights.shape[:2], -1, vectors.shape[2])
                return self.osme.maps(features, gates, weights.expand(-1, -1, vectors.shape[1], -1))

        return ForwardPass(
            logits=self.classify(vectors),
            maps_of=maps_of,
            stages=stages,
            penultimate=features,
            extra_maps={f"attention_{p + 1}": attended[:, p] for p in range(vectors.shape[1])},
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy and the weighted terms of (5) that `mamc` asks for."""
        config = self.config
        *_, vectors = self.attend(batch.images)
        logits = self.classify(vectors)
        terms = {
            "cross_entropy": F.cross_entropy(logits, batch.labels, label_smoothing=config.label_smoothing)
        }
        if config.mamc == "none":
            return terms
        compared = unit(vectors) if config.normalise else vectors
        sasc, sadc, dasc = n_pair_terms(compared, batch.labels, config.own_positive)
        divisor = len(vectors) / 2 if config.divisor == "pairs" else vectors[..., 0].numel()
        factor = config.npair_weight / divisor
        terms["sasc"] = factor * sasc
        if config.mamc == "full":
            terms |= {"sadc": factor * sadc, "dasc": factor * dasc}
        return terms
