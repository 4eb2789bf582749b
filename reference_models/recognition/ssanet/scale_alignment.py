"""SSANET's discriminative scale mining (DSM): parts at several scales, and a shift-maximised classifier.

The classifier takes the maximum over cyclic shifts of the scales.

L. Gao, H. Xu, C. Sun, J. Liu, Y.-W. Tai, "Spatial-Scale Aligned Network for Fine-Grained Recognition",
arXiv:2001.01211, 2020, section 3.2; equations have the paper's numbers.

    paper       name                                    shape
    A_i, B_i    scale_candidates(boxes)                 (B, K, A, 4)        A scales of each of the K parts
                                                                            (the paper's S)
    alpha       alpha                                                       ratio of the sides of two
                                                                            neighbours
    phi^n       phi                                     (B, K, A, D)        features of candidate n = 0 ..
                                                                            A-1, by size
    w^n         weight                                  (P, C, A, D)        P = 1, or K: a weight for each
                                                                            part
    C_k w^k     circulant_responses, fourier_responses  (..., C, A)         one response for each shift r
    y           ScaleScores.logits                      (B, K, C)
    s*          ScaleMining.pick_aligned                (B, K)              the candidate that contributes
                                                                            most at the best shift

    (6), (7)    y_c = max_r R_cr,  R_cr = sum_m <phi^m, w_c^((m + r) mod A)>
    Fourier     R_c = F^-1( sum_k conj(F phi(k)) F w_c(k) )
    (8)         the gradient of w_c is phi shifted by the best r: the derivative of (7)

Departures and open readings
    (6)        The matrix is printed with A + 1 columns; the text has A candidates.
    (7)        The maximum is missing in the printed Fourier form, where phi is called psi. It is taken for
               each class.
    A_i, B_i   The printed exponents give (-1, 0, 1) for both sets of 5. Here: alpha^-2 .. alpha^2, one
               original, as many grown as shrunk.
    psi, eta   Farthest and nearest corner, seen from the mean of the centres of the image's K parts. Growing
               keeps psi, shrinking eta.
    alpha      Not given: 2^(1/4).
    s*         The paper only says that aligned proposals are passed on. The choice does not depend on where
               the cyclic order of w begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

DsmMode = Literal["full", "fixed", "one"]
DsmForm = Literal["circulant", "fourier"]


def scale_candidates(
    boxes: Float[Tensor, "b k 4"], alpha: float, count: int
) -> Float[Tensor, "b k {count} 4"]:
    """Return each part at `count` (odd) scales, small ones first. The middle one is the part itself.

    Boxes are not clipped at the border.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    centre, size = (low + high) / 2, high - low
    towards = torch.where(
        centre.mean(dim=1, keepdim=True) >= centre, 1.0, -1.0
    )  # (B, K, 2): from the part to the common centre
    nearest, farthest = centre + towards * size / 2, centre - towards * size / 2  # eta, psi
    exponent = torch.arange(count, device=boxes.device, dtype=boxes.dtype) - (count - 1) // 2
    fixed = torch.where(exponent[:, None] > 0, farthest[:, :, None], nearest[:, :, None])  # (B, K, A, 2)
    inwards = torch.where(exponent[:, None] > 0, towards[:, :, None], -towards[:, :, None])
    other = fixed + inwards * size[:, :, None] * alpha ** exponent[:, None]
    return torch.cat([torch.minimum(fixed, other), torch.maximum(fixed, other)], dim=-1)


def _shift_index(count: int, device: torch.device) -> Int[Tensor, "{count} {count}"]:
    """Return (m + r) mod A for candidate m (row) and shift r (column)."""
    numbers = torch.arange(count, device=device)
    return (numbers[:, None] + numbers) % count


def circulant_responses(
    phi: Float[Tensor, "p n a d"], weight: Float[Tensor, "p c a d"]
) -> Float[Tensor, "p n c a"]:
    """Return R of eq. (7) for n parts of each of p weights.

    It is one matrix product, whose wrapped diagonals are summed.
    """
    (kinds, parts, count, _), classes = phi.shape, weight.shape[1]
    products = (phi.flatten(1, 2) @ weight.flatten(1, 2).mT).view(
        kinds, parts, count, classes, count
    )  # candidate m, class, tap
    return products.take_along_dim(_shift_index(count, phi.device)[None, None, :, None], dim=-1).sum(dim=2)


