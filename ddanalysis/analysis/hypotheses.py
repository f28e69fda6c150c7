"""Do the findings of a paper come out here? Each as a hypothesis, with its effect, interval and n (Yang et al. 2024).

The evidence are the tables that the notebooks of a profile write. An effect is a difference from what would speak for
neither side, so that the border is 0; a row with another method than the paper's is tested alike and says so, random
real images being the control: what holds for them says nothing of distillation. Intervals are of 95 % each, not
corrected for the number of rows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats

from ddanalysis import checks, intervals
from ddanalysis.analysis import hessian, mixing

KEYS = ["dataset", "method", "ipc", "network"]
COLUMNS = ["hypothesis", "source", *KEYS, "effect", "unit", "low", "high", "n", "n_of", "holds"]

PAPER = ("bptt", "dm", "dc", "dsa", "mtt")
"""The paper's methods; which gradient matching it has, dc or dsa, is not said."""
TRAJECTORY = ("bptt", "mtt", "rat")
"""Those made through trainings of networks; the last is not in the paper, and is of their kind."""
MATCHING = ("dm", "dc", "dsa")
"""Those made without; the paper's bars of the others are above the test accuracy."""
CONTROL = "random"

FADE = 0.9
"""Of the published smoothing, an update."""
LATE = 0.75
"""The last quarter of a trajectory begins after this share of its updates."""

_UNITS = {"set_seed": "sets", "network_seed": "networks", "image": "images"}


@dataclass(frozen=True)
class Finding:
    """Something the paper found: that an effect is above 0 (``sign`` 1) or below (-1), of some ``methods``.

    ``test`` makes of ``table``, which has ``columns``, and the number of classes a row a setting: ``KEYS``, effect,
    low, high, n, n_of.
    """

    hypothesis: str
    source: str
    methods: tuple[str, ...]
    sign: int
    unit: str
    table: str
    columns: tuple[str, ...]
    test: Callable[[pd.DataFrame, int], pd.DataFrame]


def table(tables: Mapping[str, pd.DataFrame], n_classes: int) -> pd.DataFrame:
    """Every finding for which ``tables`` (by file name, as :func:`read` has them) hold the evidence: ``COLUMNS``.

    One row a (hypothesis, dataset, method, ipc, network). ``source`` is the place in the paper, "control" for random
    real images, and "not claimed" for methods of which the paper does not say so. ``n`` counts ``n_of``: what varies in
    the interval, and nothing else does; the tests below say what. ``holds`` is "yes" where the interval lies on the
    paper's side of 0, "no" where on the other, else, or without an interval, "undecided". Raises ``ValueError`` for
    tables that are not known, none at all, and columns or rows that are missing.
    """
    checks.whole("n_classes", n_classes, 2)
    known = list(dict.fromkeys(finding.table for finding in FINDINGS))
    for name in tables:
        checks.one_of("table", name, known)
    if not tables:
        raise ValueError(f"there is no table to test hypotheses on: at least one of {', '.join(known)} is needed")
    for finding in FINDINGS:
        if finding.table in tables:
            _check_columns(finding.table, tables[finding.table], finding.columns)
    parts = [_tested(finding, tables[finding.table], n_classes) for finding in FINDINGS if finding.table in tables]
    parts = [part for part in parts if len(part)] or [pd.DataFrame(columns=COLUMNS)]
    return pd.concat(parts, ignore_index=True).astype({"ipc": "Int64", "n": "Int64"})


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """Those tables of ``folder`` (``outputs/<profile>/tables``) that hypotheses are tested on, by name."""
    paths = [Path(folder) / f"{name}.csv" for name in dict.fromkeys(finding.table for finding in FINDINGS)]
    return {path.stem: pd.read_csv(path) for path in paths if path.is_file()}


def _tested(finding: Finding, evidence: pd.DataFrame, n_classes: int) -> pd.DataFrame:
    found = finding.test(evidence, n_classes)
    if not len(found):
        return found
    ends = (finding.sign * found[["low", "high"]].to_numpy(dtype=float)).T
    holds = np.select([ends.min(0) > 0, ends.max(0) < 0], ["yes", "no"], "undecided")  # neither, of a NaN
    sources = [finding.source if m in finding.methods else "not claimed" for m in found["method"]]
    sources = ["control" if m == CONTROL else source for m, source in zip(found["method"], sources, strict=True)]
    return found.assign(hypothesis=finding.hypothesis, source=sources, unit=finding.unit, holds=holds)[COLUMNS]


