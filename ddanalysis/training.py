"""The one training loop: K networks, each with its own rows, batches, order and number of updates.

Every loop over networks in the published code is a call of :func:`train`: model pools (own subsets), leave-one-out
(own rows), repetitions (own seeds), early stopping (observed after every update). Batches and augmentations come from
streams named by network, epoch and update, so the result does not depend on what was computed together, and an
interrupted run resumes exactly.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch

from ddanalysis import augment, augment_dc, checks
from ddanalysis.compute import Compute, images_per_pass, loss_function, networks_together, padded, slices
from ddanalysis.layers import Parameters
from ddanalysis.networks import Networks, stack
from ddanalysis.seeding import generator
from ddanalysis.store import Checkpoint, Tensors

Observer = Callable[[Networks], Tensors]


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Exactly one of ``epochs`` and ``updates`` is given. ``batch_size`` None is the full batch, in row order; else each
    epoch is a fresh permutation whose last batch may be short. The learning rate is multiplied by ``decay`` after
    each of the ``milestones`` (in epochs); ``restart`` forgets the momentum there, as code that builds a new
    optimiser does. ``augment`` is a DSA strategy, or DC's (:mod:`ddanalysis.augment_dc`), "" for none. SGD and Adam
    are PyTorch's, weight decay in the gradient.
    """

    epochs: int | None = None
    updates: int | None = None
    batch_size: int | None = 256
    optimiser: str = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    restart: bool = False
    augment: str = ""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.updates is None):
            raise ValueError(f"epochs is {self.epochs} and updates is {self.updates}: give exactly one of them")
        for name, value in (("epochs", self.epochs), ("updates", self.updates)):
            if value is not None:
                checks.whole(name, value, 0)
        if self.batch_size is not None:
            checks.whole("batch_size", self.batch_size)
        checks.one_of("optimiser", self.optimiser, ("sgd", "adam"))
        for name in ("learning_rate", "momentum", "weight_decay"):
            checks.at_least(name, getattr(self, name), 0)
        _augmentation(self.augment)

    def batches_per_epoch(self, n: int) -> int:
        """Updates that one epoch over ``n`` images takes."""
        return math.ceil(n / min(self.batch_size or n, n))

    def total_updates(self, n: int) -> int:
        """Updates that training on ``n`` images takes."""
        return self.updates if self.updates is not None else self.epochs * self.batches_per_epoch(n)  # type: ignore[operator]

    def rate(self, epoch: int) -> float:
        """Learning rate in ``epoch`` (counted from 0)."""
        return self.learning_rate * self.decay ** sum(epoch >= m for m in self.milestones)


def _augmentation(strategy: str) -> Callable[[torch.Tensor, str, torch.Generator], torch.Tensor]:
    """What applies a strategy to a batch; ``ValueError`` for one that does not exist."""
    of = augment_dc if str(strategy).startswith(augment_dc.PREFIX) else augment
    of.parse_strategy(strategy)
    return of.augment


@dataclass(frozen=True)
class Trained:
    """K trained networks and what was observed on the way."""

    networks: Networks
    observed: Tensors = field(default_factory=dict)  # name -> (K, len(at), ...)


