"""Planted structure is found, none is not: p values against closed forms, enumeration and uniformity."""

import dataclasses
import io
from itertools import combinations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from test_distill import toy_data

from ddanalysis import intervals
from ddanalysis.analysis import semantics
from ddanalysis.analysis.semantics import (
    alike,
    cosines,
    count_tails,
    enrichment,
    enrichment_table,
    most_helped,
    random_groups,
    significant_share,
    similarity,
    strata,
    subsets,
)
from ddanalysis.distilled import DistilledSet
from ddanalysis.figures.semantics import alikeness_points, enrichment_map
from ddanalysis.report import Run

TOY = toy_data(per_class=20)
DATA = dataclasses.replace(TOY, test_x=TOY.train_x, test_y=TOY.train_y)
N = len(DATA.test_y)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def a_set(method="dm", seed=0, ipc=2):
    y = torch.arange(3).repeat_interleave(ipc)
    x = torch.randn(len(y), 1, 8, 8, generator=generator(seed))
    return DistilledSet(x, y, 3, DATA.mean, DATA.std, method, DATA.name, ipc, seed=seed)


def helping(groups, n=N):
    """Influence (m, n) that is largest on the images of each group."""
    influence = torch.rand(len(groups), n, generator=generator())
    for row, group in zip(influence, groups, strict=True):
        row[torch.as_tensor(group)] += 2
    return influence


# -------------------------------------------------------------------------------------------------- what is drawn


def test_most_helped_by_hand():
    influence = torch.tensor([[0.1, -0.5, 0.3, 0.3, 0.2], [0.0, 0.0, 0.0, 0.0, 1.0]])
    assert most_helped(influence, 3).tolist() == [[2, 3, 4], [4, 0, 1]]  # the first of equals


def test_subsets_are_equally_likely():
    drawn = subsets(5, 3, 20_000, generator())
    assert all(len(set(row)) == 3 for row in drawn[:500].tolist()) and int(drawn.max()) == 4
    counts = pd.Series([tuple(sorted(row)) for row in drawn.tolist()]).value_counts()
    assert len(counts) == 10 and scipy.stats.chisquare(counts).pvalue > 1e-3
    assert subsets(4, 4, 3, generator()).sort(1).values.tolist() == [[0, 1, 2, 3]] * 3


def test_the_null_of_a_class_stays_in_it():
    y = torch.arange(60) % 4
    groups = random_groups({0: 2, 3: 5}, strata("class", y), 300, 0)
    assert groups.shape == (300, 7)
    assert ((y[groups] == 0).sum(1) == 2).all() and ((y[groups] == 3).sum(1) == 5).all()
    assert all(len(set(row)) == 7 for row in groups.tolist()) and len(groups.unique()) == 30  # all of both classes
    anywhere = random_groups({0: 7}, strata("all", y), 300, 0)
    assert len(anywhere.unique()) == 60 and set(y[anywhere].unique().tolist()) == {0, 1, 2, 3}
    assert torch.equal(groups, random_groups({3: 5, 0: 2}, y, 300, 0)) and not torch.equal(
        groups, random_groups({0: 2, 3: 5}, y, 300, 1)
    )


# ------------------------------------------------------------------------------------------------------ alikeness


def test_similarity_is_the_mean_cosine_of_pairs():
    space = torch.randn(20, 6, generator=generator(), dtype=torch.float64)
    groups, scaled = subsets(20, 5, 40, generator(1)), (space - space.mean(0)) / space.std(0, correction=0)
    found = similarity(cosines(7 * space + 3), groups)
    expected = [
        np.mean([float(F.cosine_similarity(scaled[a], scaled[b], 0)) for a, b in combinations(g, 2)])
        for g in groups.tolist()
    ]
    assert np.allclose(found, expected, atol=1e-12) and found.dtype == torch.float64
    assert cosines(space.float()).dtype == torch.float32


