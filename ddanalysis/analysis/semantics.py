"""What does a distilled image teach? Whether the test images it helps most are more alike than chance (Yang et al.
2024, section 5, whose code leaves this out).

The k test images of largest leave-one-out influence are compared with k test images drawn at random, from all of them
or, class by class, as many from each class as were helped: only under the second does "they are all airplanes" not
count. Alikeness in a space of descriptors has a permutation p value, the enrichment of a yes-or-no attribute an exact
one. What is enriched under every image of a set, images of random real ones too, is what networks are unsure of and
not what one image teaches: read a method beside ``random``.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import artefacts, checks, intervals
from ddanalysis.attributes import standardised
from ddanalysis.data import ImageData
from ddanalysis.distill.making import Progress
from ddanalysis.distilled import DistilledSet
from ddanalysis.report import Run
from ddanalysis.seeding import generator
from ddanalysis.store import Checkpoint, Tensors

NULLS = ("all", "class")
"""Where the random test images come from: anywhere, or the classes of the helped ones."""

COLUMNS = ["dataset", "method", "ipc", "image", "attribute", "enrichment", "p_value", "set_seed", "network",
           "image_class", "null", "k", "p_adjusted", "effect"]  # fmt: skip
ALIKE_COLUMNS = ["dataset", "method", "ipc", "image", "space", "similarity", "p_value", "set_seed", "network",
                 "image_class", "null", "k", "p_adjusted", "effect", "null_mean", "null_low", "null_high"]  # fmt: skip
ALIKE = ("similarity", "null_mean", "null_low", "null_high", "p_value")
"""What is found of each image in a space."""


def most_helped(influence: Tensor, k: int) -> Tensor:
    """The k test images (n, k) int64 that each of n images helps most, the most helped first; of equals the first.

    ``influence`` (n, N): by how much the loss of a test image rises without the image. ``ValueError`` for one that is
    not finite, and unless 2 <= k < N.
    """
    if influence.ndim != 2 or not influence.is_floating_point() or not torch.isfinite(influence).all():
        shape = tuple(influence.shape)
        raise ValueError(f"influence is {influence.dtype} of shape {shape}: finite floating-point (n, N) is needed")
    checks.whole("k", k, 2)
    if k >= influence.shape[1]:
        raise ValueError(f"k is {k} of {influence.shape[1]} test images: fewer than all are needed")
    return influence.argsort(dim=1, descending=True, stable=True)[:, :k]


# ------------------------------------------------------------------------------------------------------- the nulls


def strata(null: str, y: Tensor) -> Tensor:
    """The stratum (N,) int64 of every test image, within which a null draws: one for all, or its class ``y`` (N,)."""
    checks.one_of("null", null, NULLS)
    return torch.zeros_like(y) if null == "all" else y


def subsets(n: int, k: int, draws: int, g: torch.Generator) -> Tensor:
    """Random subsets (draws, k) int64 of n things, each as likely (Floyd's algorithm: Bentley and Floyd 1987)."""
    chosen = torch.empty(k, draws, dtype=torch.int64)
    for i, last in enumerate(range(n - k, n)):
        drawn = torch.randint(last + 1, (draws,), generator=g)
        chosen[i] = torch.where((chosen[:i] == drawn).any(0), last, drawn)
    return chosen.T


def random_groups(counts: Mapping[int, int], stratum: Tensor, draws: int, seed: int) -> Tensor:
    """Random groups of images (draws, k), ``counts[c]`` of them from each stratum c of ``stratum`` (N,), on the CPU.

    The stream is named by the counts, so that images whose helped ones lie in the same classes share their null.
    """
    g, parts, stratum = generator(seed, "semantics", sorted(counts.items())), [], stratum.cpu()
    for c, count in sorted(counts.items()):
        rows = (stratum == c).nonzero()[:, 0]
        parts.append(rows[subsets(len(rows), count, draws, g)])
    return torch.cat(parts, 1)


def _counts(stratum: Tensor, group: Tensor) -> dict[int, int]:
    """How many images of a group (k,) lie in each stratum."""
    found, counts = stratum[group].unique(return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


# -------------------------------------------------------------------------------------------------------- alikeness


def cosines(space: Tensor) -> Tensor:
    """The cosine (N, N) of every two rows of a space (N, D), its columns standardised.

    400 MB for 10,000 rows of float32, so that each of many random groups takes k^2 look-ups and not k D products.
    """
    if space.ndim != 2 or not space.is_floating_point() or not torch.isfinite(space).all():
        needed = "finite floating-point (N, D), a row a test image, is needed"
        raise ValueError(f"a space is {space.dtype} of shape {tuple(space.shape)}: {needed}")
    directions = F.normalize(standardised(space), dim=1)
    return directions @ directions.T


def similarity(cosine: Tensor, groups: Tensor) -> Tensor:
    """Mean of the ``cosine`` (N, N) over the pairs of each group (m, k)."""
    members, flat, k = groups.T.to(cosine.device), cosine.reshape(-1), groups.shape[1]
    total = torch.zeros_like(members[0], dtype=cosine.dtype)
    for i in range(1, k):  # each member with those before it
        total += flat.take(members[i] * len(cosine) + members[:i]).sum(0)
    return total / (k * (k - 1) / 2)


def alike(helped: Tensor, cosine: Tensor, stratum: Tensor, draws: int = 10_000, seed: int = 0) -> Tensors:
    """How alike the helped images (n, k) are, by the ``cosine`` (N, N) of test images, beside random groups of the same
    strata (N,): each (n,) of the type of the cosine.

    ``similarity``: mean over their pairs; of the null ``null_mean``, ``null_low`` and ``null_high`` (its central 95 %);
    ``p_value``: (1 + draws at least as alike) / (1 + draws), one-sided.
    """
    if tuple(cosine.shape) != (len(stratum), len(stratum)):
        raise ValueError(f"cosines have shape {tuple(cosine.shape)}: {(len(stratum),) * 2} is needed")
    checks.whole("draws", draws)
    observed = similarity(cosine, helped)
    nulls: dict[str, tuple[Tensor, Tensor]] = {}
    rows = []
    for own, group in zip(observed, helped.to(stratum.device), strict=True):
        counts = _counts(stratum, group)
        if str(counts) not in nulls:
            null = similarity(cosine, random_groups(counts, stratum, draws, seed))
            ends = null.quantile(torch.tensor([0.025, 0.975]).to(null))
            nulls[str(counts)] = null, torch.stack([null.mean(), *ends])
        null, about = nulls[str(counts)]
        as_alike = (null >= own - 1e-6).sum()  # the same group in another order differs by rounding
        rows.append(torch.stack([own, *about, (1 + as_alike).to(own) / (1 + draws)]))
    return dict(zip(ALIKE, torch.stack(rows, 1), strict=True))


def alikeness_table(
    found: Mapping[tuple[str, str], Tensors], one: DistilledSet, data: ImageData, network: str, k: int
) -> pd.DataFrame:
    """What :func:`alike` found for each (space, null), a row an image: ``ALIKE_COLUMNS``.

    ``effect`` is the similarity above the null's mean. ``p_adjusted`` is corrected over all images and spaces of a null
    (Benjamini and Hochberg 1995).
    """
    parts = []
    for (space, null), tensors in found.items():
        values = {name: t.cpu().numpy() for name, t in tensors.items()}
        parts.append(_images(one, data, network, k).assign(space=space, null=null, **values))
    table = pd.concat(parts, ignore_index=True)
    table["effect"] = table["similarity"] - table["null_mean"]
    return _adjusted(table)[ALIKE_COLUMNS]


# ------------------------------------------------------------------------------------------------------- enrichment


def count_tails(counts: Mapping[int, int], stratum: np.ndarray, attributes: np.ndarray) -> np.ndarray:
    """P(at least x of k random images have an attribute), (k + 1, A), for bool ``attributes`` (N, A).

    The k images are ``counts[c]`` of each stratum, without replacement: a sum of independent hypergeometric counts,
    whose probabilities are convolved.
    """
    total = np.ones((1, attributes.shape[1]))
    for c, count in counts.items():
        own = attributes[stratum == c]
        here = scipy.stats.hypergeom.pmf(np.arange(count + 1)[:, None], len(own), own.sum(0), count)
        both = np.zeros((len(total) + count, total.shape[1]))
        for x, probability in enumerate(here):
            both[x : x + len(total)] += probability * total
        total = both
    return np.minimum(total[::-1].cumsum(0)[::-1], 1.0)


def enrichment(helped: Tensor, attributes: np.ndarray, stratum: Tensor) -> dict[str, np.ndarray]:
    """How much more often the helped images (n, k) have each of A attributes (N, A) than random ones of their strata.

    Each (n, A) float64: ``enrichment``, the share among the helped over the ``expected`` one (NaN where that is 0);
    ``effect``, their difference; ``p_value``, exact and one-sided.
    """
    if attributes.dtype != bool or attributes.ndim != 2 or len(attributes) != len(stratum):
        what = f"{attributes.dtype} of shape {attributes.shape}"
        raise ValueError(f"attributes are {what}: bool ({len(stratum)}, A), a row a test image, is needed")
    rows, stratum, k = [], stratum.cpu(), helped.shape[1]
    for group in helped.cpu():
        counts = _counts(stratum, group)
        hits = attributes[group.numpy()].sum(0)
        tails = count_tails(counts, stratum.numpy(), attributes)
        expected = tails[1:].sum(0) / k  # the mean of a count is the sum of its tails
        ratio = np.divide(hits / k, expected, out=np.full(len(hits), np.nan), where=expected > 0)
        rows.append([ratio, hits / k - expected, np.take_along_axis(tails, hits[None], 0)[0], expected])
    return dict(zip(("enrichment", "effect", "p_value", "expected"), np.stack(rows, 1), strict=True))


def enrichment_table(
    influence: Tensor, attributes: pd.DataFrame, one: DistilledSet, data: ImageData, network: str, k: int = 9
) -> pd.DataFrame:
    """Enrichment of every attribute under every image of a set and both ``NULLS``: ``COLUMNS``.

    ``influence`` (n, N) of its n images on the N test images. ``attributes`` is a bool table; its index are numbers of
    test images, and where it has not all of them the others are left out, as if they were no test images.
    ``p_adjusted`` is corrected over all images and attributes of a null (Benjamini and Hochberg 1995).
    """
    y = data.test_y.cpu()
    _check_fit(influence, y, one)
    rows = torch.as_tensor(attributes.index.to_numpy().copy())
    if rows.dtype != torch.int64 or len(rows.unique()) != len(rows) or int(rows.min()) < 0 or int(rows.max()) >= len(y):
        raise ValueError(f"attributes are indexed otherwise than by numbers of {len(y)} test images, each once")
    helped, y, values = most_helped(influence.cpu()[:, rows], k), y[rows], attributes.to_numpy()
    parts = []
    for null in NULLS:
        found = enrichment(helped, values, strata(null, y))
        table = _images(one, data, network, k).merge(pd.DataFrame({"attribute": attributes.columns}), how="cross")
        parts.append(table.assign(null=null, **{name: found[name].ravel() for name in found if name != "expected"}))
    return _adjusted(pd.concat(parts, ignore_index=True))[COLUMNS]


# -------------------------------------------------------------------------------------------------- what they say


def significant_share(table: pd.DataFrame, level: float = 0.05) -> pd.DataFrame:
    """Share of images with any attribute (or, by space, any alikeness) of ``p_adjusted`` at most ``level``.

    One row a (dataset, method, ipc, network, null, k), and space if the table has one: ``mean``, ``low``, ``high``,
    ``n`` (images), ``units``, ``n_units``. The 95 % interval is a t interval over sets; where there is one set, or sets
    do not differ, Wilson's over images, which are no independent sample of sets.
    """
    checks.at_least("level", level, 0)
    by = ["dataset", "method", "ipc", "network", "null", "k", *(["space"] if "space" in table else [])]
    lowest = table.groupby([*by, "set_seed", "image"], sort=False)["p_adjusted"].min()
    images = (lowest <= level).astype(float).rename("any").reset_index()
    found = intervals.summarise(images, by, "any", ["set_seed"])
    found[["low", "high"]] = found[["low", "high"]].clip(0, 1)  # few sets may give an interval beyond what a share is
    for i, row in found[found["low"].isna()].iterrows():
        low, high = intervals.wilson(row["mean"], row["n"])
        found.loc[i, ["low", "high", "units", "n_units"]] = [low, high, "image", row["n"]]
    return found[[*by, "mean", "low", "high", "n", "units", "n_units"]]


def alikeness(
    run: Run,
    data: ImageData,
    sets: Sequence[DistilledSet],
    influences: Sequence[Tensor],
    spaces: Mapping[str, Tensor],
    network: str,
    k: int = 9,
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """:func:`alike` for every set, space (N, D) and null, kept as an artefact a set; their tables together.

    ``influences`` are those (n, N) of the sets' images on the N test images, by networks named ``network``.
    """
    if not sets or len(influences) != len(sets) or not spaces:
        found = f"{len(sets)} sets, {len(influences)} influences, {len(spaces)} spaces"
        raise ValueError(f"{found}: an influence for each set, and at least 1 set and 1 space, are needed")
    pairs = [(space, null) for space in spaces for null in NULLS]
    digests, tables = {name: artefacts.digest({"space": space}) for name, space in spaces.items()}, []
    cosine = functools.cache(lambda name: cosines(spaces[name]))  # only if there is something to be made
    for one, influence in zip(sets, influences, strict=True):
        _check_fit(influence, data.test_y, one)
        helped = most_helped(influence, k)
        arguments = {"helped": artefacts.digest({"helped": helped}), "spaces": digests, "draws": draws, "seed": seed}

        def build(checkpoint: Checkpoint | None, progress: Progress | None, helped: Tensor = helped) -> Tensors:
            found = {(s, n): alike(helped, cosine(s), strata(n, data.test_y), draws, seed) for s, n in pairs}
            return {f"{s}/{n}/{name}": t for (s, n), own in found.items() for name, t in own.items()}

        name = f"alikeness_{data.name}_ipc{one.ipc}_{artefacts.fingerprint(one)}_{network}_k{k}"
        kept = artefacts.artefact(run, "semantics", name, data, "semantics.alike", 1, arguments, build)
        own = {(s, n): {name: kept[f"{s}/{n}/{name}"] for name in ALIKE} for s, n in pairs}
        tables.append(alikeness_table(own, one, data, network, k))
    return pd.concat(tables, ignore_index=True)


# --------------------------------------------------------------------------------------------------------- the parts


def _images(one: DistilledSet, data: ImageData, network: str, k: int) -> pd.DataFrame:
    """A row an image of a set, with what its tables say of it."""
    what = {"dataset": data.name, "method": one.method, "ipc": one.ipc, "set_seed": one.seed, "network": network}
    classes = np.array(data.classes)[one.labels().cpu().numpy()]
    return pd.DataFrame(what | {"image": range(len(one)), "image_class": classes, "k": k})


def _adjusted(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``p_adjusted``, over all rows of each null."""
    adjusted = table.groupby("null")["p_value"].transform(scipy.stats.false_discovery_control)
    return table.assign(p_adjusted=adjusted)


def _check_fit(influence: Tensor, y: Tensor, one: DistilledSet) -> None:
    if tuple(influence.shape) != (len(one), len(y)):
        needed = f"({len(one)}, {len(y)}), its images and the test images, is needed"
        raise ValueError(f"the influence of {one.name} has shape {tuple(influence.shape)}: {needed}")
