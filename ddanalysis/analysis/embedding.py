"""Where do distilled images lie among real ones, in the eyes of a network trained on real data? (Yang et al. 2024,
section 3, Fig. 2 right)

A map of the features is a picture and no evidence: neighbours on it need not be neighbours, and clumps may be the
method's. :func:`separability` measures the same features.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ddanalysis import artefacts, checks
from ddanalysis.analysis.pretrained import Pretrained, fingerprint
from ddanalysis.data import ImageData
from ddanalysis.distilled import DistilledSet, fits
from ddanalysis.networks import Networks
from ddanalysis.report import Run
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.store import Checkpoint, Tensors

NEIGHBOURS, SEED = 5, 42
"""Of the map, as published; of the nearest-neighbour classifier too."""

MEASURES = ("set by test", "test by set", "distilled or real")
CLASSIFIERS = ("nearest neighbours", "linear probe")
FOLDS, DRAWS = 5, 5


def features(net: Networks, x: torch.Tensor) -> np.ndarray:
    """Penultimate features (n, f) of one network (K = 1), as scikit-learn takes them."""
    reference = next(iter(net.state.values()))
    return net.all_features(x.to(reference)).cpu().numpy()


# --------------------------------------------------------------------------------------------------------- the map


def joint_map(found: Sequence[np.ndarray], neighbours: int = NEIGHBOURS, seed: int = SEED) -> torch.Tensor:
    """One UMAP of all features (n_i, f) together, a row an image: (sum of n_i, 2) float32.

    Published: 5 neighbours, random state 42, all else as the library has it. Raises ``ValueError`` unless there are
    more images than neighbours.
    """
    import umap  # takes seconds

    points = np.concatenate(found)
    checks.whole("neighbours", neighbours, 2)
    if len(points) <= neighbours:
        raise ValueError(f"{len(points)} images cannot have {neighbours} neighbours each: more are needed")
    mapper = umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1)  # a random state allows no more
    return torch.from_numpy(np.asarray(mapper.fit_transform(points), dtype=np.float32))


def map_table(points: torch.Tensor, sets: Sequence[DistilledSet], data: ImageData, network: str) -> pd.DataFrame:
    """The points of :func:`joint_map`, test images first: dataset, network, what ("test" or a method), ipc, set_seed,
    class (a name), x, y.
    """
    parts = [pd.DataFrame({"what": "test", "ipc": None, "set_seed": None, "class": data.test_y.cpu().numpy()})]
    for one in sets:
        own = {"what": one.method, "ipc": one.ipc, "set_seed": one.seed, "class": one.labels().cpu().numpy()}
        parts.append(pd.DataFrame(own))
    table = pd.concat([part.astype({"ipc": "Int64", "set_seed": "Int64"}) for part in parts], ignore_index=True)
    table["class"] = table["class"].map(dict(enumerate(data.classes)))
    table = table.assign(dataset=data.name, network=network, x=points[:, 0].numpy(), y=points[:, 1].numpy())
    return table[["dataset", "network", "what", "ipc", "set_seed", "class", "x", "y"]]


def mapped(run: Run, data: ImageData, one: Pretrained, sets: Sequence[DistilledSet]) -> pd.DataFrame:
    """The map of the test images and all ``sets`` in the first network of a kind, kept as an artefact; the table
    ``embedding``.
    """
    for own in sets:
        fits(own, data)
    net = one.networks[0]
    arguments = {
        "network": fingerprint(net),
        "sets": [artefacts.fingerprint(own) for own in sets],
        "neighbours": NEIGHBOURS,
        "seed": SEED,
    }

    def build(_: Checkpoint | None, progress: object) -> Tensors:
        return {"points": joint_map([features(net, x) for x in (data.test_x, *(own.x for own in sets))])}

    name = f"map_{data.name}_{one.name}"
    found = artefacts.artefact(run, "embedding", name, data, "embedding.joint_map", 1, arguments, build)
    return map_table(found["points"], sets, data, one.name)


# ----------------------------------------------------------------------------------------------------- the numbers


def separability(
    net: Networks, sets: Sequence[DistilledSet], data: ImageData, seed: int = 0, neighbours: int = NEIGHBOURS
) -> torch.Tensor:
    """How well classifiers of one network's features tell things apart: (sets, measures, classifiers) float64 shares.

    * "set by test": the classes of a set's images, by a classifier that learned the test images; chance is 1 / classes;
    * "test by set": the reverse;
    * "distilled or real": which of the set's images and as many test images of each class is which, by
      cross-validation in ``FOLDS`` folds, the mean over ``DRAWS`` draws of the test images; chance is 1 / 2, exactly,
      since every fold has as many of both in each class.

    Classifiers are the ``neighbours`` nearest features (no more than a class has images to learn), and multinomial
    logistic regression on standardised features. Soft labels count as the class they give most to.
    """
    for one in sets:
        fits(one, data)
    x, y = features(net, data.test_x), data.test_y.cpu().numpy()
    learned = [classifier.fit(x, y) for classifier in _classifiers(min(neighbours, _fewest(y)))]
    rows = []
    for one in sets:
        own, labels = features(net, one.x), one.labels().cpu().numpy()
        back = [classifier.fit(own, labels) for classifier in _classifiers(min(neighbours, _fewest(labels)))]
        told = np.mean([_told(own, labels, x, y, seed, draw, neighbours) for draw in range(DRAWS)], 0)
        rows.append([[c.score(own, labels) for c in learned], [c.score(x, y) for c in back], told.tolist()])
    return torch.tensor(rows, dtype=torch.float64).reshape(len(sets), len(MEASURES), len(CLASSIFIERS))


def _fewest(y: np.ndarray) -> int:
    """The number of images of the smallest class."""
    return int(np.unique(y, return_counts=True)[1].min())


def _classifiers(neighbours: int) -> list[Any]:
    """Those of ``CLASSIFIERS``."""
    return [
        KNeighborsClassifier(neighbours),
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    ]


def _told(
    own: np.ndarray, labels: np.ndarray, x: np.ndarray, y: np.ndarray, seed: int, draw: int, neighbours: int
) -> list[float]:
    """The cross-validated accuracy of each classifier on equally many distilled and real images of each class.

    Images go into folds in pairs of one class, a distilled and a real one: else a class of which more distilled images
    are learned than real ones is one of which more real ones are asked for, and chance lies far below 1 / 2.
    """
    theirs, ours = _paired(labels, y, generator(seed, "distilled or real", draw))
    n = len(ours)
    if n < 2:
        raise ValueError(f"{n} images of the set share a class with the test images: 2 are needed to tell them apart")
    folds = KFold(min(FOLDS, n), shuffle=True, random_state=stream_seed(seed, "folds", draw) % 2**32)
    both_kinds = [tuple(np.concatenate([rows, rows + n]) for rows in fold) for fold in folds.split(np.arange(n))]
    points, real = np.concatenate([own[ours], x[theirs]]), np.repeat([0, 1], n)
    learned = n - -(-n // folds.n_splits)  # the fewest of either kind outside a fold
    found = _classifiers(min(neighbours, learned))
    return [float(cross_val_score(classifier, points, real, cv=both_kinds).mean()) for classifier in found]


def _paired(labels: np.ndarray, y: np.ndarray, g: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ``y`` and of ``labels``, equally many of each class: all of the side that has fewer."""
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for c in np.unique(labels):
        rows = [np.flatnonzero(y == c), np.flatnonzero(labels == c)]
        for side, of_class in zip(sides, rows, strict=True):
            side.append(of_class[torch.randperm(len(of_class), generator=g)[: min(map(len, rows))].numpy()])
    return np.concatenate(sides[0]), np.concatenate(sides[1])