def epoch_order(recipe: Recipe, rows: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """The order in which a network with these ``rows`` and this ``seed`` sees them in ``epoch`` (counted from 0)."""
    if recipe.batch_size is None or recipe.batch_size >= len(rows):
        return rows
    return rows[torch.randperm(len(rows), generator=generator(seed, "order", epoch))]


def train(
    networks: Networks,
    x: torch.Tensor,
    y: torch.Tensor,
    recipe: Recipe,
    seeds: Sequence[int],
    rows: Sequence[torch.Tensor] | None = None,
    observe: Observer | None = None,
    at: Collection[int] = (),
    compute: Compute = Compute(),
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] | None = None,
    rates: Sequence[float] | None = None,
) -> Trained:
    """Train every network on its rows of ``x`` (n, c, h, w) and ``y`` ((n,) ids or (n, classes) soft) and return new
    networks.

    ``seeds`` (K) name each network's batches and augmentations: equal seeds with equal rows share every batch.
    ``rows`` (K) are int64 row numbers or bool masks of length n; None is all rows for all. Those of a network may also
    be its very batches, int64 (updates, batch_size), one an update. ``observe`` is called with the networks after each
    number of updates in ``at`` (0 = before training) and returns tensors with a leading K, which come back on the
    device of ``x``. ``checkpoint`` makes a long run resume; ``progress`` is called with the number of network updates
    just done. ``rates`` are learning rates, one for each of the recipe's updates, in place of its own. Raises
    ``ValueError`` before any work.
    """
    plan = _plan(networks, x, y, recipe, seeds, rows, at)
    if rates is not None and len(rates) != recipe.updates:
        raise ValueError(
            f"{len(rates)} learning rates, the recipe has updates = {recipe.updates}: one for each is needed"
        )
    moments = sorted(set(at))
    done: dict[int, tuple[Networks, Tensors]] = {}
    for part, chosen in enumerate(_together(networks, recipe, plan, x.device)):
        job = _Job(networks[chosen], x, y, recipe, [plan[k] for k in chosen], observe, moments, compute, rates)
        trained = job.run(checkpoint.child(part) if checkpoint else None, progress)
        for position, k in enumerate(chosen):
            done[k] = trained.networks[position], {name: t[position] for name, t in trained.observed.items()}
    order = [done[k] for k in range(len(networks))]
    return Trained(
        stack([n for n, _ in order]), {name: torch.stack([o[name] for _, o in order]) for name in order[0][1]}
    )


@dataclass(frozen=True)
class _Order:
    """What one network sees: its rows, the seed of its batches, and whether the rows are batches as they stand."""

    rows: torch.Tensor
    seed: int
    batched: bool = False

    def epoch(self, recipe: Recipe, epoch: int) -> torch.Tensor:
        return self.rows if self.batched else epoch_order(recipe, self.rows, self.seed, epoch)


def _plan(
    networks: Networks,
    x: torch.Tensor,
    y: torch.Tensor,
    recipe: Recipe,
    seeds: Sequence[int],
    rows: Sequence[torch.Tensor] | None,
    at: Collection[int],
) -> list[_Order]:
    a = networks.architecture
    checks.images("training images", x, (a.channels, a.size, a.size))
    checks.labels("training labels", y, len(x), a.classes)
    for what, given in (("seeds", seeds), ("rows", rows if rows is not None else seeds)):
        if len(given) != len(networks):
            raise ValueError(f"{len(given)} {what} for {len(networks)} networks: one a network is needed")
    everything = torch.arange(len(x))
    plan = [
        _Order(everything, seed) if rows is None else _order(rows[k], len(x), k, recipe, seed)
        for k, seed in enumerate(seeds)
    ]
    last = min(recipe.total_updates(len(order.rows)) for order in plan)
    late = [u for u in at if not 0 <= u <= last]
    if late:
        raise ValueError(f"update {late[0]} is to be observed, but training ends after update {last} for some network")
    return plan


def _order(rows: torch.Tensor, n: int, k: int, recipe: Recipe, seed: int) -> _Order:
    batched = rows.ndim == 2 and rows.dtype == torch.int64
    if batched and tuple(rows.shape) != (recipe.updates, recipe.batch_size):
        wanted = f"({recipe.updates}, {recipe.batch_size}), updates and batch_size of the recipe, is needed"
        raise ValueError(f"the batches of network {k} have shape {tuple(rows.shape)}: {wanted}")
    return _Order(_row_numbers(rows.flatten() if batched else rows, n, k), seed, batched)


def _row_numbers(rows: torch.Tensor, n: int, k: int) -> torch.Tensor:
    if rows.dtype == torch.bool:
        if rows.shape != (n,):
            raise ValueError(f"the mask of network {k} has shape {tuple(rows.shape)}: ({n},) is needed")
        rows = rows.nonzero()[:, 0]
    if rows.dtype != torch.int64 or rows.ndim != 1 or not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= n:
        raise ValueError(f"the rows of network {k} are no non-empty list of int64 row numbers from 0 to {n - 1}")
    return rows.cpu()


