"""Layers that pool products of features: covariances, their normalisation, sketches, and class maps.

T.-Y. Lin, A. RoyChowdhury, S. Maji, "Bilinear CNN models for fine-grained visual recognition", ICCV 2015
(signed root, unit norm); N. Pham, R. Pagh, "Fast and scalable polynomial kernels via explicit feature maps",
KDD 2013 (Tensor Sketch); P. Li, J. Xie, Q. Wang, Z. Gao, "Towards faster training of global covariance
pooling networks by iterative matrix square root normalization", CVPR 2018 (Newton-Schulz).

    x_l         features            (B, C, L)       column l: the descriptor at location l of L = h w
    phi_l       -                   (B, F)          what location l adds to the pooled vector
    P           pooled              (B, G, D)       mean of phi_l, in G parts that are normalised separately
    z           vector              (B, G D)        input of the linear classifier
    w_c, b_c    classifier          (C, G D), (C,)
    M_c         maps_of(w_c)        (B, K, L)

Everything is computed in float32 (or float64, if the input is) also under autocast, because second moments of
half-precision features overflow and lose small eigenvalues.

Class maps. Signed root and unit norm are functions of the whole image. `secant` divides what they return by
what they get, r = z / P, and holds this ratio fixed: M_c(l) = sum_k w_ck r_k phi_k(l). So mean_l M_c + b_c is
the logit, as for CAM. The gradient would not do: z does not change if P is scaled, so by Euler's theorem
sum_k P_k dlogit_c/dP_k = 0, and the mean of a gradient map is 0 whatever the logit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

EPS = 1e-5
"""Default of `signed_sqrt`, for features that are pooled by their mean."""

TINY = 1e-12
"""Smallest norm or trace that is divided by."""

A = ParamSpec("A")
R = TypeVar("R")


def in_full_precision(function: Callable[A, R]) -> Callable[A, R]:
    """Decorate a function so that it runs without autocast, on float32 instead of half-precision tensors."""

    @functools.wraps(function)
    def run(*args: A.args, **kwargs: A.kwargs) -> R:
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(device.type, enabled=False):
            wide: dict[str, Any] = {name: _widen(value) for name, value in kwargs.items()}
            return function(*map(_widen, args), **wide)

    return run


def _widen(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


# --- pooling ------------------------------------------------------------------------------------------------


@in_full_precision
def centre(features: Float[Tensor, "b c l"]) -> Float[Tensor, "b c l"]:
    """Subtract the mean descriptor of each image."""
    return features - features.mean(dim=2, keepdim=True)


@in_full_precision
def second_moment(features: Float[Tensor, "b c l"]) -> Float[Tensor, "b c c"]:
    """Return (1 / L) sum_l x_l x_l^T: the covariance if the features are centred. Its rank is at most L."""
    return features @ features.transpose(1, 2) / features.shape[2]


def half_vector(matrix: Float[Tensor, "b d d"]) -> Float[Tensor, "b n"]:
    """Return the upper triangle with the diagonal, row by row: n = d (d + 1) / 2 values.

    Values off the diagonal are not scaled.
    """
    rows, columns = torch.triu_indices(*matrix.shape[1:], device=matrix.device)
    return matrix[:, rows, columns]


def from_half_vector(vector: Float[Tensor, "b k n"], side: int) -> Float[Tensor, "b k d d"]:
    """Return the symmetric W with <W, S> = <vector, half_vector(S)> for every symmetric S."""
    rows, columns = torch.triu_indices(side, side, device=vector.device)
    upper = vector.new_zeros(*vector.shape[:2], side * side).index_copy(2, rows * side + columns, vector)
    upper = upper.view(*upper.shape[:2], side, side)
    return (upper + upper.transpose(2, 3)) / 2


# --- signed root and unit norm ------------------------------------------------------------------------------


@in_full_precision
def signed_sqrt(x: Tensor, eps: float = EPS) -> Tensor:
    """Return sqrt(max(x, 0) + eps) - sqrt(max(-x, 0) + eps), elementwise.

    This form is odd and continuous. Its slope at 0 is 1 / (2 sqrt(eps)); the plain root has no finite one. It
    is computed as x / (sqrt(|x| + eps) + sqrt(eps)), which does not cancel for small x.
    """
    root: Tensor = x / ((x.abs() + eps).sqrt() + eps**0.5)
    return root


class _ReleasedSqrt(torch.autograd.Function):
    """Exact signed root, with the bounded slope of released code in place of its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inside: float, outside: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = inside, outside
        return x.sign() * x.abs().sqrt()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,), (inside, outside) = ctx.saved_tensors, ctx.bounds
        return gradient * 0.5 / ((x.abs() + inside).sqrt() + outside), None, None


@in_full_precision
def released_sqrt(x: Tensor, inside: float, outside: float) -> Tensor:
    """Return sign(x) sqrt(|x|), whose backward pass has the slope 0.5 / (sqrt(|x| + inside) + outside).

    Several released programs bound the gradient in this way. It is not the derivative of the result.
    """
    root: Tensor = _ReleasedSqrt.apply(x, inside, outside)
    return root