def test_alike_against_every_possible_group():
    space = torch.randn(9, 3, generator=generator(), dtype=torch.float64)
    y = torch.tensor([0] * 5 + [1] * 4)
    helped, draws = torch.tensor([[0, 1, 5], [4, 2, 8]]), 20_000
    cosine = cosines(space)
    for null in semantics.NULLS:
        every = [g for g in combinations(range(9), 3) if null == "all" or sum(i < 5 for i in g) == 2]
        values = similarity(cosine, torch.tensor(every))
        found = alike(helped, cosine, strata(null, y), draws)
        own = similarity(cosine, helped)
        exact = (values >= own[:, None] - 1e-9).double().mean(1)
        assert torch.allclose(found["similarity"], own)
        assert torch.allclose(found["p_value"], exact, atol=4 * 0.5 / draws**0.5)
        assert torch.allclose(found["null_mean"], values.mean().expand(2), atol=0.02)
        assert (found["null_low"] >= values.min() - 1e-9).all() and (found["null_high"] <= values.max() + 1e-9).all()
        assert (found["null_low"] < found["null_mean"]).all() and (found["null_mean"] < found["null_high"]).all()


@pytest.mark.parametrize("null", semantics.NULLS)
def test_p_values_are_uniform_where_nothing_is_planted(null):
    y = torch.arange(120) % 3
    classes = F.one_hot(y).double() @ torch.randn(3, 8, generator=generator(5), dtype=torch.float64)
    pulls = []
    for seed in range(60):  # each seed has its own space, null and groups
        space = classes * 3 + torch.randn(120, 8, generator=generator(seed), dtype=torch.float64)
        counts = {0: 6} if null == "all" else {0: 4, 1: 2}
        helped = random_groups(counts, strata(null, y), 5, 1000 + seed)
        pulls.append(alike(helped, cosines(space), strata(null, y), 499, seed)["p_value"])
    p = torch.cat(pulls)
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01 and float(p.min()) >= 1 / 500


def test_planted_likeness_is_found_and_that_of_a_class_does_not_count():
    y = torch.arange(300) % 3
    g = generator(2)
    classes = F.one_hot(y).double() @ torch.randn(3, 6, generator=g, dtype=torch.float64)
    space = 2 * classes + torch.randn(300, 6, generator=g, dtype=torch.float64)
    plain = random_groups({0: 8}, y, 12, 3)  # all of class 0, and in it any
    space[plain[0]] = space[plain[0][0]] + 0.3 * torch.randn(8, 6, generator=g, dtype=torch.float64)
    found = {null: alike(plain, cosines(space), strata(null, y), 999)["p_value"] for null in semantics.NULLS}
    assert found["all"].max() < 0.05  # which a class alone explains
    assert found["class"][0] == 1 / 1000 and found["class"][1:].median() > 0.1 and found["class"][1:].min() > 1 / 1000


# ----------------------------------------------------------------------------------------------------- enrichment


def test_count_tails_are_hypergeometric():
    g = np.random.default_rng(0)
    attributes = g.random((50, 3)) < [0.2, 0.5, 0.9]
    tails = count_tails({0: 7}, np.zeros(50, dtype=int), attributes)
    for a, have in enumerate(attributes.sum(0)):
        assert np.allclose(tails[:, a], scipy.stats.hypergeom.sf(np.arange(8) - 1, 50, have, 7), atol=1e-12)
        table = [[3, 4], [have - 3, 50 - have - 4]]
        fisher = scipy.stats.fisher_exact(table, alternative="greater").pvalue
        assert tails[3, a] == pytest.approx(fisher)


def test_count_tails_against_enumeration_and_draws():
    stratum, g = torch.tensor([0] * 5 + [1] * 4), np.random.default_rng(1)
    attributes = g.random((9, 2)) < 0.5
    counts = {0: 2, 1: 2}
    groups = np.array([a + b for a in combinations(range(5), 2) for b in combinations(range(5, 9), 2)])
    hits = attributes[groups].sum(1)
    tails = count_tails(counts, stratum.numpy(), attributes)
    assert np.allclose(tails, [(hits >= x).mean(0) for x in range(5)], atol=1e-12)
    drawn = attributes[random_groups(counts, stratum, 20_000, 0).numpy()].sum(1)
    assert np.allclose(tails, [(drawn >= x).mean(0) for x in range(5)], atol=0.015)


