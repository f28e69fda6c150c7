"""Can a distilled set stand in for real data when real data are added to it? (Yang et al. 2024, section 3, Fig. 3
right)

The published figure adds k real images a class and trains for 300 full-batch updates, whatever the size. That mixes
three changes: more data, fewer epochs' worth of updates for each image, and less weight for the distilled images. The
modes take them apart:

* "fixed updates": as published, k real images a class beside the set, full batches, as many updates whatever k;
* "fixed epochs": the same images in batches of the size of the set, as many epochs whatever k;
* "replacement": k of each class's distilled images give way to real ones, so that size and updates stay.

At k = 0 the three are one. Network seed s has the same initial weights and the same real images whatever the set, so
that a change against +0 is one of the same network; its real images for a small k are among those for a larger one.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from hashlib import sha256

import pandas as pd
import torch
import torch.nn.functional as F

from ddanalysis import artefacts, checks, intervals, networks, training
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute
from ddanalysis.data import ImageData, balanced_rows
from ddanalysis.distilled import DistilledSet, fits
from ddanalysis.evaluation import PROTOCOLS, initial_seed
from ddanalysis.report import Run
from ddanalysis.seeding import stream_seed
from ddanalysis.store import Checkpoint, Tensors
from ddanalysis.training import Recipe

MODES = ("fixed updates", "fixed epochs", "replacement")
REAL_PER_CLASS = (0, 2, 10, 50, 250)
"""As published."""
RECIPE = PROTOCOLS["full-batch-300"].recipe

_KEYS = ["dataset", "method", "ipc", "network", "mode", "set_seed", "network_seed"]

Member = tuple[int, int, int]
"""One network: the number of its set, how many real images a class it sees, and its seed."""


# ---------------------------------------------------------------------------------------------- which images


def unseen_rows(data: ImageData, sets: Sequence[DistilledSet]) -> torch.Tensor:
    """The training rows (int64, ascending) whose image none of the ``sets`` holds pixel by pixel.

    Real images are drawn from these, for every set alike: those of the random baseline are not added to it again.
    """
    held = {image.tobytes() for one in sets for image in one.x.float().cpu().numpy()}
    images = data.train_x.float().cpu().numpy()
    return torch.tensor([row for row, image in enumerate(images) if image.tobytes() not in held], dtype=torch.int64)


def real_rows(data: ImageData, unseen: torch.Tensor, per_class: int, network_seed: int) -> torch.Tensor:
    """``per_class`` of the ``unseen`` training rows of each class, class-major, those of a smaller number among them.

    Raises ``ValueError`` for a class with too few.
    """
    if not per_class:
        return torch.zeros(0, dtype=torch.int64)
    labels = data.train_y.cpu()[unseen]
    return unseen[balanced_rows(labels, per_class, stream_seed(network_seed, "real images to mix in"))]


def kept_rows(one: DistilledSet, replaced: int, network_seed: int) -> torch.Tensor:
    """The rows of a set (ascending) that stay when ``replaced`` images of each class are taken out, those of a smaller
    number among them. Raises ``ValueError`` for a class with too few.
    """
    if not replaced:
        return torch.arange(len(one))
    stay = torch.ones(len(one), dtype=torch.bool)
    stay[balanced_rows(one.labels().cpu(), replaced, stream_seed(network_seed, "distilled images to replace"))] = False
    return stay.nonzero()[:, 0]


# --------------------------------------------------------------------------------------------------- training


def members(
    sets: Sequence[DistilledSet], mode: str, real_per_class: Sequence[int], network_seeds: Sequence[int]
) -> list[Member]:
    """The networks of a mode, set by set; a replacement of more images than a set's ipc is left out."""
    checks.one_of("mode", mode, MODES)
    if not sets:
        raise ValueError("no distilled sets were given: at least 1 is needed")
    for k in real_per_class:
        checks.whole("real_per_class", k, 0)
    return [
        (i, k, seed)
        for i, one in enumerate(sets)
        for k in real_per_class
        if mode != "replacement" or k <= one.ipc
        for seed in network_seeds
    ]


