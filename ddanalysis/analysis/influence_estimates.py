"""Leave-one-out influence without retraining: estimates from gradients, scored against the exact one.

Each estimate is a matrix of inner products <g_z, v_j> of the gradient of the loss of test image z and a direction of
distilled image j, in the weights of a network trained on all n images; positive where j helps z. With g_j the gradient
of the loss of j and g that of the mean over the set:

* **gradient dot product**: v_j = g_j;
* **TracIn** (Pruthi et al. 2020): the same summed over states on the way, each weighted by the learning rates of the
  updates that it stands for;
* **influence function** (Koh and Liang 2017): v_j = (G + damping)^-1 (g_j - g) / (n - 1) with the generalised
  Gauss-Newton matrix G of the set, of rank at most n * (classes - 1), so that Woodbury's identity gives the inverse
  exactly. Leaving j out of a mean moves its gradient by (g - g_j) / (n - 1); g is not 0 before convergence, and with
  weight decay never;
* **TRAK** (Park et al. 2023): v_j = (F + ridge)^-1 g_j in a random projection, F the Gram matrix of the set's gradients
  of the log-odds of the right class, mean over the networks; the chain rule makes a change of log-odds one of loss.

What is approximated is leaving out by retraining from the same initialisation, so nothing here is fitted to it.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import artefacts, checks, training
from ddanalysis.analysis.influence import ceiling, check_recipe, correlations, identity, initialised
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute, images_per_pass, slices
from ddanalysis.data import ImageData
from ddanalysis.distilled import DistilledSet, fits
from ddanalysis.networks import Networks
from ddanalysis.report import Run
from ddanalysis.seeding import generator
from ddanalysis.store import Checkpoint, Tensors
from ddanalysis.training import Recipe

ESTIMATORS = ("gradient dot product", "TracIn", "influence function", "TRAK")
CEILING = "leave-one-out, another initialisation"
"""Not an estimate, but the influence found from other initialisations: the best for who does not know this one."""

CHECKPOINTS = 5
"""States that TracIn sums over, evenly spaced; the last is the trained network."""
PROJECTION = 2048
RIDGE = 0.1
"""Of TRAK, as a share of the mean eigenvalue; the share that Grosse et al. 2023 damp by."""
AT_ONCE = {"cpu": 2**24, "cuda": 2**28}
"""Numbers in the gradients of the images of one pass, by device type."""

COLUMNS = 2**24
"""Numbers in float64 at once while solving."""

Output = Callable[[Tensor, Tensor], Tensor]
"""Of the logits (classes,) of one image and its label: a number."""


def default_damping(recipe: Recipe, n: int) -> float:
    """Weight decay + 1 / t, with t the sum of the learning rates of all updates over 1 - momentum.

    Training for a time t fits what has an eigenvalue above 1 / t, and is close to training to the end with a ridge of
    1 / t (Ali, Kolter and Tibshirani 2019): the recipe alone decides it. Raises ``ValueError`` where there is no such
    time.
    """
    updates = recipe.total_updates(n)
    total = sum(recipe.rate(update) for update in range(updates))  # a full batch is an epoch
    if recipe.optimiser != "sgd" or recipe.momentum >= 1 or total <= 0:
        given = f"{recipe.optimiser}, momentum {recipe.momentum}, {updates} updates at {recipe.learning_rate}"
        raise ValueError(f"estimates of influence are for SGD of a momentum below 1 that moves, not {given}")
    return recipe.weight_decay + (1 - recipe.momentum) / total


def estimate(
    fresh: Networks,
    x: Tensor,
    y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    recipe: Recipe,
    seeds: Sequence[int],
    damping: float | None = None,
    checkpoints: int = CHECKPOINTS,
    compute: Compute = Compute(),
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] | None = None,
) -> Tensors:
    """Every estimate of what :func:`influence.leave_one_out` finds, by name: (initialisations, n, N), on the CPU.

    Each of the ``fresh`` networks is trained on all n images; ``seeds`` name their projections. ``damping`` None is
    :func:`default_damping`. TRAK is the same for all initialisations. Batch normalisation is that of evaluation.
    """
    check_recipe(recipe)
    checks.whole("checkpoints", checkpoints)
    own = default_damping(recipe, len(x))
    damping = own if damping is None else damping
    if not damping > 0:
        raise ValueError(f"damping is {damping!r}: it must be above 0")
    moments, weights = _schedule(recipe, len(x), checkpoints)
    states = training.train(
        fresh, x, y, recipe, [0] * len(fresh), observe=lambda now: now.state, at=moments, compute=compute,
        checkpoint=checkpoint.child("training") if checkpoint else None, progress=progress,
    ).observed  # fmt: skip
    own_checkpoint = checkpoint.child("scores") if checkpoint else None
    found = (own_checkpoint.load() if own_checkpoint else None) or {}
    for k in range(len(next(iter(found.values()), ())), len(fresh)):
        along = [_state(fresh, states, k, c) for c in range(len(moments))]
        scores = _of_one_network(along, weights, x, y, test_x, test_y, damping, generator(seeds[k], "projection"))
        found = {name: torch.cat([found.get(name, t[None][:0]), t[None]]) for name, t in scores.items()}
        if own_checkpoint:
            own_checkpoint.save(found)
    return found | {"TRAK": found["TRAK"].mean(0, keepdim=True).expand_as(found["TRAK"])}


def _schedule(recipe: Recipe, n: int, checkpoints: int) -> tuple[list[int], list[float]]:
    """The updates after which TracIn looks, and what each state weighs: a change of loss by leaving 1 of n out."""
    total = recipe.total_updates(n)
    moments = sorted({max(round(total * (c + 1) / checkpoints), 1) for c in range(checkpoints)})
    spans = zip([0, *moments], moments, strict=False)
    return moments, [sum(recipe.rate(u) for u in range(*span)) / (1 - recipe.momentum) / n for span in spans]


def _state(fresh: Networks, states: Tensors, k: int, c: int) -> Networks:
    return Networks(fresh.architecture, {name: t[k : k + 1, c] for name, t in states.items()})


def _of_one_network(
    along: Sequence[Networks],
    weights: Sequence[float],
    x: Tensor,
    y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    damping: float,
    g: torch.Generator,
) -> Tensors:
    """The estimates (n, N) of one initialisation, from its states ``along`` the way; TRAK before its mean."""
    found: Tensors = {}
    for now, weight in zip(along, weights, strict=True):
        gradients = each_gradient(now, x, y, loss)
        ways = {"TracIn": weight * gradients}
        if now is along[-1]:
            ways["gradient dot product"] = gradients
            ways["influence function"] = influence_directions(now, x, y, gradients, damping)
            ways["TRAK"] = trak_directions(now, x, y, gradients, g)
        dots = products(now, test_x, test_y, torch.cat(list(ways.values()))).split(len(x))
        for name, own in zip(ways, dots, strict=True):
            found[name] = found[name] + own if name in found else own
    return {name: found[name].cpu() for name in ESTIMATORS}


# ---------------------------------------------------------------------------------------------------------- directions


def influence_directions(network: Networks, x: Tensor, y: Tensor, gradients: Tensor, damping: float) -> Tensor:
    """What the weights lose by leaving each image in: (G + damping)^-1 (g_j - g) / (n - 1), (n, P)."""
    change = (gradients - gradients.mean(0)) / (len(x) - 1)
    return solve(gauss_newton_rows(network, x, y), damping, change)


def gauss_newton_rows(network: Networks, x: Tensor, y: Tensor) -> Tensor:
    """R (n * classes, P) with R^T R the generalised Gauss-Newton matrix of the mean cross-entropy over the images.

    Row (i, c) is sqrt(p_c / n) times the gradient of log p_c, times the root of the sum of a soft label.
    """
    n, classes = len(x), network.architecture.classes
    total = y.sum(1) if y.is_floating_point() else x.new_ones(n)
    if bool((total < 0).any()):
        raise ValueError(f"soft labels sum to {float(total.min())}: the loss of such an image has no minimum")
    with torch.no_grad():
        logits = torch.cat([network.logits(part)[0] for part in x.split(_images_at_once(network))])
        scale = (logits.softmax(1) * (total / n)[:, None]).sqrt()
    targets = torch.arange(classes, device=x.device).repeat(n)
    rows = each_gradient(network, x, targets, lambda logits, c: -loss(logits, c), repeat=classes)
    return rows.mul_(scale.flatten()[:, None])


def trak_directions(network: Networks, x: Tensor, y: Tensor, gradients: Tensor, g: torch.Generator) -> Tensor:
    """TRAK's directions (n, P) of the images whose losses have these ``gradients`` (n, P)."""
    projection = Projection(gradients.shape[1], PROJECTION, g, gradients)
    labels = y.argmax(1) if y.is_floating_point() else y
    odds = projection(each_gradient(network, x, labels, log_odds))
    ridge = RIDGE * float(odds.double().square().sum()) / len(x)
    return projection.back(solve(odds, ridge, projection(gradients)))