@in_full_precision
def unit(y: Float[Tensor, "*b d"], inside: float = 0.0) -> Float[Tensor, "*b d"]:
    """Divide by the norm, sqrt(sum y^2 + inside). A vector shorter than 1e-12 becomes 0, without gradient."""
    square = (y * y).sum(dim=-1, keepdim=True) + inside
    long = square > TINY**2
    return y * torch.where(long, torch.where(long, square, 1.0).rsqrt(), 0.0)


# --- class maps ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Representation:
    """What a linear classifier gets of an image, and how a location contributes to it.

    Attributes:
        vector: (B, F) input of the classifier, float32.
        maps_of: (B, K, F) weights of classes -> (B, K, h, w) class maps. Their mean and the bias are the
            logit.
        gradient_maps_of: the same for the derivative of the logit by the weight of each location, a control
            whose mean is 0. None if a method has no such map.
    """

    vector: Tensor
    maps_of: Callable[[Tensor], Tensor]
    gradient_maps_of: Callable[[Tensor], Tensor] | None = None


def secant(
    pooled: Float[Tensor, "b g d"],
    vector: Float[Tensor, "b g d"],
    project: Callable[[Tensor], Tensor],
    eps: float = EPS,
) -> Representation:
    """Return the representation of a head that pools, takes the signed root, and scales to unit norm.

    Args:
        pooled: P, the mean of phi_l over the locations.
        vector: z, the normalised P.
        project: (B, K, G, D) weights v -> (B, K, h, w) maps sum_k v_k phi_k(l).
        eps: that of the signed root. Only the gradient maps depend on it.
    """
    present = pooled != 0
    ratio = torch.where(present, vector / torch.where(present, pooled, 1.0), 0.0)

    def split(weights: Float[Tensor, "b k f"]) -> Float[Tensor, "b k g d"]:
        return weights.reshape(*weights.shape[:2], *pooled.shape[1:])

    def maps_of(weights: Float[Tensor, "b k f"]) -> Float[Tensor, "b k h w"]:
        return project(split(weights) * ratio[:, None])

    def gradient_maps_of(weights: Float[Tensor, "b k f"]) -> Float[Tensor, "b k h w"]:
        return project(_through_norm(pooled, split(weights), eps))

    return Representation(vector.flatten(1), maps_of, gradient_maps_of)


@in_full_precision
def _through_norm(
    pooled: Float[Tensor, "b g d"], weights: Float[Tensor, "b k g d"], eps: float
) -> Float[Tensor, "b k g d"]:
    """Return the derivative of w.z by P for z = unit(signed_sqrt(P)): ((w - (w.z) z) / |y|) y'."""
    root = pooled / ((pooled.abs() + eps).sqrt() + eps**0.5).clamp_min(TINY)
    length = root.norm(dim=2, keepdim=True).clamp_min(TINY)
    z = (root / length)[:, None]
    along = (weights * z).sum(dim=3, keepdim=True)
    slope = 0.5 / (pooled.abs() + eps).sqrt().clamp_min(TINY)
    slope = slope.masked_fill(pooled == 0, 0.0)  # the mean of phi_k is 0, so its derivative is left out
    derivative: Tensor = (weights - along * z) * (slope / length)[:, None]
    return derivative


# --- sketches -----------------------------------------------------------------------------------------------


@in_full_precision
def count_sketch(
    x: Float[Tensor, "*b c"], hashes: Int[Tensor, " c"], signs: Float[Tensor, " c"], size: int
) -> Float[Tensor, "*b d"]:
    """Return sum over j with h(j) = k of s(j) x_j, for k below `size`. Inner products are kept on average."""
    return x.new_zeros(*x.shape[:-1], size).index_add(-1, hashes, x * signs.to(x))


