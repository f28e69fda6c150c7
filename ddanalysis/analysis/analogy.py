"""Distillation by nearest neighbours on Iris: few prototypes in place of 150 flowers (Sucholutsky & Schonlau 2019).

A prototype is a point with a label over the 3 classes, hard or soft. A point belongs to a class by the labels of all
prototypes, weighted by 1 / distance: the vote that distance-weighted k nearest neighbours give when each prototype
stands for many copies whose classes have the shares of its label. The published animations move three prototypes along
given paths; here they learn, by Adam on the cross-entropy of the 150 flowers.
"""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_iris
from torch import Tensor

from ddanalysis import checks
from ddanalysis.seeding import generator

MODES = ("selection", "location", "label", "location_and_label", "2points", "true")
"""What the frames of an analogy differ in.

* selection: three flowers, one a class, other ones in each frame; hard labels.
* location, label, location_and_label: what of those of the first frame has learned, more in each frame.
* 2points: two prototypes, the means of the outer classes, which give ever more of their labels to the third class: it
  comes to lie between them, so that two points tell three classes apart.
* true: all flowers, more neighbours in each frame.
"""
STEPS, RATE = 300, 0.05
_TINY = 1e-18

Prototypes = tuple[Tensor, Tensor]
"""Locations (p, 2) and labels (p, 3)."""


@dataclass(frozen=True)
class Analogy:
    """The F frames of one mode, float64.

    ``locations`` (F, p, 2) and ``labels`` (F, p, 3) are the prototypes; ``across`` (side,) and ``up`` (side,) the
    values of both features on a grid, and ``regions`` (F, side, side, 3) the classes' probabilities there, rows by
    ``up``. ``accuracy`` (F,) is the share of flowers in the region of their class; ``flowers`` (150, 2) and
    ``classes`` (150,) are those.
    """

    mode: str
    locations: Tensor
    labels: Tensor
    across: Tensor
    up: Tensor
    regions: Tensor
    accuracy: Tensor
    flowers: Tensor
    classes: Tensor
    notes: tuple[str, ...]  # what a frame is, in words


def iris() -> tuple[Tensor, Tensor]:
    """Sepal length and width (cm) of the 150 flowers bundled with scikit-learn, (150, 2) float64, and their classes."""
    x, y = load_iris(return_X_y=True)
    return torch.from_numpy(x[:, :2]).double(), torch.from_numpy(y).long()


def probabilities(points: Tensor, locations: Tensor, labels: Tensor, neighbours: int | None = None) -> Tensor:
    """Of each class at points (n, 2), rows that sum to 1: (n, C).

    Labels (p, C), whose rows sum to 1, of the prototypes at ``locations`` (p, 2) weighted by 1 / distance; of the
    nearest ``neighbours`` only, if given. At a prototype its label is all that counts.
    """
    if locations.ndim != 2 or points.ndim != 2 or points.shape[1] != locations.shape[1] or not len(locations):
        shapes = f"{tuple(points.shape)} and {tuple(locations.shape)}"
        raise ValueError(f"points and prototypes are of shape {shapes}: (n, d) and (p, d), p >= 1, are needed")
    checks.labels("prototypes", labels, len(locations), labels.shape[-1])
    if not torch.allclose(labels.sum(1), torch.ones(len(labels)).to(labels)) or (labels < 0).any():
        raise ValueError("labels of prototypes are no shares: each row must be at least 0 and sum to 1")
    weights = (((points[:, None] - locations) ** 2).sum(-1) + _TINY).rsqrt()
    if neighbours is not None:
        checks.whole("neighbours", neighbours)
        if neighbours > len(locations):
            raise ValueError(f"{neighbours} neighbours of {len(locations)} prototypes: at most all are allowed")
        near = weights.topk(neighbours, dim=1).indices
        weights = torch.zeros_like(weights).scatter(1, near, weights.gather(1, near))
    return weights / weights.sum(1, keepdim=True) @ labels