def test_exact_p_values_reject_no_more_than_they_say():
    y, g = torch.arange(90) % 3, np.random.default_rng(0)
    attributes = g.random((90, 400)) < g.uniform(0.1, 0.9, 400)
    p = enrichment(random_groups({0: 3, 2: 3}, y, 5, 4), attributes, y)["p_value"]
    assert p.min() > 0 and p.max() <= 1
    for level in (0.01, 0.05, 0.2, 0.5):
        assert (p <= level).mean() < level + 3 * np.sqrt(level / p.size)
    assert (p <= 0.5).mean() > 0.2  # and is no trivial test


def test_enrichment_by_hand():
    y = torch.tensor([0] * 10 + [1] * 10)
    attributes = np.zeros((20, 3), dtype=bool)
    attributes[:5, 0] = True  # half of class 0
    attributes[:10, 1] = True  # class 0
    helped = torch.tensor([[0, 1, 2, 3]])
    anywhere, within = (enrichment(helped, attributes, strata(null, y)) for null in semantics.NULLS)
    assert np.allclose(anywhere["enrichment"][0, :2], [4, 2]) and np.allclose(within["enrichment"][0, :2], [2, 1])
    assert np.isnan(within["enrichment"][0, 2]) and within["p_value"][0, 2] == 1  # which no image has
    assert within["p_value"][0, 0] == pytest.approx(5 * 4 * 3 * 2 / (10 * 9 * 8 * 7))
    assert within["p_value"][0, 1] == 1 and anywhere["p_value"][0, 1] == pytest.approx(
        10 * 9 * 8 * 7 / (20 * 19 * 18 * 17)
    )
    assert np.allclose(within["effect"][0], [0.5, 0, 0]) and np.allclose(within["expected"][0], [0.5, 1, 0])


def benjamini_hochberg(p):
    """Step up, plainly."""
    order, m, lowest = np.argsort(p), len(p), 1.0
    adjusted = np.empty(m)
    for rank in range(m, 0, -1):
        lowest = min(lowest, p[order[rank - 1]] * m / rank)
        adjusted[order[rank - 1]] = lowest
    return adjusted


def attributes_table(seed=0, names=("bright", "round", "left")):
    return pd.DataFrame(np.random.default_rng(seed).random((N, len(names))) < 0.4, columns=list(names))


def test_enrichment_table():
    attributes, one = attributes_table(), a_set()
    own = np.flatnonzero(attributes["round"])[:6]
    influence = helping([own, *np.random.default_rng(3).choice(N, (5, 6))])
    table = enrichment_table(influence, attributes, one, DATA, "ConvNet", k=6)
    assert list(table.columns) == semantics.COLUMNS and len(table) == 2 * 6 * 3
    assert list(table.columns[:7]) == ["dataset", "method", "ipc", "image", "attribute", "enrichment", "p_value"]
    assert not table.duplicated(["image", "attribute", "null"]).any()
    first = table[(table["image"] == 0) & (table["null"] == "all")].set_index("attribute")
    have = attributes["round"].sum()
    assert first.loc["round", "p_value"] == pytest.approx(scipy.stats.hypergeom.sf(5, N, have, 6))
    assert first.loc["round", "enrichment"] == pytest.approx(N / have)
    assert first["p_value"].idxmin() == "round" and set(table["image_class"]) == set(DATA.classes)
    for _, part in table.groupby("null"):
        assert np.allclose(part["p_adjusted"], benjamini_hochberg(part["p_value"].to_numpy()))
        assert np.allclose(part["p_adjusted"], scipy.stats.false_discovery_control(part["p_value"]))


