"""How curved is the loss of a network in training, on real data and on every distilled set? (Yang et al. 2024, section
4.3)

One network a seed learns the real data. State t of it is that after t updates; on each, the Hessian of the loss of the
real training images and of every set is looked at: its trace at all states, its top eigenvalues and spectral density at
a few. A target and a network seed are one artefact, so that a new set costs its own products alone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from ddanalysis import artefacts, checks, curvature, networks, traces, training
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute
from ddanalysis.data import ImageData, fraction_rows
from ddanalysis.distilled import DistilledSet, fits
from ddanalysis.networks import Networks
from ddanalysis.report import Run
from ddanalysis.seeding import stream_seed
from ddanalysis.store import Checkpoint, Tensors
from ddanalysis.traces import Probes
from ddanalysis.training import Recipe

KEYS = ["dataset", "target", "ipc", "network", "network_seed", "update"]
"""What every table of this module begins with; ``target`` is "real" or a method."""

TRACE_COLUMNS = [*KEYS, "trace", "trace_se", "set_seed", "probes", "images"]
EIGENVALUE_COLUMNS = [*KEYS, "rank", "eigenvalue", "residual", "set_seed", "which", "images", "products"]
DENSITY_COLUMNS = [*KEYS, "vector", "node", "weight", "set_seed", "images"]
OVERLAP_COLUMNS = [*KEYS, "overlap", "chance", "set_seed", "vectors"]


@dataclass(frozen=True)
class Effort:
    """How much is computed of every state.

    ``images`` real ones, stratified by class (0: all), for the trace, and ``spectrum_images`` for the rest. ``top``
    eigenvalues, largest or of largest magnitude (``which``, "LA" or "LM"), and a spectral density of ``vectors`` and
    ``steps``, at the updates ``spectra_at`` alone. ``seed`` names all probes.
    """

    images: int = 0
    spectrum_images: int = 1000
    real: Probes = Probes(count=2)
    sets: Probes = Probes(count=16)
    spectra_at: tuple[int, ...] = ()
    top: int = 10
    which: str = "LA"
    vectors: int = 4
    steps: int = 40
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Target:
    """Images whose loss is looked at; the trace is that of all ``population`` images they are a sample of."""

    x: Tensor  # (n, c, h, w), in random order if they are a sample
    y: Tensor
    population: int
    probes: Probes
    few: tuple[Tensor, Tensor]  # those of the spectrum


class Tables(NamedTuple):
    """What was found, one observation a row."""

    traces: pd.DataFrame  # TRACE_COLUMNS
    eigenvalues: pd.DataFrame  # EIGENVALUE_COLUMNS
    densities: pd.DataFrame  # DENSITY_COLUMNS
    overlaps: pd.DataFrame  # OVERLAP_COLUMNS


# -------------------------------------------------------------------------------------------------------- computations


def trajectory(
    data: ImageData,
    architecture: Architecture,
    recipe: Recipe,
    network_seed: int,
    at: Iterable[int],
    compute: Compute = Compute(),
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] | None = None,
) -> Networks:
    """One network in training on the real images, as it is after each number of updates in ``at``: T networks.

    Published: 301 states, from 0 to 300 updates of batches of 256, SGD 0.01, momentum 0.9.
    """
    seed, moments = stream_seed(network_seed, "hessian trajectory"), sorted(set(at))
    fresh = networks.create(architecture, [seed], device=data.train_x.device)
    seen = training.train(
        fresh, data.train_x, data.train_y, recipe, [seed], None, lambda now: now.state, moments, compute, checkpoint,
        progress,
    )  # fmt: skip
    return Networks(architecture, {name: t[0] for name, t in seen.observed.items()})


def sample_rows(y: Tensor, count: int, seed: int) -> Tensor:
    """About ``count`` random rows of labels y (n,), 0 for all: the same share of every class.

    In an order in which any block of them has nearly the classes of all.
    """
    checks.whole("count of real images", count, 0)
    rows = fraction_rows(y, count / len(y) if 0 < count < len(y) else 1.0, seed)
    labels, place = y[rows].cpu(), torch.zeros(len(rows), dtype=torch.float64)
    for c in labels.unique():
        own = labels == c
        place[own] = (torch.arange(int(own.sum())).double() + 0.5) / own.sum()  # evenly from the first to the last
    return rows[place.argsort(stable=True).to(rows.device)]


def real_target(data: ImageData, effort: Effort) -> Target:
    """The training images, or a stratified sample of them."""
    rows, few = (sample_rows(data.train_y, n, effort.seed) for n in (effort.images, effort.spectrum_images))
    x, y = data.train_x, data.train_y
    return Target(x[rows], y[rows], len(y), effort.real, (x[few], y[few]))


def set_target(one: DistilledSet, data: ImageData, effort: Effort) -> Target:
    """A distilled set, whole, with its own labels, hard or soft."""
    fits(one, data)
    x, y = one.x.to(data.train_x.device), one.y.to(data.train_x.device)
    return Target(x, y, len(x), effort.sets, (x, y))


def measure(
    states: Networks,
    at: Sequence[int],
    target: Target,
    effort: Effort,
    seed: int,
    compiled: bool = False,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] | None = None,
) -> Tensors:
    """The curvature of a target's loss at T ``states``, those after ``at`` (T,) updates; resumes at any of them.

    Returns ``trace``, ``trace_se`` and ``probes`` (T,), and of the S states in ``effort.spectra_at``: ``eigenvalues``,
    ``residuals`` (S, top), ``eigenvectors`` (S, top, P), ``products`` (S,), ``nodes`` and ``weights`` (S, vectors,
    steps). Equal seeds have equal probes.
    """
    if len(at) != len(states):
        raise ValueError(f"{len(at)} updates are named of {len(states)} states: one a state is needed")
    _check_spectra(effort, at)
    parts = []
    for network, update in zip(states, at, strict=True):
        child = checkpoint.child(update) if checkpoint else None
        found = child.load() if child else None
        if found is None:
            found = _trace(network, target, seed, compiled)
            if update in effort.spectra_at:
                found |= _spectrum(network, target, effort, seed, compiled)
            if child:
                child.save(found)
        parts.append(found)
        if progress:
            progress(1)
    return {name: torch.stack([p[name] for p in parts if name in p]) for name in max(parts, key=len)}


def _check_spectra(effort: Effort, at: Sequence[int]) -> None:
    missing = sorted(set(effort.spectra_at) - set(at))
    if missing:
        raise ValueError(f"update {missing[0]} is in spectra_at, but no state is measured there: add it to the states")


def _trace(network: Networks, target: Target, seed: int, compiled: bool) -> Tensors:
    found = traces.trace(network, target.x, target.y, seed, target.probes, target.population, compiled)
    values = {"trace": found.value, "trace_se": found.error}
    return {n: torch.tensor(v, dtype=torch.float64) for n, v in values.items()} | {"probes": torch.tensor(found.probes)}


def _spectrum(network: Networks, target: Target, effort: Effort, seed: int, compiled: bool) -> Tensors:
    few = target.few
    top = curvature.eigenpairs(network, *few, effort.top, seed, effort.which, compiled=compiled)
    nodes, weights = curvature.spectral_density(network, *few, effort.vectors, effort.steps, seed, compiled)
    own = {"eigenvalues": top.values, "residuals": top.residuals, "eigenvectors": top.vectors.cpu()}
    return own | {"products": torch.tensor(top.products), "nodes": nodes, "weights": weights}


def overlap(real: Tensor, own: Tensor) -> Tensor:
    """How much of one eigenspace lies in another: ||R O^T||^2 / k (S,) of vectors (S, k, P), of length 1.

    1 where both are the same space; two random ones share k / P. NaN where a vector is missing.
    """
    if real.shape != own.shape or real.ndim != 3:
        raise ValueError(
            f"eigenvectors of shapes {tuple(real.shape)} and {tuple(own.shape)}: the same (S, k, P) is needed"
        )
    return (real.double() @ own.double().transpose(1, 2)).square().sum((1, 2)) / real.shape[1]


# -------------------------------------------------------------------------------------------------------------- tables


def trace_table(found: Tensors, facts: dict[str, object], at: Sequence[int]) -> pd.DataFrame:
    """``TRACE_COLUMNS`` of what :func:`measure` found; ``facts`` are the columns that do not vary."""
    values = {name: found[name].numpy() for name in ("trace", "trace_se", "probes")}
    return _table(pd.DataFrame({"update": list(at)} | values), facts, TRACE_COLUMNS)


def eigenvalue_table(found: Tensors, facts: dict[str, object], at: Sequence[int]) -> pd.DataFrame:
    """``EIGENVALUE_COLUMNS``, rank 1 the first; ``at`` are the updates of the spectra."""
    index = pd.MultiIndex.from_product([at, range(1, found["eigenvalues"].shape[1] + 1)], names=["update", "rank"])
    values = {"eigenvalue": found["eigenvalues"].flatten().numpy(), "residual": found["residuals"].flatten().numpy()}
    table = pd.DataFrame(values, index=index).reset_index()
    products = dict(zip(at, found["products"].tolist(), strict=True))
    return _table(table.assign(products=table["update"].map(products)), facts, EIGENVALUE_COLUMNS)


def density_table(found: Tensors, facts: dict[str, object], at: Sequence[int]) -> pd.DataFrame:
    """``DENSITY_COLUMNS``: the nodes and weights of every vector, whose weights sum to 1."""
    _, vectors, steps = found["nodes"].shape
    index = pd.MultiIndex.from_product([at, range(vectors), range(steps)], names=["update", "vector", "step"])
    values = {"node": found["nodes"].flatten().numpy(), "weight": found["weights"].flatten().numpy()}
    return _table(pd.DataFrame(values, index=index).reset_index(), facts, DENSITY_COLUMNS)


def overlap_table(real: Tensors, own: Tensors, facts: dict[str, object], at: Sequence[int]) -> pd.DataFrame:
    """``OVERLAP_COLUMNS``: the top eigenspace of a set against that of the real data, and what chance would give."""
    _, k, size = real["eigenvectors"].shape
    values = {"update": list(at), "overlap": overlap(real["eigenvectors"], own["eigenvectors"]).numpy()}
    return _table(pd.DataFrame(values).assign(chance=k / size, vectors=k), facts, OVERLAP_COLUMNS)


def _table(table: pd.DataFrame, facts: dict[str, object], columns: list[str]) -> pd.DataFrame:
    return table.assign(**{name: value for name, value in facts.items() if name in columns})[columns]


def smoothed(table: pd.DataFrame, fade: float = 0.9) -> pd.DataFrame:
    """A table of traces as published: y_t = fade * y_(t-1) + (1 - fade) * x_t, from y = x at the first state.

    Errors are smoothed alike: right where those of neighbouring states agree wholly, too large where they do not.
    """
    if not 0 <= fade < 1:
        raise ValueError(f"fade is {fade!r}: it must be at least 0 and below 1")
    lines = [*(key for key in KEYS if key != "update"), "set_seed"]
    parts = []
    for _, line in table.groupby(lines, sort=False, dropna=False):
        line = line.sort_values("update")
        values = line[["trace", "trace_se"]].ewm(alpha=1 - fade, adjust=False).mean()
        parts.append(line.assign(trace=values["trace"], trace_se=values["trace_se"]))
    return pd.concat(parts, ignore_index=True)


def density_curves(table: pd.DataFrame, points: int = 400, width: float = 0.01) -> pd.DataFrame:
    """The densities of a table of nodes as curves: ``KEYS``, set_seed, ``value`` and ``density``.

    ``points`` values span the nodes of each (dataset, network, update); nodes are Gaussians whose deviation is
    ``width`` times that span, the mean over vectors.
    """
    parts = []
    for _, panel in table.groupby(["dataset", "network", "update"], sort=False):
        low, high = panel["node"].min(), panel["node"].max()
        spread = width * max(high - low, 1e-12)
        at = torch.linspace(low - 4 * spread, high + 4 * spread, points, dtype=torch.float64)
        for _, line in panel.groupby(["target", "ipc", "network_seed", "set_seed"], sort=False, dropna=False):
            shape = (line["vector"].nunique(), -1)
            nodes, weights = (torch.tensor(line[c].to_numpy(dtype=float)).view(shape) for c in ("node", "weight"))
            density = curvature.smooth_density(nodes, weights, at, spread).numpy()
            facts = line.iloc[[0] * points][[*KEYS, "set_seed"]].reset_index(drop=True)
            parts.append(facts.assign(value=at.numpy(), density=density))
    return pd.concat(parts, ignore_index=True)


# ----------------------------------------------------------------------------------------------------------- artefacts


def followed(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    sets: Sequence[DistilledSet],
    recipe: Recipe,
    network_seeds: Sequence[int],
    at: Iterable[int],
    effort: Effort = Effort(),
    compute: Compute = Compute(),
) -> Tables:
    """:func:`measure` for the real data and every set along one :func:`trajectory` a network seed, kept; the tables.

    Raises ``ValueError`` before any work for a set that does not fit the data, or spectra of states that are none.
    """
    moments = sorted(set(at))
    spectra = tuple(sorted(set(effort.spectra_at)))
    effort = replace(effort, spectra_at=spectra)
    _check_spectra(effort, moments)
    targets: list[tuple[DistilledSet | None, Target]] = [(None, real_target(data, effort))]
    targets += [(one, set_target(one, data, effort)) for one in sets]
    parts: list[list[pd.DataFrame]] = [[], [], [], []]
    for network_seed in network_seeds:
        states = kept_states(run, data, architecture, recipe, network_seed, moments, compute)
        real: Tensors = {}
        for one, target in targets:
            found = _measured(run, data, states, recipe, network_seed, moments, one, target, effort, compute)
            real = found if one is None else real
            facts = _facts(data, architecture, network_seed, one, target, effort)
            parts[0].append(trace_table(found, facts, moments))
            if spectra:
                facts |= {"images": len(target.few[0])}
                parts[1].append(eigenvalue_table(found, facts, spectra))
                parts[2].append(density_table(found, facts, spectra))
            if spectra and one is not None:
                parts[3].append(overlap_table(real, found, facts, spectra))
    columns = (TRACE_COLUMNS, EIGENVALUE_COLUMNS, DENSITY_COLUMNS, OVERLAP_COLUMNS)
    return Tables(*(_joined(tables, names) for tables, names in zip(parts, columns, strict=True)))


def _joined(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    joined = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    return joined.astype({"ipc": "Int64", "set_seed": "Int64"})


def _facts(
    data: ImageData, a: Architecture, network_seed: int, one: DistilledSet | None, target: Target, effort: Effort
) -> dict[str, object]:
    """What the rows of one target share; real data have no ipc and no set seed."""
    own: dict[str, object] = {"target": "real", "ipc": pd.NA, "set_seed": pd.NA}
    if one is not None:
        own = {"target": one.method, "ipc": one.ipc, "set_seed": one.seed}
    shared = {"dataset": data.name, "network": a.name, "network_seed": network_seed}
    return shared | own | {"images": len(target.x), "which": effort.which}


def kept_states(
    run: Run,
    data: ImageData,
    a: Architecture,
    recipe: Recipe,
    network_seed: int,
    at: Sequence[int],
    compute: Compute = Compute(),
) -> Networks:
    """:func:`trajectory`, kept."""
    arguments = {
        "network": a.name,
        "recipe": asdict(recipe),
        "network_seed": network_seed,
        "at": list(at),
        "compute": asdict(compute),
    }

    def build(checkpoint: Checkpoint | None, progress: Callable[[int], object] | None) -> Tensors:
        return trajectory(data, a, recipe, network_seed, at, compute, checkpoint, progress).state

    name = f"trajectory_{data.name}_{a.name}_s{network_seed}_{len(at)}"
    state = artefacts.artefact(run, "hessian", name, data, "hessian.trajectory", 1, arguments, build)
    return Networks(a, state).to(run.device)


def _measured(
    run: Run,
    data: ImageData,
    states: Networks,
    recipe: Recipe,
    network_seed: int,
    at: Sequence[int],
    one: DistilledSet | None,
    target: Target,
    effort: Effort,
    compute: Compute,
) -> Tensors:
    own = asdict(effort) | {"spectra_at": list(effort.spectra_at)}
    unused = ("sets",) if one is None else ("real", "images", "spectrum_images")
    arguments = {
        "target": "real" if one is None else artefacts.fingerprint(one),
        "network": states.architecture.name,
        "recipe": asdict(recipe),
        "network_seed": network_seed,
        "at": list(at),
        "effort": {name: value for name, value in own.items() if name not in unused},
        "compute": asdict(compute),
    }

    def build(checkpoint: Checkpoint | None, progress: Callable[[int], object] | None) -> Tensors:
        seed = stream_seed(effort.seed, "hessian", network_seed)
        return measure(states, at, target, effort, seed, compute.compiled, checkpoint, progress)

    name = f"{arguments['target']}_{data.name}_{states.architecture.name}_s{network_seed}"
    return artefacts.artefact(run, "hessian", name, data, "hessian.measure", 2, arguments, build)