def mix(
    sets: Sequence[DistilledSet],
    data: ImageData,
    architecture: Architecture,
    mode: str,
    real_per_class: Sequence[int] = REAL_PER_CLASS,
    network_seeds: Sequence[int] = (0,),
    recipe: Recipe = RECIPE,
    unseen: torch.Tensor | None = None,
    compute: Compute = Compute(),
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] | None = None,
) -> torch.Tensor:
    """Train every one of :func:`members` and return its accuracy on the test images, (members,) float64 shares of 1.

    ``recipe`` is of full batches and a number of updates, which "fixed epochs" takes for epochs. ``unseen`` are the
    training rows to draw from, by default :func:`unseen_rows` of ``sets``. Networks that are trained alike are trained
    at once. Raises ``ValueError`` before any work.
    """
    who = members(sets, mode, real_per_class, network_seeds)
    if recipe.updates is None or recipe.batch_size is not None:
        raise ValueError("mixing takes a recipe of full batches (batch_size None) and a number of updates")
    if not who:
        return torch.zeros(0, dtype=torch.float64)
    unseen = unseen_rows(data, sets) if unseen is None else unseen
    x, y, rows = _pool(sets, data, mode, who, unseen)
    alike: dict[tuple[Recipe, int], list[int]] = {}
    for m, (i, _, _) in enumerate(who):
        alike.setdefault((_recipe(recipe, mode, sets[i]), sets[i].y.ndim), []).append(m)
    accuracy = torch.zeros(len(who), dtype=torch.float64)
    for part, ((own, dimensions), chosen) in enumerate(alike.items()):
        seeds = [who[m][2] for m in chosen]
        fresh = networks.create(architecture, [initial_seed(s) for s in seeds], device=x.device, dtype=x.dtype)
        trained = training.train(
            fresh, x, y if dimensions == 2 else y.argmax(1), own, seeds, [rows[m] for m in chosen], compute=compute,
            checkpoint=checkpoint.child(part) if checkpoint else None, progress=progress,
        )  # fmt: skip
        accuracy[chosen] = trained.networks.evaluate(data.test_x, data.test_y, compute).accuracy.cpu()
    return accuracy


def _recipe(recipe: Recipe, mode: str, one: DistilledSet) -> Recipe:
    if mode != "fixed epochs":
        return recipe
    return replace(recipe, updates=None, epochs=recipe.updates, batch_size=len(one))


