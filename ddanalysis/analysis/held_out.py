"""What a set made step by step teaches networks that its makers never met (Wang et al. 2018, section 4).

Networks that are given walk the steps of the set, and are tested on real images before the first and after the last
step. A :class:`Replay` walks them otherwise: with another optimiser, in another order, more often, at another rate;
other architectures are other networks to begin with. Means and deviations are for tables: here each network counts.
:class:`Examiner` keeps what it finds as artefacts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from ddanalysis import artefacts, checks, store, training
from ddanalysis.analysis.pretrained import fingerprint
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute, slices
from ddanalysis.data import ImageData
from ddanalysis.distill import METHODS, Job, dd_networks
from ddanalysis.distill.making import Build
from ddanalysis.distilled import DistilledSet, fits
from ddanalysis.networks import Networks, Outputs
from ddanalysis.report import Run
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.store import Tensors
from ddanalysis.training import Recipe

NUMBERS = 2**26
"""Networks that are trained together have at most this many weights, so that 200 large ones fit into memory too."""

CHOOSERS = 20
"""Networks by which something is chosen, as published."""

NETWORK_SETTINGS = ("networks", "fixed", "weights", "source", "pretrained", "pretrained_epochs")
"""The settings of dataset distillation that say which networks a set is for."""

CHOOSING_IMAGES = 1024
"""Training images on which something is chosen: one batch, as published."""


def _own(batches: Tensor, rates: Tensor, y: Tensor, dice: Generator) -> tuple[Tensor, Tensor]:
    return batches, rates


def _steps(batches: Tensor, rates: Tensor, y: Tensor, dice: Generator) -> tuple[Tensor, Tensor]:
    shuffled = torch.randperm(len(batches), generator=dice)
    return batches[shuffled], rates[shuffled]


def _images(batches: Tensor, rates: Tensor, y: Tensor, dice: Generator) -> tuple[Tensor, Tensor]:
    return batches.flatten()[torch.randperm(batches.numel(), generator=dice)].view_as(batches), rates


def _in_turn(batches: Tensor, rates: Tensor, y: Tensor, dice: Generator) -> tuple[Tensor, Tensor]:
    """One image of each class of the labels ``y``, then the next of each, classes in their order."""
    rows = batches.flatten()
    classes = (y.argmax(1) if y.is_floating_point() else y)[rows].to(rows.device)
    rank = (classes[:, None] == classes).tril(-1).sum(1)  # how many of its class come before it
    return rows[(rank * (int(classes.max()) + 1) + classes).argsort()].view_as(batches), rates


ORDERS: dict[str, Callable[[Tensor, Tensor, Tensor, Generator], tuple[Tensor, Tensor]]] = {
    "own": _own,
    "steps": _steps,
    "images": _images,
    "classes in turn": _in_turn,
}
"""How one pass is walked: the batches (steps, batch) and the rates (steps,) of it, from those of the set, by labels."""


@dataclass(frozen=True)
class Replay:
    """How the steps of a set are walked; the default is the published way, as a set is learned.

    ``optimiser`` is "sgd" (plain), "momentum" (SGD with 0.9) or "adam". ``order`` is "own", or drawn anew for every
    pass and network: "steps" shuffles the steps, each with its images and its rate, "images" deals all images of a pass
    into new batches, while rates stay in place. "classes in turn" does so too, but takes one image of each class, then
    the next of each. ``passes`` 0 is the set's own number; the rates of the last pass serve
    for more. ``rate`` 0 is the set's own rates, else one for all steps. ``batch`` 0 is the set's own, else the images
    of a pass, in their order, are cut into batches of that many.
    """

    optimiser: str = "sgd"
    order: str = "own"
    passes: int = 0
    rate: float = 0.0
    batch: int = 0

    def __post_init__(self) -> None:
        checks.one_of("optimiser of a replay", self.optimiser, ("sgd", "momentum", "adam"))
        checks.one_of("order of a replay", self.order, tuple(ORDERS))
        checks.whole("passes of a replay", self.passes, 0)
        checks.at_least("rate of a replay", self.rate, 0)
        checks.whole("batch of a replay", self.batch, 0)
        if self.batch and self.order == "steps":
            raise ValueError(f"batch of a replay is {self.batch} and its order is 'steps', which keeps the set's own")


@dataclass(frozen=True)
class HeldOut:
    """K networks on n test images, before the first step and after the last: accuracies and losses (K,)."""

    before: Outputs
    after: Outputs


def steps_of(one: DistilledSet) -> tuple[int, int]:
    """Distinct steps of a set, and passes over them: the shortest stretch of which its order is a repetition.

    Raises ``ValueError`` for a set without an order.
    """
    order = _order(one)
    total = len(order)
    lengths = [n for n in range(1, total + 1) if total % n == 0]
    steps = next(n for n in lengths if torch.equal(order, order[:n].repeat(total // n, 1)))
    return steps, total // steps


def before_and_after(
    one: DistilledSet,
    starts: Networks,
    data: ImageData,
    replay: Replay = Replay(),
    seed: int = 0,
    compute: Compute = Compute(),
) -> HeldOut:
    """K networks on all real test images as they are given and after they walked the set; ``seed`` shuffles.

    Raises ``ValueError``, before any work, for a set that does not fit the data, that has no order of steps, or no
    rates where the replay has none.
    """
    fits(one, data)
    found = after(one, starts, data.test_x, data.test_y, replay, seed, compute)
    return HeldOut(starts.evaluate(data.test_x.to(_dtype(starts)), data.test_y, compute), found)


def after(
    one: DistilledSet,
    starts: Networks,
    x: Tensor,
    y: Tensor,
    replay: Replay = Replay(),
    seed: int = 0,
    compute: Compute = Compute(),
) -> Outputs:
    """What K networks say of the images ``x`` (n, c, h, w) of classes ``y`` (n,) when they have walked the set."""
    x = x.to(_dtype(starts))

    def look(now: Networks) -> dict[str, Tensor]:
        found = now.evaluate(x, y, compute)
        return {f.name: getattr(found, f.name) for f in fields(Outputs)}

    passes = replay.passes or steps_of(one)[1]
    observed = _observed(one, starts, replay, [passes], seed, compute, look)
    return Outputs(**{name: t[:, 0] for name, t in observed.items()})


def accuracy_by_pass(
    one: DistilledSet,
    starts: Networks,
    data: ImageData,
    passes: Sequence[int],
    replay: Replay = Replay(),
    seed: int = 0,
    compute: Compute = Compute(),
) -> Tensor:
    """Accuracy (K, len(passes)) of K networks on all test images after each number of ``passes``, 0 for none.

    The numbers rise; the replay's last pass is at or after the last of them, else ``ValueError``.
    """
    fits(one, data)
    if not passes or list(passes) != sorted(set(passes)) or passes[0] < 0:
        raise ValueError(f"passes are {list(passes)}: rising numbers from 0, at least 1, are needed")
    x = data.test_x.to(_dtype(starts))
    return _observed(
        one, starts, replay, passes, seed, compute, lambda now: {"": now.evaluate(x, data.test_y, compute).accuracy}
    )[""]


def training_images(data: ImageData, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """``count`` real training images and their classes, drawn at random, on which things are chosen; all if fewer."""
    checks.whole("count of training images", count)
    rows = torch.randperm(len(data.train_y), generator=generator(seed, "images to choose on"))[:count]
    rows = rows.to(data.train_x.device)
    return data.train_x[rows], data.train_y[rows]


def best(
    sets: Sequence[DistilledSet],
    starts: Networks,
    replays: Sequence[Replay],
    x: Tensor,
    y: Tensor,
    seed: int = 0,
    compute: Compute = Compute(),
) -> Replay:
    """The replay of the highest accuracy on ``x``, ``y``, the mean over sets and networks, the first of equal ones.

    These are to be training images: nothing is chosen by test images. Raises ``ValueError`` without replays or sets.
    """
    if not replays or not sets:
        raise ValueError(f"{len(replays)} replays and {len(sets)} sets to choose with: at least 1 of each is needed")
    if len(replays) == 1:
        return replays[0]
    found = [
        torch.stack([after(one, starts, x, y, replay, seed, compute).accuracy for one in sets]).mean()
        for replay in replays
    ]
    return replays[int(torch.stack(found).argmax())]


def _order(one: DistilledSet) -> Tensor:
    if one.order is None:
        raise ValueError(f"{one.name} has no order: only a set with an order of steps can be replayed")
    return one.order.cpu()


def _dtype(nets: Networks) -> torch.dtype:
    return next(iter(nets.state.values())).dtype


def _observed(
    one: DistilledSet,
    starts: Networks,
    replay: Replay,
    passes: Sequence[int],
    seed: int,
    compute: Compute,
    look: Callable[[Networks], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """What ``look`` sees of the networks after each number of ``passes``: (K, len(passes), ...)."""
    seeds = [stream_seed(seed, "replay", k) for k in range(len(starts))]
    plans = [_updates(one, replay, s) for s in seeds]  # raises before any work
    total, last = len(plans[0][0]), replay.passes or steps_of(one)[1]
    if passes[-1] > last:
        raise ValueError(f"pass {passes[-1]} is to be looked at: the replay of {one.name} ends after {last}")
    at = [p * (total // last) for p in passes]
    x, y = one.x.to(starts.device, _dtype(starts)), one.y.to(starts.device)
    y = y.to(x.dtype) if y.is_floating_point() else y
    optimiser = "adam" if replay.optimiser == "adam" else "sgd"
    momentum = 0.9 if replay.optimiser == "momentum" else 0.0
    recipe = Recipe(updates=total, batch_size=plans[0][0].shape[1], optimiser=optimiser, momentum=momentum)
    done: dict[int, dict[str, Tensor]] = {}
    for rates, members in _alike(starts, [rates for _, rates in plans]):
        rows, own = [plans[k][0] for k in members], [seeds[k] for k in members]
        found = training.train(starts[members], x, y, recipe, own, rows, look, at, compute, rates=rates).observed
        done |= {k: {name: t[i] for name, t in found.items()} for i, k in enumerate(members)}
    return {name: torch.stack([done[k][name] for k in range(len(starts))]) for name in done[0]}


def _alike(starts: Networks, rates: Sequence[tuple[float, ...]]) -> list[tuple[tuple[float, ...], list[int]]]:
    """Networks that are trained at once, by the rates of their steps, in bounded memory."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for k, own in enumerate(rates):
        groups.setdefault(own, []).append(k)
    together = max(NUMBERS // sum(t[0].numel() for t in starts.state.values()), 1)
    return [(own, members[s]) for own, members in groups.items() for s in slices(len(members), together)]


def _updates(one: DistilledSet, replay: Replay, seed: int) -> tuple[Tensor, tuple[float, ...]]:
    """The batches (updates, batch) and the rates of one network that walks the set."""
    steps, own_passes = steps_of(one)
    batches = _order(one)[:steps]
    rates = _rates(one, replay, own_passes, steps)
    if replay.batch:
        if batches.numel() % replay.batch:
            raise ValueError(f"batch of a replay is {replay.batch}: it must divide the {batches.numel()} of a pass")
        if len(rates.unique()) > 1:
            raise ValueError(f"batch of a replay is {replay.batch}, {one.name} has several rates: give the replay one")
        batches = batches.reshape(-1, replay.batch)
        rates = rates[:, :1].expand(-1, len(batches))
    walked = []
    for number in range(replay.passes or own_passes):
        rate = rates[min(number, own_passes - 1)]
        walked.append(ORDERS[replay.order](batches, rate, one.y, generator(seed, replay.order, number)))
    return torch.cat([own for own, _ in walked]), tuple(torch.cat([rate for _, rate in walked]).tolist())


def _rates(one: DistilledSet, replay: Replay, passes: int, steps: int) -> Tensor:
    """The rates (passes, steps) float64."""
    if replay.rate:
        return torch.full((passes, steps), replay.rate, dtype=torch.float64)
    if one.learning_rates is None:
        raise ValueError(f"{one.name} has no learning rates: give the replay a rate")
    return one.learning_rates.cpu().double().expand(passes * steps).view(passes, steps)


def confusion(predictions: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """How often (K, C, C) int64 each of K networks took images of a class, the row, for another, the column."""
    pairs = y * n_classes + predictions.to(y)
    return torch.stack([own.bincount(minlength=n_classes**2) for own in pairs]).view(-1, n_classes, n_classes)


@dataclass(frozen=True)
class Attack:
    """How K networks were misled: shares of 1, float64; NaN for a class without test images."""

    accuracy: Tensor  # (K,) by the true labels
    modified: Tensor  # (K,) by labels in which the attacked class is called the target
    by_class: Tensor  # (K, C)
    as_target: Tensor  # (K,) of the attacked class, those taken for the target


def attack_measures(counts: Tensor, attack: tuple[int, int]) -> Attack:
    """The published measures of an attack on a class in favour of a target, from what :func:`confusion` counted.

    Raises ``ValueError`` unless ``attack`` is two different classes, the first of which has test images.
    """
    classes, (attacked, target) = counts.shape[1], attack
    if attacked == target or not all(0 <= c < classes for c in attack):
        raise ValueError(f"the attack is {tuple(attack)}: a class and another target, 0 to {classes - 1}, are needed")
    images = counts.double().sum(2)
    if (images[:, attacked] == 0).any():
        raise ValueError(f"class {attacked} is attacked and has no test images")
    right = counts.double().diagonal(dim1=1, dim2=2)
    misled = counts[:, attacked, target].double()
    total = images.sum(1)
    modified = (right.sum(1) - right[:, attacked] + misled) / total
    return Attack(right.sum(1) / total, modified, right / images, misled / images[:, attacked])


@dataclass(frozen=True)
class Examiner:
    """What ``count`` networks learn of sets, and choices by ``CHOOSERS`` others, kept as artefacts.

    ``settings``, everywhere, are those of dataset distillation, which say the networks that a set is for, and ``seed``
    is that of a set.
    """

    run: Run
    data: ImageData
    count: int
    compute: Compute = Compute()
    known: dict[str, Tensors] = field(default_factory=dict)  # of networks before any set, by their fingerprint
    met: bool = False  # whether networks to test with are those that sets were made with

    def job(self, a: Architecture, seed: int, ipc: int = 1) -> Job:
        """What says which networks there are, and images where some are asked for."""
        return Job(self.data, a, ipc, seed, share=partial(artefacts.shared, self.run, self.data))

    def starts(self, a: Architecture, settings: Mapping[str, Any], seed: int) -> Networks:
        """The networks to test with: the fixed ones, or ``count``, unless ``met`` those that no set was made with."""
        return dd_networks.starts(self.job(a, seed), settings, self.count, held_out=not self.met)

    def choosers(self, a: Architecture, settings: Mapping[str, Any], seed: int) -> Networks:
        """Networks to choose with, which are none of those to test with unless these are fixed."""
        return dd_networks.starts(self.job(a, seed), settings, CHOOSERS, held_out=False)

    def outcome(
        self, one: DistilledSet, a: Architecture, settings: Mapping[str, Any], seed: int, replay: Replay
    ) -> Tensors:
        """``accuracy``, ``loss`` (K,) and ``counts`` (K, C, C) of :func:`confusion` after the set, and
        ``accuracy_before``, ``loss_before`` and ``counts_before``, on all test images.
        """

        def build(*_: object) -> Tensors:
            starts, x, y = self.starts(a, settings, seed), self.data.test_x, self.data.test_y
            found = after(one, starts, x, y, replay, seed, self.compute)
            key = fingerprint(starts)
            if key not in self.known:
                self.known[key] = self._as_tensors("_before", starts.evaluate(x, y, self.compute))
            return self.known[key] | self._as_tensors("", found)

        arguments = {"set": artefacts.fingerprint(one), "replay": asdict(replay), "count": self.count}
        arguments |= {"met": True} if self.met else {}
        return self.keep(f"{one.name}_{a.name}", "held_out.before_and_after", a, settings, seed, arguments, build)

    def _as_tensors(self, suffix: str, found: Outputs) -> Tensors:
        counts = confusion(found.predictions, self.data.test_y, self.data.n_classes).int()
        own = {"accuracy": found.accuracy, "loss": found.loss, "counts": counts}
        return {f"{name}{suffix}": t.cpu() for name, t in own.items()}

    def chosen(
        self,
        sets: Sequence[DistilledSet],
        a: Architecture,
        settings: Mapping[str, Any],
        seed: int,
        replays: Sequence[Replay],
    ) -> Replay:
        """The :func:`best` of the replays on ``CHOOSING_IMAGES`` training images; a single one costs nothing."""
        if len(replays) == 1:
            return replays[0]

        def build(*_: object) -> Tensors:
            x, y = training_images(self.data, CHOOSING_IMAGES, seed)
            found = best(sets, self.choosers(a, settings, seed), replays, x, y, seed, self.compute)
            return {"chosen": torch.tensor(replays.index(found))}

        arguments: dict[str, Any] = {"sets": [artefacts.fingerprint(one) for one in sets]}
        arguments["replays"] = [asdict(replay) for replay in replays]
        name = f"choice_{sets[0].name}_{a.name}"
        return replays[int(self.keep(name, "held_out.best", a, settings, seed, arguments, build)["chosen"])]

    def keep(
        self,
        name: str,
        maker: str,
        a: Architecture,
        settings: Mapping[str, Any],
        seed: int,
        arguments: Mapping[str, Any],
        build: Build,
    ) -> Tensors:
        """What ``build`` makes with networks of these settings, from then on read from a file."""
        own = {
            "network": repr(a),
            "settings": {name: settings[name] for name in NETWORK_SETTINGS},
            "seed": seed,
            "compute": asdict(self.compute),
        }
        own |= {"networks_version": METHODS["dd"].version} | dict(arguments)
        name = f"{name}_{artefacts.digest({}, store.canonical(own))[:8]}"
        return artefacts.artefact(self.run, "trained", name, self.data, maker, 1, own, build)