def separability_table(
    found: torch.Tensor, sets: Sequence[DistilledSet], data: ImageData, network: str, network_seeds: Sequence[int]
) -> pd.DataFrame:
    """What :func:`separability` found for each network, (K, sets, measures, classifiers), a row a number.

    Columns dataset, method, ipc, network, set_seed, network_seed, measure, classifier, accuracy, chance.
    """
    what = [{"method": one.method, "ipc": one.ipc, "set_seed": one.seed} for one in sets]
    names = ["network_seed", "column", "measure", "classifier"]
    index = pd.MultiIndex.from_product([network_seeds, range(len(sets)), MEASURES, CLASSIFIERS], names=names)
    table = pd.DataFrame({"accuracy": found.flatten().numpy()}, index=index).reset_index()
    table = table.join(pd.DataFrame(what), on="column").assign(dataset=data.name, network=network)
    table["chance"] = np.where(table["measure"] == MEASURES[2], 1 / 2, 1 / data.n_classes)
    keys = ["dataset", "method", "ipc", "network", "set_seed", "network_seed"]
    return table[[*keys, "measure", "classifier", "accuracy", "chance"]]


def separated(
    run: Run, data: ImageData, nets: Sequence[Pretrained], sets: Sequence[DistilledSet], seed: int = 0
) -> pd.DataFrame:
    """:func:`separability` of every network, kept as artefacts; the table ``separability``.

    Its intervals over networks: ``intervals.summarise(table, [..., "measure", "classifier"], "accuracy",
    ["network_seed"])``.
    """
    tables = []
    for one in nets:
        arguments = {
            "networks": fingerprint(one.networks),
            "sets": [artefacts.fingerprint(own) for own in sets],
            "neighbours": NEIGHBOURS,
            "folds": FOLDS,
            "draws": DRAWS,
            "seed": seed,
        }

        def build(_: Checkpoint | None, progress: object, one: Pretrained = one) -> Tensors:
            return {"accuracy": torch.stack([separability(net, sets, data, seed) for net in one.networks])}

        name = f"separability_{data.name}_{one.name}"
        found = artefacts.artefact(run, "embedding", name, data, "embedding.separability", 1, arguments, build)
        tables.append(separability_table(found["accuracy"], sets, data, one.name, one.seeds))
    return pd.concat(tables, ignore_index=True)