def _pool(
    sets: Sequence[DistilledSet], data: ImageData, mode: str, who: Sequence[Member], unseen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """All images, sets first, their labels as rows of C, and the rows that each network learns, its set's first."""
    for one in sets:
        fits(one, data)
    drawn = {(k, seed): real_rows(data, unseen, k, seed) for _, k, seed in who}
    real = torch.cat(list(drawn.values())).unique()  # ascending
    starts = [0]
    for one in sets:
        starts.append(starts[-1] + len(one))
    rows = []
    for i, k, seed in who:
        own = kept_rows(sets[i], k if mode == "replacement" else 0, seed)
        rows.append(torch.cat([starts[i] + own, starts[-1] + torch.searchsorted(real, drawn[k, seed])]))
    device, dtype = data.train_x.device, data.train_x.dtype
    labels = [one.y if one.y.ndim == 2 else F.one_hot(one.y, data.n_classes) for one in sets]
    labels.append(F.one_hot(data.train_y.cpu()[real], data.n_classes))
    x = torch.cat([*(one.x.to(device, dtype) for one in sets), data.train_x[real.to(device)]])
    return x, torch.cat([t.to(device, dtype) for t in labels]), rows


# ----------------------------------------------------------------------------------------------------- tables


def mixing_table(
    accuracy: torch.Tensor,
    who: Sequence[Member],
    sets: Sequence[DistilledSet],
    data: ImageData,
    architecture: Architecture,
    mode: str,
) -> pd.DataFrame:
    """What :func:`mix` found, a row a network.

    Columns dataset, method, ipc, network, mode, real_per_class, set_seed, network_seed, accuracy.
    """
    what = {"dataset": data.name, "network": architecture.name, "mode": mode}
    rows = [
        what | {"method": sets[i].method, "ipc": sets[i].ipc, "set_seed": sets[i].seed}
        | {"real_per_class": k, "network_seed": seed, "accuracy": value}
        for (i, k, seed), value in zip(who, accuracy.tolist(), strict=True)
    ]  # fmt: skip
    columns = [*_KEYS[:5], "real_per_class", "set_seed", "network_seed", "accuracy"]
    return pd.DataFrame(rows, columns=columns)


def mixed(
    run: Run,
    data: ImageData,
    architecture: Architecture,
    sets: Sequence[DistilledSet],
    modes: Sequence[str] = MODES,
    real_per_class: Sequence[int] = REAL_PER_CLASS,
    network_seeds: Sequence[int] = (0,),
    recipe: Recipe = RECIPE,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """:func:`mix` for every mode, kept by set, so that a new set costs its own networks alone; the table ``mixing``.

    The real images are such as none of the ``sets`` holds, so a further set of real images changes the draw for all.
    """
    unseen = unseen_rows(data, sets)
    tables = []
    for mode in modes:
        for one in sets:
            who = members([one], mode, real_per_class, network_seeds)
            found = _kept(run, data, architecture, one, mode, real_per_class, network_seeds, recipe, unseen, compute)
            tables.append(mixing_table(found, who, [one], data, architecture, mode))
    return pd.concat(tables, ignore_index=True)


def _kept(
    run: Run,
    data: ImageData,
    a: Architecture,
    one: DistilledSet,
    mode: str,
    counts: Sequence[int],
    seeds: Sequence[int],
    recipe: Recipe,
    unseen: torch.Tensor,
    compute: Compute,
) -> torch.Tensor:
    arguments = {
        "set": artefacts.fingerprint(one),
        "network": a.name,
        "mode": mode,
        "real_per_class": list(counts),
        "unseen": sha256(unseen.numpy().tobytes()).hexdigest()[:16],
        "recipe": asdict(recipe),
        "network_seeds": list(seeds),
        "compute": asdict(compute),
    }

    def build(checkpoint: Checkpoint | None, progress: Callable[[int], object] | None) -> Tensors:
        return {"accuracy": mix([one], data, a, mode, counts, seeds, recipe, unseen, compute, checkpoint, progress)}

    name = f"{data.name}_ipc{one.ipc}_{arguments['set']}_{a.name}_{mode.replace(' ', '-')}"
    return artefacts.artefact(run, "mixing", name, data, "mixing.mix", 1, arguments, build)["accuracy"]


def changes(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``table`` with real images, and the ``change`` of their accuracy against +0 of the same network.

    Raises ``ValueError`` for a network without a row of ``real_per_class`` 0.
    """
    before = table.loc[table["real_per_class"] == 0, [*_KEYS, "accuracy"]].rename(columns={"accuracy": "before"})
    both = table[table["real_per_class"] > 0].merge(before, on=_KEYS, how="left", validate="m:1")
    missing = both[both["before"].isna()]
    if len(missing):
        named = ", ".join(f"{key} {missing.iloc[0][key]}" for key in _KEYS)
        raise ValueError(f"{named} has no accuracy with real_per_class 0: changes are against it")
    return both.assign(change=both["accuracy"] - both["before"]).drop(columns="before")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The mean change of every setting and number of real images with its 95 % interval over sets, or networks where
    sets do not differ, and whether it lies below 0: adding so few real images ``hurts``.
    """
    by = ["dataset", "method", "ipc", "network", "mode", "real_per_class"]
    found = intervals.summarise(changes(table), by, "change", ["set_seed", "network_seed"])
    return found.assign(hurts=found["high"] < 0)