def solve(rows: Tensor, damping: float, vectors: Tensor) -> Tensor:
    """(R^T R + damping)^-1 v for ``rows`` R (r, P) and each v of ``vectors`` (m, P), by Woodbury's identity.

    Computed in float64, some columns at a time, in memory of r^2 numbers besides.
    """
    r, (m, size) = len(rows), vectors.shape
    gram, seen = (torch.zeros(r, width, dtype=torch.float64, device=rows.device) for width in (r, m))
    columns = max(COLUMNS // (r + m), 1)
    for s in slices(size, columns):
        part = rows[:, s].double()
        gram += part @ part.T
        seen += part @ vectors[:, s].double().T
    gram.diagonal().add_(damping)
    weights = torch.cholesky_solve(seen, torch.linalg.cholesky(gram)).T
    found = torch.empty_like(vectors)
    for s in slices(size, columns):
        found[:, s] = (vectors[:, s].double() - weights @ rows[:, s].double()) / damping
    return found


class Projection:
    """A random projection S of P numbers to k with E <S a, S b> = <a, b>: signed sums over random groups of them."""

    def __init__(self, size: int, k: int, g: torch.Generator, like: Tensor) -> None:
        self.k, self.group = k, torch.randint(k, (size,), generator=g).to(like.device)
        self.sign = (torch.randint(2, (size,), generator=g) * 2 - 1).to(like)

    def __call__(self, vectors: Tensor) -> Tensor:
        """(m, P) -> (m, k)."""
        return vectors.new_zeros(len(vectors), self.k).index_add_(1, self.group, vectors * self.sign)

    def back(self, vectors: Tensor) -> Tensor:
        """The transpose, (m, k) -> (m, P)."""
        return vectors[:, self.group] * self.sign


# ----------------------------------------------------------------------------------------------------------- gradients


def loss(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of one image, of an id or a soft row."""
    log_p = F.log_softmax(logits, 0)
    return -(log_p * y).sum() if y.is_floating_point() else -log_p.gather(0, y[None])[0]


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """log(p / (1 - p)) of class ``y`` of one image."""
    others = logits.masked_fill(torch.arange(len(logits), device=logits.device) == y, -torch.inf)
    return logits.gather(0, y[None])[0] - others.logsumexp(0)


def products(network: Networks, x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """<gradient of the loss of image z, direction> (m, N) for images x (N, c, h, w) and ``directions`` (m, P)."""
    parts = [gradients @ directions.T for gradients in gradient_parts(network, x, y, loss)]
    return torch.cat(parts).T.contiguous()


def each_gradient(network: Networks, x: Tensor, y: Tensor, output: Output, repeat: int = 1) -> Tensor:
    """The gradient of ``output`` of every image in the weights of one network, (n * repeat, P), laid out as
    :func:`unroll.flat`; with labels y (n * repeat,) for as many outputs of each image.
    """
    found = x.new_empty(len(x) * repeat, network.architecture.parameter_count())
    start = 0
    for part in gradient_parts(network, x, y, output, repeat):
        found[start : start + len(part)] = part
        start += len(part)
    return found


def gradient_parts(network: Networks, x: Tensor, y: Tensor, output: Output, repeat: int = 1) -> Iterator[Tensor]:
    """Those of :func:`each_gradient`, some images at a time."""
    names, architecture = network.trainable(), network.architecture
    p = {name: network.state[name].detach() for name in names}
    rest = {name: t for name, t in network.state.items() if name not in p}

    def of_one(p: Tensors, image: Tensor, target: Tensor) -> Tensor:
        return output(architecture.logits(p | rest, image[None])[0, 0], target)

    gradients = torch.func.vmap(torch.func.grad(of_one), (None, 0, 0))
    for s in slices(len(y), _images_at_once(network)):
        images = x[torch.arange(s.start, s.stop, device=x.device) // repeat]
        parts = gradients(p, images, y[s])
        yield torch.cat([parts[name].flatten(1) for name in names], 1)


def _images_at_once(network: Networks) -> int:
    limit = AT_ONCE[network.device.type] // network.architecture.parameter_count()
    return max(min(images_per_pass(network.architecture, 1, network.device), limit), 1)


# ---------------------------------------------------------------------------------------------------- how good they are


def scored(
    estimates: Tensors,
    influence: Tensor,
    one: DistilledSet,
    data: ImageData,
    network: str,
    network_seeds: Sequence[int],
) -> pd.DataFrame:
    """Each estimate (initialisations, n, N) against the exact ``influence`` of the same shape, over test images.

    A row an estimator, initialisation and distilled image, :data:`CEILING` among the estimators. Columns dataset,
    method, ipc, estimator, image, spearman, pearson, n (test images), network, set_seed, network_seed.
    """
    count, n, tests = influence.shape
    if len(network_seeds) != count:
        raise ValueError(f"{len(network_seeds)} network seeds for {count} initialisations: one each is needed")
    for name, own in estimates.items():
        if own.shape != influence.shape:
            shapes = f"{tuple(own.shape)}, the influence {tuple(influence.shape)}"
            raise ValueError(f"the estimate {name!r} has shape {shapes}: they must be equal")
    found = {name: correlations(own, influence) for name, own in estimates.items()} | {CEILING: ceiling(influence)}
    what = {"dataset": data.name, "method": one.method, "ipc": one.ipc}
    tables = [
        pd.DataFrame(
            what
            | {"estimator": name, "image": np.tile(np.arange(n), count), "spearman": spearman.flatten()}
            | {"pearson": pearson.flatten(), "n": tests, "network": network, "set_seed": one.seed}
            | {"network_seed": np.repeat(list(network_seeds), n)}
        )
        for name, (spearman, pearson) in found.items()
    ]
    return pd.concat(tables, ignore_index=True)


def estimated(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    sets: Sequence[DistilledSet],
    influences: Sequence[Tensor],
    recipe: Recipe,
    network_seeds: Sequence[int],
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """:func:`estimate` for every set, kept as artefacts, and :func:`scored` against its ``influences``."""
    if len(influences) != len(sets):
        raise ValueError(f"{len(influences)} influences for {len(sets)} sets: one each is needed")
    tables = []
    for one, influence in zip(sets, influences, strict=True):
        fits(one, data)
        found = _estimates(run, data, architecture, one, recipe, network_seeds, compute)
        tables.append(scored(found, influence, one, data, architecture.name, network_seeds))
    return pd.concat(tables, ignore_index=True)


def _estimates(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    one: DistilledSet,
    recipe: Recipe,
    network_seeds: Sequence[int],
    compute: Compute,
) -> Tensors:
    def build(checkpoint: Checkpoint | None, progress: Callable[[int], object] | None) -> Tensors:
        fresh, on = initialised(architecture, network_seeds, data), one.to(data.train_x.device)
        test = (data.test_x, data.test_y)
        return estimate(
            fresh, on.x, on.y, *test, recipe, network_seeds, compute=compute, checkpoint=checkpoint, progress=progress
        )

    name, arguments = identity(data, architecture, one, recipe, network_seeds, compute)
    arguments |= {"checkpoints": CHECKPOINTS, "projection": PROJECTION, "ridge": RIDGE}
    maker = "influence_estimates.estimate"
    return artefacts.artefact(run, "influence_estimates", name, data, maker, 1, arguments, build)