def fourier_responses(
    phi: Float[Tensor, "p n a d"], weight: Float[Tensor, "p c a d"]
) -> Float[Tensor, "p n c a"]:
    """Return the same responses by the discrete Fourier transform over the scales."""
    spectrum = torch.einsum(
        "pnfd,pcfd->pncf", torch.fft.rfft(phi, dim=2).conj(), torch.fft.rfft(weight, dim=2)
    )
    responses: Tensor = torch.fft.irfft(spectrum, n=phi.shape[2], dim=-1)
    return responses


@dataclass(frozen=True, eq=False)
class ScaleScores:
    """Scores of each part."""

    logits: Float[Tensor, "b k c"]
    """y, float32."""
    shift: Int[Tensor, "b k c"]
    """r*, the shift with the highest response, the lowest of equals (`one`: the candidate)."""


class ScaleMining(nn.Module):
    """The classifier of candidates. `fixed`: only r = 0.

    `one`: a single weight V, y_c = max_n <phi^n, V_c> (the paper's DSM(1)).
    """

    def __init__(
        self, num_classes: int, count: int, length: int, *, mode: DsmMode, form: DsmForm, kinds: int
    ) -> None:
        super().__init__()
        self.mode, self.form, self.count = mode, form, count
        self.weight = nn.Parameter(torch.empty(kinds, num_classes, 1 if mode == "one" else count, length))
        nn.init.normal_(self.weight, std=(self.weight.shape[2] * length) ** -0.5)

    @torch.no_grad()
    def start_from(self, classifier: Float[Tensor, "c d"]) -> None:
        """Initialise every tap as an equal part of a linear classifier of one candidate.

        A little noise makes sure that shifts are not equally good.
        """
        taps, length = self.weight.shape[2:]
        nn.init.normal_(self.weight, std=1e-3 * length**-0.5)
        self.weight.add_(classifier[:, None] / taps)

    def forward(self, phi: Float[Tensor, "b k a d"]) -> ScaleScores:
        """Return y, the responses maximised over shifts, eq. (7), in float32."""
        with torch.autocast(phi.device.type, enabled=False):
            kinds, rows = len(self.weight), phi.float()
            # Parts that share a weight are rows of one matrix.
            rows = rows.flatten(0, 1)[None] if kinds == 1 else rows.transpose(0, 1)  # (P, B K / P, A, D)
            responses = self._responses(rows)  # (P, n, C, shifts)
            shift = responses.argmax(dim=-1, keepdim=True)
            logits = responses.take_along_dim(shift, dim=-1)
        images, parts = phi.shape[:2]
        y, r = (
            x.view(images, parts, -1) if kinds == 1 else x[..., 0].transpose(0, 1) for x in (logits, shift)
        )
        return ScaleScores(y, r)

    def _responses(self, phi: Float[Tensor, "p n a d"]) -> Float[Tensor, "p n c s"]:
        if self.mode == "fixed":
            return (phi.flatten(2) @ self.weight.flatten(2).mT)[..., None]
        if self.mode == "one":
            each = phi.flatten(1, 2) @ self.weight[:, :, 0].mT  # (P, n A, C)
            return each.view(*phi.shape[:3], -1).mT
        return (
            circulant_responses(phi, self.weight)
            if self.form == "circulant"
            else fourier_responses(phi, self.weight)
        )

    @torch.no_grad()
    def pick_aligned(
        self, phi: Float[Tensor, "b k a d"], shift: Int[Tensor, "b k c"], classes: Int[Tensor, " b"]
    ) -> Int[Tensor, "b k"]:
        """Return s* of each part for a class of its image, the smallest of equals.

        It is the argmax over m of <phi^m, w_c^((m + r*) mod A)>.
        """
        chosen = shift.take_along_dim(classes[:, None, None], dim=2)  # (B, K, 1)
        if self.mode == "one":
            return chosen[..., 0]
        with torch.autocast(phi.device.type, enabled=False):
            taps = self.weight[:, classes].transpose(0, 1)  # (B, P, A, D)
            products = phi.float() @ taps.mT  # (B, K, m, tap)
        m = torch.arange(self.count, device=phi.device)
        return products.take_along_dim(((m + chosen) % self.count)[..., None], dim=-1)[..., 0].argmax(dim=-1)