def test_attributes_of_some_test_images_restrict_the_study_to_them():
    attributes, one = attributes_table(), a_set()
    rows = np.random.default_rng(0).permutation(N)[: N // 2]
    influence = torch.randn(6, N, generator=generator())
    part = enrichment_table(influence, attributes.iloc[rows], one, DATA, "ConvNet", k=4)
    rest = np.setdiff1d(np.arange(N), rows)
    hidden = influence.clone()
    hidden[:, torch.from_numpy(rest)] = -9  # never among the most helped
    helped = most_helped(hidden, 4)
    places = torch.from_numpy(np.argsort(rows))[
        torch.searchsorted(torch.from_numpy(np.sort(rows)), helped.contiguous())
    ]
    found = enrichment(places, attributes.to_numpy()[rows], DATA.test_y[rows])
    assert np.allclose(part.loc[part["null"] == "class", "p_value"], found["p_value"].ravel())
    shuffled = enrichment_table(influence, attributes.sample(frac=1, random_state=1), one, DATA, "ConvNet", k=4)
    whole = enrichment_table(influence, attributes, one, DATA, "ConvNet", k=4)
    assert np.allclose(shuffled["p_value"], whole["p_value"])  # the order of the rows means nothing


# ------------------------------------------------------------------------------------------------------- summaries


def adjusted(shares, images=10):
    """A table whose sets have these shares of significant images."""
    rows = [
        (
            "toy",
            "dm",
            2,
            "ConvNet",
            "class",
            9,
            s,
            i,
            attribute,
            0.01 if i < share * images and attribute == "a" else 0.5,
        )
        for s, share in enumerate(shares)
        for i in range(images)
        for attribute in "ab"
    ]
    columns = ["dataset", "method", "ipc", "network", "null", "k", "set_seed", "image", "attribute", "p_adjusted"]
    return pd.DataFrame(rows, columns=columns)


def test_significant_share():
    several = significant_share(adjusted([0.2, 0.6, 0.4])).iloc[0]
    middle, half = intervals.mean_and_half_width(np.array([[0.2, 0.6, 0.4]]))
    assert several["mean"] == pytest.approx(0.4) and several["high"] == pytest.approx(middle[0] + half[0])
    assert (several["units"], several["n_units"], several["n"]) == ("set_seed", 3, 30)
    assert significant_share(adjusted([0.1, 0.5]))[["low", "high"]].to_numpy().tolist() == [[0, 1]]  # not beyond
    alone = significant_share(adjusted([0.3])).iloc[0]
    z = scipy.stats.norm.ppf(0.975)
    centre, width = (3 + z**2 / 2) / (10 + z**2), z / (10 + z**2) * np.sqrt(3 * 7 / 10 + z**2 / 4)
    assert (alone["low"], alone["high"]) == pytest.approx((centre - width, centre + width))
    assert (alone["units"], alone["n_units"]) == ("image", 10)
    assert significant_share(adjusted([1.0, 1.0])).iloc[0]["high"] == 1  # sets that do not differ
    assert significant_share(adjusted([0.3]), level=0.001)["mean"].item() == 0
    spaces = pd.concat([adjusted([0.3]).assign(space="a"), adjusted([0.5]).assign(space="b")])
    assert significant_share(spaces)["mean"].tolist() == [0.3, 0.5]


@pytest.fixture
def run(tmp_path):
    return Run("08_semantics", profile="smoke", parameters={}, device="cpu", outputs=str(tmp_path))


def alikeness(run, seed=0, draws=99, k=5):
    sets = [a_set(), a_set("random", seed=1)]
    influences = [torch.randn(6, N, generator=generator(i)) for i in range(2)]
    spaces = {"pixels": DATA.test_x.flatten(1), "features": torch.randn(N, 4, generator=generator(9))}
    return semantics.alikeness(run, DATA, sets, influences, spaces, "ConvNet", k, draws, seed)


def test_alikeness_is_kept(run, monkeypatch):
    made = alikeness(run)
    assert list(made.columns) == semantics.ALIKE_COLUMNS and len(made) == 2 * 6 * 2 * 2
    assert (made["effect"] == made["similarity"] - made["null_mean"]).all() and (made["p_value"] >= 1 / 100).all()
    part = made[(made["method"] == "dm") & (made["null"] == "class")]
    assert np.allclose(part["p_adjusted"], benjamini_hochberg(part["p_value"].to_numpy()))

    def never(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(semantics, "alike", never)
    pd.testing.assert_frame_equal(alikeness(run), made)
    for change in ({"seed": 1}, {"draws": 98}, {"k": 4}):
        with pytest.raises(AssertionError, match="made again"):
            alikeness(run, **change)


# --------------------------------------------------------------------------------------------------------- figures


def test_figures(run):
    table = enrichment_table(torch.randn(6, N, generator=generator()), attributes_table(), a_set(), DATA, "ConvNet", 4)
    table.loc[0, ["enrichment", "p_adjusted"]] = [np.nan, 1.0]
    table.loc[table["null"] == "class", "p_adjusted"] = 1.0
    table.loc[(table["null"] == "class") & (table["image"] == 4) & (table["attribute"] == "left"), "p_adjusted"] = 0.01
    figure = enrichment_map(pd.concat([table, table.assign(method="bptt"), table.assign(set_seed=1)]))
    maps = [ax for ax in figure.axes if ax.images]
    assert len(maps) == 2 and maps[0].images[0].get_array().shape == (3, 6)
    assert maps[0].lines[0].get_xydata().tolist() == [[4, 2]]
    points = alikeness_points(alikeness(run))
    assert len(points.axes) == 4 and len(points.axes[0].collections) == 3
    for one in (figure, points):
        one.savefig(io.BytesIO(), format="png", dpi=40)
    plt.close("all")
    with pytest.raises(ValueError, match="no rows of the null 'none'"):
        enrichment_map(table, null="none")
    with pytest.raises(ValueError, match="has no column"):
        alikeness_points(table)


# -------------------------------------------------------------------------------------------------------- refusals

Y = DATA.test_y
NAMED = attributes_table()
INFLUENCE = torch.randn(6, N, generator=generator())
BAD = [
    (lambda: most_helped(INFLUENCE[0], 3), "influence is .* finite floating-point"),
    (lambda: most_helped(INFLUENCE.round().long(), 3), "influence is torch.int64"),
    (lambda: most_helped(torch.full((2, 9), torch.nan), 3), "finite"),
    (lambda: most_helped(INFLUENCE, 1), "k is 1"),
    (lambda: most_helped(INFLUENCE[:, :4], 4), "k is 4 of 4 test images"),
    (lambda: strata("none", Y), "unknown null 'none'"),
    (lambda: cosines(torch.ones(N)), "a space is .*shape"),
    (lambda: cosines(torch.full((N, 2), torch.inf)), "a space is .* finite"),
    (lambda: alike(most_helped(INFLUENCE, 3), torch.ones(N, 2), Y), "cosines have shape"),
    (lambda: alike(most_helped(INFLUENCE, 3), torch.ones(N, N), Y, draws=0), "draws is 0"),
    (lambda: enrichment(most_helped(INFLUENCE, 3), np.ones((N, 2)), Y), "attributes are float64"),
    (lambda: enrichment_table(INFLUENCE[:5], NAMED, a_set(), DATA, "ConvNet"), "influence of dm_toy_ipc2_s0 has shape"),
    (lambda: enrichment_table(INFLUENCE, NAMED.set_index("left"), a_set(), DATA, "ConvNet"), "attributes are indexed"),
    (lambda: enrichment_table(INFLUENCE, NAMED.set_index(NAMED.index + 1), a_set(), DATA, "ConvNet"), "are indexed"),
    (lambda: semantics.alikeness(None, DATA, [a_set()], [], {"a": INFLUENCE.T}, "ConvNet"), "1 sets, 0 influences"),
    (lambda: significant_share(adjusted([0.3]), level=-1), "level is -1"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