# ----------------------------------------------------------------------------------------------------- the findings


def early_gain(gains: pd.DataFrame, n_classes: int) -> pd.DataFrame:
    """Agreement with early-stopped minus with subset-trained networks of matched accuracy, of ``agreement_gain``.

    The interval is that of :func:`ddanalysis.analysis.agreement.gain`, over the networks trained on the sets and the
    runs of both pools, and not over sets. Where one of the three is a single one it leaves that out, and none is given.
    """
    own = gains[(gains["matching"] == "nearest") & (gains["measure"] == "agreement")]
    alone = own[["n_set_networks", "n_early_runs", "n_subset_runs"]].min(axis=1) < 2
    runs = zip(own["n_early_runs"], own["n_subset_runs"], strict=True)
    return own[KEYS].assign(
        effect=own["difference"],
        low=own["low"].mask(alone),
        high=own["high"].mask(alone),
        n=own["n_set_networks"],
        n_of=[f"networks on sets, {early} early and {subset} subset runs" for early, subset in runs],
    )


def recognised_early(leads: pd.DataFrame, n_classes: int) -> pd.DataFrame:
    """The update at which a set is recognised minus that of the test images, at the level of ``recognition_lead``.

    Its interval: over networks that learn the real data, each the mean of its sets; over sets where there is one
    network.
    """
    n_of = [_UNITS[unit] for unit in leads["units"]]
    ends = {"low": -leads["high"], "high": -leads["low"]}
    return leads[KEYS].assign(effect=-leads["mean"], **ends, n=leads["n_units"], n_of=n_of)


def trace_falls(traces: pd.DataFrame, n_classes: int) -> pd.DataFrame:
    """The log of late over peak trace (:func:`trace_ratios`) of a set minus that of the real data, of ``hessian``.

    The interval is over networks in training, each the mean of its sets, or over sets where there is one network. Of
    one network and one set it is of the probes alone, ``n`` a block of images: the standard errors of the four traces
    are added, not their squares, since states and sets share probes, so that it covers at least as often as it says;
    the t distribution is that of the set's probes. That the peak of a noisy curve is too high is not in it.
    """
    ratios, states = trace_ratios(traces), ["dataset", "network", "network_seed"]
    real = ratios.loc[ratios["target"] == "real", [*states, "log_ratio", "log_ratio_se"]]
    sets = ratios[ratios["target"] != "real"].rename(columns={"target": "method"})
    both = sets.merge(real, on=states, how="left", validate="m:1", suffixes=("", "_real"), indicator=True)
    _check_partners("hessian", both, "target real", states)
    both["effect"] = both["log_ratio"] - both["log_ratio_real"]
    both["error"] = both["log_ratio_se"] + both["log_ratio_se_real"]
    found = _over_units(both, ["network_seed", "set_seed"])
    for i, own in _groups(both):
        if not np.isnan(found.loc[i, "low"]):
            continue
        probes = int(own["probes"].min())
        half = scipy.stats.t.ppf(0.975, max(probes - 1, 1)) * own["error"].mean()
        effect = found.loc[i, "effect"]
        found.loc[i, ["low", "high", "n", "n_of"]] = [effect - half, effect + half, probes, "probes, one network"]
    return found


def trace_ratios(traces: pd.DataFrame) -> pd.DataFrame:
    """How far the trace of each target has come down: dataset, target, ipc, network, network_seed, set_seed, ``late``
    (its mean in the last quarter of the trajectory), ``peak`` (of the curve smoothed as published, by ``FADE`` an
    update), ``log_ratio`` of both, ``log_ratio_se`` (of probes, at most) and ``probes``.

    A late mean below its own standard error counts as that, so that a collapse is rather understated. The ratio is NaN
    where the curve is nowhere above 0.
    """
    lines, rows = ["dataset", "target", "ipc", "network", "network_seed", "set_seed"], []
    for key, line in traces.groupby(lines, sort=False, dropna=False):
        line = line.sort_values("update")
        every = (line["update"].iloc[-1] - line["update"].iloc[0]) / max(len(line) - 1, 1)
        smooth = hessian.smoothed(line, FADE**every if every else 0.0)
        top = smooth.loc[smooth["trace"].idxmax()]
        last = line[line["update"] >= LATE * line["update"].max()]
        late, late_se = last["trace"].mean(), last["trace_se"].mean()
        counted = max(late, late_se)
        known = counted > 0 and top["trace"] > 0
        ratio = math.log(counted / top["trace"]) if known else math.nan
        error = late_se / counted + top["trace_se"] / top["trace"] if known else math.nan
        values = {"late": late, "peak": top["trace"], "log_ratio": ratio, "log_ratio_se": error}
        rows.append(dict(zip(lines, key, strict=True)) | values | {"probes": line["probes"].min()})
    return pd.DataFrame(rows)