def analogy(mode: str, frames: int = 4, side: int = 80, seed: int = 0) -> Analogy:
    """The frames of one of ``MODES``, with regions on a grid of ``side`` x ``side`` points."""
    checks.one_of("mode", mode, MODES)
    checks.whole("frames", frames)
    checks.whole("side", side, 2)
    x, y = iris()
    prototypes, neighbours, notes = _frames(mode, frames, seed, x, y)
    low, high = x.amin(0) - 0.4, x.amax(0) + 0.4
    across, up = (torch.linspace(float(a), float(b), side, dtype=x.dtype) for a, b in zip(low, high, strict=True))
    grid = torch.cartesian_prod(up, across).flip(1)
    regions, accuracy = [], []
    for (locations, labels), k in zip(prototypes, neighbours, strict=True):
        regions.append(probabilities(grid, locations, labels, k).view(side, side, -1))
        accuracy.append((probabilities(x, locations, labels, k).argmax(1) == y).double().mean())
    locations, labels = (torch.stack([one[i] for one in prototypes]) for i in (0, 1))
    return Analogy(mode, locations, labels, across, up, torch.stack(regions), torch.stack(accuracy), x, y, notes)


def _frames(
    mode: str, frames: int, seed: int, x: Tensor, y: Tensor
) -> tuple[list[Prototypes], list[int | None], tuple[str, ...]]:
    """The prototypes of every frame, the neighbours that vote in it (None: all), and what it is."""
    hard = torch.eye(3, dtype=x.dtype)
    if mode == "selection":
        chosen = [(_one_a_class(x, y, seed, i), hard) for i in range(frames)]
        return chosen, [None] * frames, tuple(f"choice {i + 1}" for i in range(frames))
    if mode == "true":
        counts = [round(len(x) ** (0.8 * i / max(frames - 1, 1))) for i in range(frames)]
        names = tuple(f"{k} neighbour{'s' * (k > 1)}" for k in counts)
        return [(x, hard[y])] * frames, list(counts), names
    if mode == "2points":
        ends = torch.stack([x[y == c].mean(0) for c in (0, 2)])
        shares = [0.4 * (1 - (1 - i / max(frames - 1, 1)) ** 2) for i in range(frames)]
        soft = [torch.tensor([[1 - s, s, 0], [0, s, 1 - s]], dtype=x.dtype) for s in shares]
        return [(ends, labels) for labels in soft], [None] * frames, tuple(f"{s:.0%} to the third" for s in shares)
    moments = [round(STEPS * (i / max(frames - 1, 1)) ** 3) for i in range(frames)]  # most happens early
    learned = _learn(_one_a_class(x, y, seed, 0), hard, mode != "label", mode != "location", moments, x, y)
    return learned, [None] * frames, tuple(f"step {moment}" for moment in moments)


def _one_a_class(x: Tensor, y: Tensor, seed: int, choice: int) -> Tensor:
    """One flower of each class, drawn again as long as two are so near that one would hide the other."""
    draw = generator(seed, "prototypes", choice)
    while True:
        rows = [(y == c).nonzero()[:, 0] for c in range(3)]
        chosen = torch.stack([x[own[torch.randint(len(own), (1,), generator=draw)]][0] for own in rows])
        if torch.pdist(chosen).min() > 0.6:
            return chosen


def _learn(
    locations: Tensor, labels: Tensor, move: bool, relabel: bool, moments: list[int], x: Tensor, y: Tensor
) -> list[Prototypes]:
    """The prototypes after each of ``moments`` steps of Adam; labels are the softmax of what learns.

    A label that learns starts with .95 of what it was, as 0 would have no gradient.
    """
    soft = labels * 0.925 + 0.025 if relabel else labels
    free = {"locations": locations.clone(), "logits": soft.log()}
    learning = [free[name].requires_grad_() for name, wanted in (("locations", move), ("logits", relabel)) if wanted]
    adam, found = torch.optim.Adam(learning, lr=RATE), {}
    for i in range(max(moments) + 1):
        own = free["logits"].softmax(1)
        found[i] = (free["locations"].detach().clone(), own.detach())
        adam.zero_grad()
        (-probabilities(x, free["locations"], own)[torch.arange(len(y)), y].clamp_min(1e-9).log().mean()).backward()
        adam.step()
    return [found[moment] for moment in moments]