class TensorSketch(nn.Module):
    """Short vectors whose inner products are, on average, powers of those of the descriptors.

    The sketch of order i is the count sketch of the tensor power of x. Its hash is the sum of i hashes modulo
    d, and its sign is the product of i signs. It is a circular convolution of i count sketches.

    Attributes:
        hashes, signs: (orders, C) buffers, drawn from `seed`. Each factor has its own.
    """

    hashes: Tensor
    signs: Tensor

    def __init__(self, channels: int, size: int, orders: int, *, seed: int = 0, chunk: int = 128) -> None:
        super().__init__()
        self.size, self.chunk = size, chunk
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("hashes", torch.randint(size, (orders, channels), generator=generator))
        signs = torch.randint(2, (orders, channels), generator=generator) * 2 - 1
        self.register_buffer("signs", signs.float())

    def spectra(self, x: Float[Tensor, "b l c"]) -> list[Tensor]:
        """Return the Fourier transforms of the sketches of orders 2, 3, ...: complex (B, L, d / 2 + 1)."""
        factors = [
            torch.fft.rfft(count_sketch(x, hashes, signs, self.size))
            for hashes, signs in zip(self.hashes, self.signs, strict=True)
        ]
        products = [factors[0]]
        for factor in factors[1:]:
            products.append(products[-1] * factor)
        return products[1:]

    def forward(self, x: Float[Tensor, "b l c"]) -> list[Tensor]:
        """Return the sketches of orders 2, 3, ..., each (B, L, d)."""
        return [torch.fft.irfft(spectrum, n=self.size) for spectrum in self.spectra(x)]

    def pooled(self, x: Float[Tensor, "b l c"]) -> list[Tensor]:
        """Return the means of the sketches over the locations, each (B, d), one transform back per image."""
        parts = [
            torch.stack([spectrum.sum(dim=1) for spectrum in self.spectra(part)])
            for part in torch.split(x, self.chunk, dim=1)
        ]
        means = torch.stack(parts).sum(dim=0) / x.shape[1]
        return list(torch.fft.irfft(means, n=self.size).unbind())


# --- roots of matrices --------------------------------------------------------------------------------------


@in_full_precision
def newton_schulz(
    matrix: Float[Tensor, "b d d"], iterations: int, scale: Literal["trace", "frobenius"] = "trace"
) -> tuple[Float[Tensor, "b d d"], Float[Tensor, "b d d"]]:
    """Return the approximate root S of positive semidefinite matrices, and F with S = matrix F.

    F tends to the inverse root. Each eigenvalue e of Y Z, from e_0 = eigenvalue / scale, follows
    e <- e ((3 - e) / 2)^2. So small ones grow 2.25-fold in a step, and five steps do not reach the root of a
    matrix of 256 dimensions. More than 20 steps diverge in float32 if the rank is deficient.

    Args:
        matrix: A and its scale, whose root is put back after the iteration.
        iterations: number of steps, 1 to 20.
        scale: divides the matrix first. The Frobenius norm starts higher than the trace.

    Raises `ValueError` for another number of steps.
    """
    if not 1 <= iterations <= 20:
        raise ValueError(f"{iterations} Newton-Schulz steps; expected 1 to 20")
    if scale == "trace":
        size = matrix.diagonal(dim1=1, dim2=2).sum(dim=1)
    else:
        size = torch.linalg.vector_norm(matrix, dim=(1, 2))
    size = (size + TINY)[:, None, None]
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    y = matrix / size
    step = (3 * identity - y) / 2  # the first one, Z = I
    y, z = y @ step, step
    for _ in range(iterations - 1):
        step = (3 * identity - z @ y) / 2
        y, z = y @ step, step @ z
    return y * size.sqrt(), z / size.sqrt()


class _SpdFunction(torch.autograd.Function):
    """Root or logarithm by eigenvalues.

    Autograd through `eigh` divides by differences of eigenvalues, and is not finite where two are equal. The
    gradient here has the divided differences of the function itself (Daleckii-Krein), which are finite.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, eps: float, power: Literal["root", "log"]) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        values = values.clamp_min(0) + eps  # rounding makes values of 0 negative
        ctx.save_for_backward(values, vectors)
        ctx.power = power
        images = values.sqrt() if power == "root" else values.log()
        result: Tensor = (vectors * images[:, None]) @ vectors.mT
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        values, vectors = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            inner = vectors.mT @ (gradient + gradient.mT) @ vectors / 2
            rows, columns = values[:, :, None], values[:, None]
            if ctx.power == "root":
                inner = inner / (rows.sqrt() + columns.sqrt())
            else:  # (log a - log b) / (a - b) = log1p(t) / t / b with t = (a - b) / b >= 0; 1 / b for t = 0
                small = torch.minimum(rows, columns)
                t = (rows - columns).abs() / small
                inner = inner / small * torch.where(t > 0, t.log1p() / torch.where(t > 0, t, 1.0), 1.0)
            return vectors @ inner @ vectors.mT, None, None


@in_full_precision
def spd_root(matrix: Float[Tensor, "b d d"], eps: float) -> Float[Tensor, "b d d"]:
    """Return V diag(sqrt(lambda + eps)) V^T of symmetric positive semidefinite matrices V diag(lambda) V^T.

    The gradient is the solution X of R X + X R = G, at most |G| / (2 sqrt(eps)). It is symmetric, so entries
    above and below the diagonal count half each. On CUDA `eigh` makes the host wait.
    """
    root: Tensor = _SpdFunction.apply(matrix, eps, "root")
    return root


@in_full_precision
def spd_log(matrix: Float[Tensor, "b d d"], eps: float) -> Float[Tensor, "b d d"]:
    """Return V diag(log(lambda + eps)) V^T of symmetric positive semidefinite matrices; see `spd_root`.

    The gradient is at most |G| / eps.
    """
    logarithm: Tensor = _SpdFunction.apply(matrix, eps, "log")
    return logarithm