def mixing_hurts(mixed: pd.DataFrame, n_classes: int) -> pd.DataFrame:
    """Accuracy with the fewest real images minus with none, at fixed updates, of ``mixing``.

    Pairs are networks of one set and network seed. The interval is over sets, each the mean of its networks; over
    networks where there is one set, or sets do not differ.
    """
    changes = mixing.changes(mixed[mixed["mode"] == "fixed updates"])
    fewest = changes.groupby(KEYS, dropna=False)["real_per_class"].transform("min")
    own = changes[changes["real_per_class"] == fewest].rename(columns={"change": "effect"})
    return _over_units(own, ["set_seed", "network_seed"])


def above_chance(recognised: pd.DataFrame, n_classes: int) -> pd.DataFrame:
    """The share of a set that a network of real data recognises minus 1 / classes, of ``recognition_pretrained``.

    The interval is over sets, or over networks where there is one set. Where neither varies it is Wilson's over the
    images of the sets, which are no independent sample of sets.
    """
    own = _beside_test(recognised)
    return _beyond_chance(own.assign(share=own["accuracy"]), ["set_seed", "network_seed"], n_classes, _images)


def below_test(recognised: pd.DataFrame, n_classes: int) -> pd.DataFrame:
    """The share of a set that a network of real data recognises minus its accuracy on the test images.

    The interval is that of :func:`above_chance`; over images, Newcombe's (1998, method 10) for two shares.
    """
    own = _beside_test(recognised)
    own["effect"] = own["accuracy"] - own["accuracy_test"]
    found = _over_units(own, ["set_seed", "network_seed"])
    for i, group in _groups(own):
        tested = group["accuracy_test"].mean()
        if np.isnan(found.loc[i, "low"]):
            n, m = _images(group), int(group["images_test"].iloc[0])
            ends = newcombe(group["accuracy"].mean(), n, tested, m)
            found.loc[i, ["low", "high", "n", "n_of"]] = [*ends, n, _named("image", group)]
        found.loc[i, ["low", "high"]] = found.loc[i, ["low", "high"]].clip(-tested, 1 - tested)
    return found


def own_class(top: pd.DataFrame, n_classes: int) -> pd.DataFrame:
    """Of the test images that a distilled image helps most, the share of its own class minus 1 / classes, of
    ``top_influences``.

    That is what random test images give over all images of a set with as many of each class, however many test images
    each has. The interval is over sets, or images where there is one set; Wilson's where these do not vary.
    """
    helped = top[top["direction"] == "helped"]
    own = helped["image_class"].astype(str) == helped["test_class"].astype(str)
    keys = [*KEYS, "set_seed", "image"]
    shares = helped.assign(share=own.astype(float)).groupby(keys, sort=False, dropna=False)["share"].mean()
    return _beyond_chance(shares.reset_index(), ["set_seed", "image"], n_classes, len)


# -------------------------------------------------------------------------------------------------------- intervals


def newcombe(a: float, n: int, b: float, m: int) -> tuple[float, float]:
    """The 95 % score interval of the share ``a`` of ``n`` minus the share ``b`` of ``m`` (Newcombe 1998, method 10)."""
    (a_low, a_high), (b_low, b_high) = _wilson(a, n), _wilson(b, m)
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def _wilson(share: float, n: int) -> tuple[float, float]:
    """Of a share of whole images, which a mean of others may not be."""
    return intervals.wilson(round(share * n) / n, n)


def _over_units(rows: pd.DataFrame, units: Sequence[str]) -> pd.DataFrame:
    """The mean of ``effect`` for each of ``KEYS`` and its t interval over the first of ``units`` that varies."""
    columns = [*KEYS, "effect", "low", "high", "n", "n_of"]
    if not len(rows):
        return pd.DataFrame(columns=columns)
    found = intervals.summarise(rows, KEYS, "effect", units)
    n_of = [_named(found.loc[i, "units"], group) for i, group in _groups(rows)]
    return found.assign(effect=found["mean"], n=found["n_units"], n_of=n_of)[columns]


