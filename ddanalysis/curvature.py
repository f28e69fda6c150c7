"""The curvature of one network's loss: products with its Hessian, top eigenvalues and spectral density.

The loss is the mean cross-entropy of some images in evaluation mode, a function of the trainable parameters (P,) in the
order of :func:`ddanalysis.unroll.flat`. A product with the Hessian is the derivative of the gradient along a vector,
exact and without a kept graph; several vectors share the work on the images. No autocast: bfloat16 is 5 % wrong here.
Nor TF32, PyTorch's float32 for convolutions on a GPU: products were wrong by .3 % there, and a quarter faster.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from ddanalysis import checks, unroll
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute, padded, slices
from ddanalysis.layers import Parameters
from ddanalysis.networks import Networks, cross_entropy
from ddanalysis.seeding import generator

Product = Callable[[Tensor], Tensor]
"""Vectors (V, P) -> the Hessian's products with them (V, P)."""

PASS = {"cpu": 2**22, "cuda": 2**28}
"""Numbers of the largest feature map in one pass, over images and vectors, by device type."""

VECTORS = 4
"""Vectors that share a pass at least; more where images and network are small."""


# ------------------------------------------------------------------------------------------------------- the products


def hessian_product(network: Networks, x: Tensor, y: Tensor, compiled: bool = False) -> Product:
    """Products with the Hessian of the mean cross-entropy of ``network`` (K = 1) on images x (n, c, h, w).

    Labels y are (n,) ids or (n, classes) soft. ``compiled`` pays off after minutes of work on wide networks. Raises
    ``ValueError`` for several networks, images or labels that do not fit, and vectors that are not (V, P).
    """
    check(network, x, y)
    return _product(network, x, y, compiled)


def _product(network: Networks, x: Tensor, y: Tensor, compiled: bool) -> Product:
    architecture, weights = network.architecture, unroll.flat(network)[0].detach()
    running = network.running()
    several = _several(architecture, compiled)

    def of(v: Tensor) -> Tensor:
        if v.ndim != 2 or v.shape[1] != len(weights) or not len(v):
            raise ValueError(f"vectors of shape {tuple(v.shape)}: (V, {len(weights)}), V >= 1, is needed")
        return in_passes(partial(several, weights, running), architecture, x, y, v.to(weights), len(v), compiled)

    return of


@cache
def _several(architecture: Architecture, compiled: bool) -> Callable[..., Tensor]:
    """``f(weights (P,), running statistics, x, y, share of each image (n,), v (V, P))``: the products (V, P)."""

    def loss(weights: Tensor, running: Parameters, x: Tensor, y: Tensor, each: Tensor) -> Tensor:
        state = unroll.unflat(architecture, weights[None]).state | running
        return (cross_entropy(architecture.logits(state, x).transpose(0, 1), y)[0] * each).sum()

    gradient = torch.func.grad(loss)  # reverse mode outside has no rule for group normalisation: forward over reverse

    def several(weights: Tensor, running: Parameters, x: Tensor, y: Tensor, each: Tensor, v: Tensor) -> Tensor:
        def one(u: Tensor) -> Tensor:
            return torch.func.jvp(lambda w: gradient(w, running, x, y, each), (weights,), (u,))[1]

        return torch.func.vmap(one)(v)

    return torch.compile(several, dynamic=False) if Compute(compiled=compiled).compiled else several