def _together(networks: Networks, recipe: Recipe, plan: list[_Order], device: torch.device) -> list[list[int]]:
    """Groups of networks that run in one pass: alike in number of updates and batches, of similar size."""
    a = networks.architecture
    groups: dict[tuple[int, int, int], list[int]] = {}
    for k, order in enumerate(plan):
        n = len(order.rows)
        alike = (recipe.total_updates(n), recipe.batches_per_epoch(n), n if a.batch_statistics else 0)
        groups.setdefault(alike, []).append(k)
    chunks = []
    for members in groups.values():
        members.sort(key=lambda k: (len(plan[k].rows), k))
        largest = max(min(recipe.batch_size or len(plan[k].rows), len(plan[k].rows)) for k in members)
        chunks += [members[s] for s in slices(len(members), networks_together(a, largest, device))]
    return chunks


class _Job:
    """Training of networks that run in one pass, from the first update to the last."""

    def __init__(
        self,
        networks: Networks,
        x: torch.Tensor,
        y: torch.Tensor,
        recipe: Recipe,
        plan: list[_Order],
        observe: Observer | None,
        moments: list[int],
        compute: Compute,
        rates: Sequence[float] | None,
    ) -> None:
        self.networks, self.x, self.y, self.recipe, self.plan = networks, x, y, recipe, plan
        self.observe, self.moments, self.compute, self.rates = observe, moments, compute, rates
        self.names = networks.trainable()
        self.loss = loss_function(networks.architecture, compute)
        self.state = {name: t.clone() for name, t in networks.state.items()}
        self.averages = {kind: [torch.zeros_like(self.state[name]) for name in self.names] for kind in self._kinds()}
        self.records: dict[str, list[torch.Tensor]] = {}
        self.update, self.epoch, self.orders = 0, -1, [order.rows for order in plan]

    def _kinds(self) -> tuple[str, ...]:
        if self.recipe.optimiser == "adam":
            return ("mean", "square")
        return ("momentum",) if self.recipe.momentum else ()

    def run(self, checkpoint: Checkpoint | None, progress: Callable[[int], object] | None) -> Trained:
        saved = checkpoint.load() if checkpoint else None
        if saved is not None:
            self._restore(saved)
        else:
            self._observe()
        total = self.recipe.total_updates(len(self.plan[0].rows))
        while self.update < total:
            self._step()
            self._observe()
            if progress:
                progress(len(self.plan))
            if checkpoint and (self.update == total or checkpoint.due()):
                checkpoint.save(self._saved())
        return Trained(self._now(), {name: torch.stack(parts, 1) for name, parts in self.records.items()})

    def _now(self) -> Networks:
        return Networks(self.networks.architecture, {name: t.clone() for name, t in self.state.items()})

    def _observe(self) -> None:
        if self.observe and self.update in self.moments:
            for name, value in self.observe(self._now()).items():
                self.records.setdefault(name, []).append(value.to(self.x.device))

    def _step(self) -> None:
        size = self.recipe.batches_per_epoch(len(self.plan[0].rows))
        epoch = self.update // size
        if self.recipe.restart and self.update == epoch * size and epoch in self.recipe.milestones:
            for averages in self.averages.values():
                torch._foreach_zero_(averages)
        rate = self.recipe.rate(epoch) if self.rates is None else self.rates[self.update]
        gradients = self._gradients(*self._batch())
        self.update += 1
        self._descend([self.state[name] for name in self.names], gradients, rate)

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images (n, K * c, h, w), labels (n, K[, classes]) and loss weights (n, K) of this update; short batches are
        padded.
        """
        rows = self._rows()
        index = torch.nn.utils.rnn.pad_sequence(rows)
        weights = torch.nn.utils.rnn.pad_sequence(
            [torch.full((len(r),), 1 / len(r), dtype=torch.float64) for r in rows]
        )
        index = index.to(self.x.device, non_blocking=True)
        images = self.x[index] if not self.recipe.augment else self._augmented(rows, len(index))
        weights = weights.to(self.x.dtype).to(self.x.device, non_blocking=True)
        return images.flatten(1, 2), self.y[index], weights

    def _rows(self) -> list[torch.Tensor]:
        """The row numbers of this update's batch of every network."""
        epoch, batch = divmod(self.update, self.recipe.batches_per_epoch(len(self.plan[0].rows)))
        if self.epoch != epoch:
            self.epoch, self.orders = epoch, [o.epoch(self.recipe, epoch) for o in self.plan]
        size = self.recipe.batch_size or max(len(order) for order in self.orders)
        return [order[batch * size : (batch + 1) * size] for order in self.orders]

    def _augmented(self, rows: list[torch.Tensor], longest: int) -> torch.Tensor:
        """Each network's images under its own draw of this update, (n, K, c, h, w)."""
        apply = _augmentation(self.recipe.augment)
        images = self.x.new_zeros(longest, len(rows), *self.x.shape[1:])
        for k, (own, order) in enumerate(zip(rows, self.plan, strict=True)):
            g = generator(order.seed, "augment", self.update)
            own = own.to(self.x.device, non_blocking=True)
            images[: len(own), k] = apply(self.x[own], self.recipe.augment, g)
        return images

    def _gradients(self, x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
        """Gradients of the weighted loss; a lone network's batch is sliced so that its feature maps stay small."""
        size = len(x)
        if len(self.plan) == 1 and not self.networks.architecture.batch_statistics:
            size = images_per_pass(self.networks.architecture, 1, x.device)
        total: list[torch.Tensor] = []
        for s in slices(len(x), size):
            part = self._backward(*(padded(t[s], size if self.compute.compiled else 0) for t in (x, y, w)))
            if total:
                torch._foreach_add_(total, part)
            else:
                total = part
        return total

    def _backward(self, x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
        p: Parameters = {name: t.detach().requires_grad_(name in self.names) for name, t in self.state.items()}
        loss, updated = self.loss(p, x, y, w)
        gradients = list(torch.autograd.grad(loss, [p[name] for name in self.names]))
        self.state.update({name: t.detach() for name, t in updated.items()})
        return gradients

    def _descend(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], rate: float) -> None:
        """One update in place, the arithmetic of ``torch.optim.SGD`` and ``torch.optim.Adam``."""
        r = self.recipe
        if r.weight_decay:
            torch._foreach_add_(gradients, parameters, alpha=r.weight_decay)
        if r.optimiser == "adam":
            mean, square = self.averages["mean"], self.averages["square"]
            torch._foreach_lerp_(mean, gradients, 1 - 0.9)
            torch._foreach_mul_(square, 0.999)
            torch._foreach_addcmul_(square, gradients, gradients, 1 - 0.999)
            spread = torch._foreach_sqrt(square)
            torch._foreach_div_(spread, math.sqrt(1 - 0.999**self.update))
            torch._foreach_add_(spread, 1e-8)
            torch._foreach_addcdiv_(parameters, mean, spread, -rate / (1 - 0.9**self.update))
            return
        if r.momentum:
            momentum = self.averages["momentum"]
            torch._foreach_mul_(momentum, r.momentum)
            torch._foreach_add_(momentum, gradients)
            gradients = momentum
        torch._foreach_add_(parameters, gradients, alpha=-rate)

    def _saved(self) -> Tensors:
        saved = {"update": torch.tensor(self.update)} | {f"state/{name}": t for name, t in self.state.items()}
        for kind, averages in self.averages.items():
            saved |= {f"{kind}/{name}": t for name, t in zip(self.names, averages, strict=True)}
        return saved | {f"record/{name}": torch.stack(parts, 1) for name, parts in self.records.items()}

    def _restore(self, saved: Tensors) -> None:
        device = self.x.device
        self.update = int(saved["update"])
        self.state = {name: saved[f"state/{name}"].to(device) for name in self.state}
        for kind in self.averages:
            self.averages[kind] = [saved[f"{kind}/{name}"].to(device) for name in self.names]
        prefix = "record/"
        self.records = {
            name.removeprefix(prefix): list(t.to(device).unbind(1))
            for name, t in saved.items()
            if name.startswith(prefix)
        }