def _beyond_chance(
    rows: pd.DataFrame, units: Sequence[str], n_classes: int, trials: Callable[[pd.DataFrame], int]
) -> pd.DataFrame:
    """The ``share`` of rows minus 1 / classes, its interval never beyond what a share can be."""
    chance = 1 / n_classes
    found = _over_units(rows.assign(effect=rows["share"] - chance), units)
    for i, group in _groups(rows):
        if np.isnan(found.loc[i, "low"]):
            ends, n = _wilson(group["share"].mean(), trials(group)), trials(group)
            found.loc[i, ["low", "high", "n", "n_of"]] = [*(end - chance for end in ends), n, _named("image", group)]
    return found.assign(low=found["low"].clip(-chance), high=found["high"].clip(upper=1 - chance))


def _groups(rows: pd.DataFrame) -> list[tuple[int, pd.DataFrame]]:
    """The place in :func:`_over_units` and the rows of every setting."""
    return list(enumerate(group for _, group in rows.groupby(KEYS, sort=False, dropna=False)))


def _named(unit: str, rows: pd.DataFrame) -> str:
    alone = unit != "set_seed" and rows["set_seed"].nunique() == 1
    return _UNITS[unit] + (", one set" if alone else "")


def _images(rows: pd.DataFrame) -> int:
    """How many images all sets have."""
    return int(rows.drop_duplicates("set_seed")["images"].sum())


def _beside_test(recognised: pd.DataFrame) -> pd.DataFrame:
    """A row a set and network, with the ``accuracy_test`` of the same network."""
    same, of_test = ["dataset", "network", "network_seed"], recognised["method"] == "real"
    tested = recognised.loc[of_test, [*same, "accuracy", "images"]]
    both = recognised[~of_test].merge(
        tested, on=same, how="left", validate="m:1", suffixes=("", "_test"), indicator=True
    )
    _check_partners("recognition_pretrained", both, "method real", same)
    return both


# ----------------------------------------------------------------------------------------------------------- checks


def _check_columns(name: str, given: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in given.columns]
    if missing:
        raise ValueError(f"table {name} has no column {', '.join(missing)}: needed are {', '.join(columns)}")


def _check_partners(name: str, both: pd.DataFrame, partner: str, by: Sequence[str]) -> None:
    alone = both[both["_merge"] == "left_only"]
    if len(alone):
        named = ", ".join(f"{key} {alone.iloc[0][key]}" for key in by)
        raise ValueError(f"table {name} has no row of {partner} for {named}: sets are compared with it")


_RECOGNISED = (*KEYS, "set_seed", "network_seed", "accuracy", "images")
_GAIN = ("matching", "measure", "n_set_networks", "n_early_runs", "n_subset_runs", "difference", "low", "high")

FINDINGS = (
    Finding(
        "agrees with early-stopped networks", "Fig. 4", PAPER, 1, "share of test images", "agreement_gain",
        (*KEYS, *_GAIN), early_gain,
    ),
    Finding(
        "recognised before the test images", "Fig. 5", PAPER, -1, "updates", "recognition_lead",
        (*KEYS, "mean", "low", "high", "units", "n_units"), recognised_early,
    ),
    Finding(
        "trace falls, that of real images stays", "section 4.3", TRAJECTORY, -1, "log ratio", "hessian",
        tuple(hessian.TRACE_COLUMNS), trace_falls,
    ),
    Finding(
        "a few real images hurt", "Fig. 3 right", PAPER, -1, "accuracy", "mixing",
        (*KEYS, "mode", "real_per_class", "set_seed", "network_seed", "accuracy"), mixing_hurts,
    ),
    Finding(
        "recognised above chance", "Fig. 2 left", PAPER, 1, "accuracy", "recognition_pretrained", _RECOGNISED,
        above_chance,
    ),
    Finding(
        "recognised below the test accuracy", "Fig. 2 left", MATCHING, -1, "accuracy", "recognition_pretrained",
        _RECOGNISED, below_test,
    ),
    Finding(
        "helps test images of its class", "Fig. 10", PAPER, 1, "share of images helped most", "top_influences",
        (*KEYS, "set_seed", "image", "image_class", "direction", "test_class"), own_class,
    ),
)  # fmt: skip
"""In the order of the rows."""