def sizes(architecture: Architecture, images: int, vectors: int, device: torch.device) -> tuple[int, int]:
    """Vectors that go together, and images in one pass of them."""
    limit = PASS[device.type] // architecture.widest
    together = min(vectors, max(VECTORS, limit // images))
    return together, max(limit // together, 1)


def in_passes(
    f: Callable[..., Tensor], a: Architecture, x: Tensor, y: Tensor, v: Tensor, most: int, compiled: bool
) -> Tensor:
    """The sum over images of ``f(images, labels, share of each, vectors)``, a row a vector, in bounded memory.

    At most ``most`` of the vectors v go together; a ``compiled`` f sees few shapes.
    """
    together, size = sizes(a, len(x), min(len(v), most), x.device)
    size = min(size, 1 << (len(x) - 1).bit_length()) if compiled else size  # few shapes serve all sets
    share, parts = x.new_full((len(x),), 1 / len(x)), []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for chunk in v.split(together):
            full = padded(chunk, together if compiled else 0)
            total = torch.zeros((), device=x.device, dtype=x.dtype)
            for s in slices(len(x), size):
                total = total + f(*(padded(t[s], size if compiled else 0) for t in (x, y, share)), full)
            parts.append(total[: len(chunk)])
    return torch.cat(parts)


def check(network: Networks, x: Tensor, y: Tensor) -> None:
    """``ValueError`` for several networks, images or labels that do not fit."""
    if len(network) != 1:
        raise ValueError(f"the curvature of {len(network)} networks was asked for at once: pick one, networks[k]")
    a = network.architecture
    checks.images("images", x, (a.channels, a.size, a.size))
    checks.labels("labels", y, len(x), a.classes)


# -------------------------------------------------------------------------------------------------------- the spectrum


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Some eigenvalues, the first first, and how exact they are."""

    values: Tensor  # (k,) float64; NaN for those that did not converge
    vectors: Tensor  # (k, P), of length 1
    residuals: Tensor  # (k,) float64: the length of Hv - value * v, which bounds the error of the value
    products: int  # with the Hessian, those of the residuals not counted


def eigenpairs(
    network: Networks,
    x: Tensor,
    y: Tensor,
    k: int,
    seed: int,
    which: str = "LA",
    tolerance: float = 1e-3,
    restarts: int = 100,
    compiled: bool = False,
) -> Eigenpairs:
    """The ``k`` largest eigenvalues ("LA"), or those of largest magnitude ("LM"), by SciPy's restarted Lanczos.

    Raises ``ValueError`` unless k is below the number of parameters.
    """
    checks.whole("k", k)
    checks.one_of("which", which, ("LA", "LM"))
    product = hessian_product(network, x, y, compiled)
    size, count = network.architecture.parameter_count(), 0
    if k >= size:
        raise ValueError(f"k is {k}: of the Hessian of {size} parameters at most {size - 1} eigenvalues can be found")

    def multiply(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return product(torch.from_numpy(v.reshape(1, -1)).to(x))[0].double().cpu().numpy()

    operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=multiply, dtype=np.float64)
    start = torch.randn(size, generator=generator(seed, "eigenvectors"), dtype=torch.float64).numpy()
    options = {"ncv": min(max(2 * k + 1, 20), size), "maxiter": restarts, "tol": tolerance}
    try:
        values, vectors = scipy.sparse.linalg.eigsh(
            operator, k, which=which, v0=start, rng=np.random.default_rng(0), **options
        )
    except scipy.sparse.linalg.ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    order = np.argsort(-(np.abs(values) if which == "LM" else values))
    return _with_residuals(product, values[order], vectors[:, order].T, k, count, x)


def _with_residuals(
    product: Product, values: np.ndarray, vectors: np.ndarray, k: int, count: int, x: Tensor
) -> Eigenpairs:
    """What was found, with NaN for what was not of ``k``."""
    found, own = len(values), torch.from_numpy(np.ascontiguousarray(vectors)).to(x)
    all_values, residuals = torch.full((2, k), torch.nan, dtype=torch.float64)
    all_vectors = own.new_full((k, vectors.shape[1]), torch.nan)
    if found:
        all_values[:found], all_vectors[:found] = torch.from_numpy(values.copy()), own
        rest = product(own).double() - all_values[:found, None].to(x.device) * own.double()
        residuals[:found] = rest.norm(dim=1).cpu()
    return Eigenpairs(all_values, all_vectors, residuals, count)


def probe(seed: int, i: int, block: object, size: int, device: torch.device | str = "cpu") -> Tensor:
    """Rademacher vector ``i`` of a ``block``, (size,) int8 of -1 and 1, the same on every device."""
    g = generator(seed, "probe", i, block)
    packed = torch.randint(256, (-(-size // 8),), dtype=torch.uint8, generator=g).to(device)
    bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=device) & 1
    return bits.flatten()[:size].to(torch.int8) * 2 - 1


def spectral_density(
    network: Networks, x: Tensor, y: Tensor, vectors: int, steps: int, seed: int, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Nodes and weights, each (vectors, steps) float64, of the Hessian's spectral density: stochastic Lanczos
    quadrature.

    A vector's weights sum to 1. Its moments to degree 2 * steps - 1 are exact, and with as many steps as parameters its
    nodes are all eigenvalues. Memory: vectors * steps * P numbers. Raises ``ValueError`` for more steps than that.
    """
    checks.whole("vectors", vectors)
    checks.whole("steps", steps)
    size = network.architecture.parameter_count()
    if steps > size:
        raise ValueError(f"steps is {steps}: the Hessian of {size} parameters takes at most {size}")
    start = torch.stack([probe(seed, i, "density", size, x.device) for i in range(vectors)]).to(x.dtype)
    diagonal, beside = lanczos(hessian_product(network, x, y, compiled), start / math.sqrt(size), steps)
    matrices = torch.diag_embed(diagonal) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    nodes, within = torch.linalg.eigh(matrices)
    return nodes, within[:, 0] ** 2


def lanczos(product: Product, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The tridiagonal matrices of ``start`` (V, P), each of length 1, after ``steps``, on the CPU in float64.

    Diagonals (V, steps) and what is beside them (V, steps - 1). Every vector is made orthogonal to all before it,
    twice. Where a Krylov space is exhausted the rest is 0, of weight 0.
    """
    basis = start.new_zeros(steps, *start.shape)
    diagonal = torch.zeros(len(start), steps, dtype=torch.float64)
    beside = torch.zeros(len(start), steps, dtype=torch.float64)
    exhausted = 10 * torch.finfo(start.dtype).eps
    v, scale = start, start.new_zeros(len(start))
    for j in range(steps):
        basis[j] = v
        w = product(v)
        diagonal[:, j] = (v * w).sum(1).cpu()
        scale = torch.maximum(scale, w.norm(dim=1))
        for _ in range(2):
            w = w - torch.einsum("jv,jvp->vp", torch.einsum("jvp,vp->jv", basis[: j + 1], w), basis[: j + 1])
        length = w.norm(dim=1)
        length = length.where(length > exhausted * scale, 0)
        beside[:, j] = length.cpu()
        v = (w / length[:, None]).where(length[:, None] > 0, 0)
    return diagonal, beside[:, :-1]


def smooth_density(nodes: Tensor, weights: Tensor, at: Tensor, width: float) -> Tensor:
    """The density (points,) at the values ``at`` (points,): every node a Gaussian of deviation ``width``, the mean
    over vectors.
    """
    checks.at_least("width", width, 1e-300)
    bells = torch.exp(-0.5 * ((at[:, None, None] - nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    return (bells * weights).sum(2).mean(1)
