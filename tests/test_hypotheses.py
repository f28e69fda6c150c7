"""Findings as hypotheses: effects and intervals of made-up tables whose truth is known, and the figure of them."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from matplotlib.colors import to_hex
from test_figures import drawn

from ddanalysis import intervals
from ddanalysis.analysis import agreement, hypotheses, mixing, recognition
from ddanalysis.analysis.hypotheses import COLUMNS, FINDINGS, KEYS, newcombe, read, table, trace_ratios
from ddanalysis.figures.hypotheses import SHADE, forest
from ddanalysis.figures.style import METHOD_COLOURS

SETTING = {"dataset": "toy", "ipc": 10, "network": "net"}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def only(found, **values):
    """The one row with these values."""
    rows = found[np.logical_and.reduce([found[name] == value for name, value in values.items()])]
    assert len(rows) == 1
    return rows.iloc[0]


# --------------------------------------------------------------------------------------------------- made-up tables


def gains(methods=("dm", "herding", "random"), early=10, subset=20, networks=6):
    rows = []
    for method in methods:
        for measure in ("agreement", "kappa"):
            for matching in ("nearest", "published"):
                wanted = measure == "agreement" and matching == "nearest"
                value = {"dm": 0.05, "random": 0.0}.get(method, -0.05) if wanted else 9.0
                ends = {"difference": value, "low": value - 0.01, "high": value + 0.01}
                counts = {"n_set_networks": networks, "n_early_runs": early, "n_subset_runs": subset}
                rows.append(SETTING | {"method": method, "measure": measure, "matching": matching} | ends | counts)
    return pd.DataFrame(rows)


def leads():
    first = [
        SETTING | {"method": m, "set_seed": s, "network_seed": k, "level": 0.5, "lead": value + s}
        for m, values in {"mtt": (5, 7, 6), "random": (1, -2, 0), "dm": (-4, -5, -6)}.items()
        for k, value in enumerate(values)
        for s in (0, 1)
    ]
    return intervals.summarise(pd.DataFrame(first), [*KEYS, "level"], "lead", ["network_seed", "set_seed"])


def traces(curves, every=1, se=0.0, probes=16, noise=None):
    """``curves`` (target, network seed, set seed) -> values, one a state; ``noise`` likewise."""
    rows = []
    for (target, network_seed, set_seed), values in curves.items():
        real = target == "real"
        for t, value in enumerate(values):
            what = {"dataset": "toy", "target": target, "ipc": None if real else 10, "network": "net"}
            what |= {"network_seed": network_seed, "set_seed": None if real else set_seed, "update": t * every}
            error = noise[target, t] if noise else 0.0
            rows.append(what | {"trace": value + error, "trace_se": se, "probes": 2 if real else probes, "images": 100})
    return pd.DataFrame(rows)


def mixed(change, sets=4, networks=3, between=0.0, within=0.0, methods=("dm",), mode="fixed updates", seed=0):
    """Accuracies with 0, 2 and 50 real images; 2 change those of a set by ``change``, its own part and noise."""
    g, rows = np.random.default_rng(seed), []
    for method in methods:
        for s in range(sets):
            own = change + between * g.standard_normal()
            for k in range(networks):
                start, more = g.uniform(0.3, 0.6), own + within * g.standard_normal()
                for count, value in ((0, start), (2, start + more), (50, start + 0.3)):
                    what = {"method": method, "mode": mode, "real_per_class": count, "set_seed": s, "network_seed": k}
                    rows.append(SETTING | what | {"accuracy": value})
    return pd.DataFrame(rows)


def recognised(shares, tested=(0.8,), images=100, test_images=1000):
    """``shares`` method -> (sets, networks) accuracies; ``tested`` one a network."""
    rows = [
        SETTING | {"method": "real", "ipc": None, "set_seed": None, "network_seed": k, "accuracy": a}
        | {"images": test_images}
        for k, a in enumerate(tested)
    ]  # fmt: skip
    for method, values in shares.items():
        for s, own in enumerate(values):
            for k, a in enumerate(own):
                what = {"method": method, "set_seed": s, "network_seed": k, "accuracy": a, "images": images}
                rows.append(SETTING | what)
    return pd.DataFrame(rows)


def top(own_share, sets=1, images=20, k=9, seed=0, method="bptt"):
    """Helped test images, of the image's class with probability ``own_share``, else of any of 10."""
    g, rows = np.random.default_rng(seed), []
    for s in range(sets):
        for image in range(images):
            for rank in range(1, k + 1):
                own = image % 10
                helped = own if g.uniform() < own_share else int(g.integers(10))
                for direction, test_class in (("helped", helped), ("hurt", own)):
                    what = {"method": method, "set_seed": s, "image": image, "image_class": own, "rank": rank}
                    rows.append(SETTING | what | {"direction": direction, "test_class": test_class})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------- early gain


def test_the_gain_is_of_matched_agreement_and_names_its_sources():
    found = table({"agreement_gain": gains()}, 10)
    assert list(found.columns) == COLUMNS and found["effect"].tolist() == [0.05, -0.05, 0.0]
    assert found["holds"].tolist() == ["yes", "no", "undecided"]
    assert found["source"].tolist() == ["Fig. 4", "not claimed", "control"]
    assert (found["n"] == 6).all() and (found["n_of"] == "networks on sets, 10 early and 20 subset runs").all()


@pytest.mark.parametrize("counts", [{"early": 1}, {"subset": 1}, {"networks": 1}])
def test_an_interval_that_leaves_something_out_is_none(counts):
    found = table({"agreement_gain": gains(**counts)}, 10)
    assert found[["low", "high"]].isna().all(axis=None) and (found["holds"] == "undecided").all()


# ------------------------------------------------------------------------------------------------ early recognition


def test_a_lead_is_an_earlier_update():
    found = table({"recognition_lead": leads()}, 10).set_index("method")
    assert found["effect"].to_dict() == pytest.approx({"mtt": -6.5, "random": -1 / 6, "dm": 4.5})
    ends = scipy.stats.t.interval(0.95, 2, -6.5, 1 / np.sqrt(3))  # over 3 networks, each the mean of 2 sets
    assert found.loc["mtt", ["low", "high"]].tolist() == pytest.approx(ends)
    assert found["holds"].to_dict() == {"mtt": "yes", "random": "undecided", "dm": "no"}
    assert found["n"].tolist() == [3, 3, 3] and set(found["n_of"]) == {"networks"}


# ------------------------------------------------------------------------------------------------------------ trace


def test_the_ratio_of_flat_curves_and_steps_is_known():
    flat, step = np.full(41, 50.0), np.r_[np.full(20, 80.0), np.full(21, 8.0)]
    ratios = trace_ratios(traces({("real", 0, 0): flat, ("mtt", 0, 0): step}, se=4.0))
    assert ratios["log_ratio"].tolist() == pytest.approx([0, np.log(0.1)])
    assert ratios["log_ratio_se"].tolist() == pytest.approx([4 / 50 + 4 / 50, 4 / 8 + 4 / 80])
    assert ratios["late"].tolist() == [50, 8] and ratios["peak"].tolist() == pytest.approx([50, 80])


def test_smoothing_is_by_updates_whatever_the_states():
    t = np.arange(0, 301)
    curve = 100 * np.exp(-(((t - 90) / 60) ** 2)) + 20
    fine = trace_ratios(traces({("mtt", 0, 0): curve})).iloc[0]
    coarse = trace_ratios(traces({("mtt", 0, 0): curve[::5]}, every=5)).iloc[0]
    by_hand, y = [], curve[0]
    for x in curve:
        y = 0.9 * y + 0.1 * x
        by_hand.append(y)
    assert fine["peak"] == pytest.approx(max(by_hand)) and fine["late"] == pytest.approx(curve[225:].mean())
    assert coarse["log_ratio"] == pytest.approx(fine["log_ratio"], abs=0.03)


def test_a_vanished_trace_counts_as_its_error_and_a_flat_start_as_nothing():
    gone = np.r_[np.full(30, 80.0), np.full(31, -1.0)]
    ratios = trace_ratios(traces({("mtt", 0, 0): gone, ("dm", 0, 0): np.full(61, -2.0)}, se=2.0))
    assert ratios["log_ratio"].iloc[0] == pytest.approx(np.log(2 / 80)) and np.isnan(ratios["log_ratio"].iloc[1])
    given = traces({("real", 0, 0): np.full(61, 9.0), ("mtt", 0, 0): gone, ("dm", 0, 0): np.full(61, -2.0)}, se=0.02)
    found = table({"hessian": given}, 10).set_index("method")
    assert found["holds"].to_dict() == {"mtt": "yes", "dm": "undecided"} and np.isnan(found.loc["dm", "effect"])
    one_state = trace_ratios(traces({("mtt", 0, 0): [5.0]}))
    assert one_state["log_ratio"].tolist() == [0]


def test_the_trace_of_a_set_is_compared_with_the_real_one_of_its_network():
    lows = {0: 10.0, 1: 20.0, 2: 12.0}
    curves = {("real", k, 0): np.r_[np.full(40, 100.0), np.full(40, 100.0 - 10 * k)] for k in lows}
    pairs = [(k, s) for k in lows for s in (0, 1)]
    curves |= {("bptt", k, s): np.r_[np.full(40, 200.0), np.full(40, lows[k] + s)] for k, s in pairs}
    found = table({"hessian": traces(curves)}, 10)
    both = {k: np.log([low / 200, (low + 1) / 200]).mean() for k, low in lows.items()}
    effects = [both[k] - np.log((100 - 10 * k) / 100) for k in lows]
    row = found.iloc[0]
    expected = scipy.stats.ttest_1samp(effects, 0).confidence_interval(0.95)
    assert row[["effect", "low", "high"]].tolist() == pytest.approx([np.mean(effects), *expected])
    assert (row["n"], row["n_of"], row["holds"], row["source"]) == (3, "networks", "yes", "section 4.3")


@pytest.mark.parametrize(("kind", "least", "most"), [("common", 0.99, 1), ("independent", 0.95, 1), ("worst", 0.88, 1)])
def test_the_interval_of_probes_covers_the_truth(kind, least, most):
    """Errors of all states and sets are one, or each its own, or such as to move the effect most: 95 % or more."""
    g, se, runs = np.random.default_rng(3), 3.0, 40
    early = np.arange(24) < 12
    real, own = np.where(early, 100.0, 80.0), np.where(early, 100.0, 30.0)
    signs = {"real": np.where(early, 1, -1), "mtt": np.where(early, -1, 1)}
    parts = []
    for run in range(runs):
        one, noise = g.standard_normal(), {}
        for target, sign in signs.items():
            drawn_errors = {"common": one, "independent": g.standard_normal(24), "worst": one * sign}[kind]
            noise |= {(target, t): se * e for t, e in enumerate(np.broadcast_to(drawn_errors, 24))}
        parts.append(traces({("real", 0, 0): real, ("mtt", 0, 0): own}, se=se, noise=noise).assign(network=f"n{run}"))
    found = table({"hessian": pd.concat(parts)}, 10)
    assert len(found) == runs and set(found["n"]) == {16} and set(found["n_of"]) == {"probes, one network"}
    truth = np.log(0.3) - np.log(0.8)
    assert least <= ((found["low"] <= truth) & (found["high"] >= truth)).mean() <= most


def test_the_errors_of_the_four_traces_are_added():
    curves = {("real", 0, 0): np.full(9, 50.0), ("mtt", 0, 0): np.full(9, 20.0)}
    row = table({"hessian": traces(curves, se=2.0, probes=5)}, 10).iloc[0]
    half = scipy.stats.t.ppf(0.975, 4) * (2 / 50 + 2 / 50 + 2 / 20 + 2 / 20)
    assert row[["effect", "low", "high"]].tolist() == pytest.approx([0, -half, half])


# ----------------------------------------------------------------------------------------------------------- mixing


def test_the_change_is_that_of_the_fewest_real_images_at_fixed_updates():
    given = pd.concat([mixed(-0.04, within=0.01), mixed(0.5, mode="fixed epochs"), mixed(0.02, methods=("random",))])
    found = table({"mixing": given}, 10)
    own = mixing.changes(given[(given["mode"] == "fixed updates") & (given["method"] == "dm")])
    by_set = own[own["real_per_class"] == 2].groupby("set_seed")["change"].mean()
    expected = scipy.stats.ttest_1samp(by_set, 0).confidence_interval(0.95)
    row = only(found, method="dm")
    assert row[["effect", "low", "high"]].tolist() == pytest.approx([by_set.mean(), *expected])
    assert (row["n"], row["n_of"], row["holds"]) == (4, "sets", "yes")
    assert only(found, method="random")["effect"] == pytest.approx(0.02) and len(found) == 2


def test_networks_of_one_set_are_no_sets():
    row = table({"mixing": mixed(-0.04, sets=1, networks=5, within=0.01)}, 10).iloc[0]
    assert (row["n"], row["n_of"]) == (5, "networks, one set")


@pytest.mark.parametrize("between", [0.0, 0.03])
def test_the_paired_interval_covers_the_truth(between):
    """300 tables of 4 sets with 3 networks each, as so many methods; counting networks as sets would cover too few."""
    methods = [f"m{i}" for i in range(300)]
    given = mixed(-0.02, between=between, within=0.02, methods=methods, seed=1)
    found = table({"mixing": given}, 10)
    covered = ((found["low"] <= -0.02) & (found["high"] >= -0.02)).mean()
    assert 0.95 - 3 * 0.0126 <= covered <= 0.95 + 3 * 0.0126  # 3 standard errors of a share of 300
    if between:
        own = mixing.changes(given).query("real_per_class == 2")
        naive = own.groupby("method")["change"].agg(["mean", "sem", "count"])
        half = scipy.stats.t.ppf(0.975, naive["count"] - 1) * naive["sem"]
        assert ((naive["mean"] + 0.02).abs() <= half).mean() < 0.85


def test_other_modes_or_no_real_images_say_nothing():
    assert not len(table({"mixing": mixed(-0.1, mode="replacement")}, 10))
    alone = mixed(-0.1).query("real_per_class == 0")
    found = table({"mixing": alone, "agreement_gain": gains()}, 10)
    assert list(found.columns) == COLUMNS and len(found) == 3


# ----------------------------------------------------------------------------------------------- pretrained networks


def test_recognition_is_compared_with_chance_and_with_the_same_networks():
    shares = {"dm": [[0.5, 0.6], [0.4, 0.5], [0.45, 0.55]], "random": [[0.8, 0.9]]}
    found = table({"recognition_pretrained": recognised(shares, tested=(0.7, 0.9))}, 10)
    chance = only(found, hypothesis="recognised above chance", method="dm")
    below = only(found, hypothesis="recognised below the test accuracy", method="dm")
    by_set = np.array([0.55, 0.45, 0.5])
    for row, border in ((chance, 0.1), (below, 0.8)):
        expected = scipy.stats.ttest_1samp(by_set - border, 0).confidence_interval(0.95)
        assert row[["effect", "low", "high"]].tolist() == pytest.approx([0.5 - border, *expected])
        assert (row["n"], row["n_of"], row["holds"], row["source"]) == (3, "sets", "yes", "Fig. 2 left")
    row = only(found, hypothesis="recognised above chance", method="random")
    assert (row["n"], row["n_of"], row["source"]) == (2, "networks, one set", "control")


def test_what_the_bars_of_trajectory_sets_do_not_say_is_not_claimed():
    found = table({"recognition_pretrained": recognised({"mtt": [[0.9]], "dc": [[0.4]]})}, 10)
    below = found[found["hypothesis"] == "recognised below the test accuracy"].set_index("method")
    assert below["source"].to_dict() == {"mtt": "not claimed", "dc": "Fig. 2 left"}


def test_one_network_and_one_set_have_the_interval_of_their_images():
    found = table({"recognition_pretrained": recognised({"dm": [[0.46]], "bptt": [[1.0], [1.0]]})}, 10)
    row = only(found, hypothesis="recognised above chance", method="dm")
    expected = scipy.stats.binomtest(46, 100).proportion_ci(method="wilson")
    assert row[["low", "high"]].tolist() == pytest.approx([expected.low - 0.1, expected.high - 0.1])
    assert (row["n"], row["n_of"]) == (100, "images, one set")
    row = only(found, hypothesis="recognised above chance", method="bptt")
    assert row["low"] == pytest.approx(scipy.stats.binomtest(200, 200).proportion_ci(method="wilson").low - 0.1)
    assert (row["high"], row["n"], row["n_of"]) == (pytest.approx(0.9), 200, "images")
    row = only(found, hypothesis="recognised below the test accuracy", method="dm")
    assert row[["low", "high"]].tolist() == pytest.approx(newcombe(0.46, 100, 0.8, 1000))


def test_an_interval_is_never_beyond_what_a_share_can_be():
    found = table({"recognition_pretrained": recognised({"dm": [[0.5], [1.0]]})}, 10)
    assert found[["low", "high"]].values.tolist() == [pytest.approx([-0.1, 0.9]), pytest.approx([-0.8, 0.2])]


def test_the_interval_of_two_shares_is_the_published_one():
    assert newcombe(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)  # Newcombe's example
    low, high = newcombe(0.0, 10, 1.0, 20)
    assert low == -1 and -1 < high < -0.6


def test_the_interval_of_two_shares_covers_the_truth():
    g = np.random.default_rng(0)
    a, b = g.binomial(50, 0.6, 400) / 50, g.binomial(500, 0.8, 400) / 500
    ends = np.array([newcombe(x, 50, y, 500) for x, y in zip(a, b, strict=True)])
    assert 0.92 <= ((ends[:, 0] <= -0.2) & (ends[:, 1] >= -0.2)).mean() <= 0.98


# -------------------------------------------------------------------------------------------------------- influence


@pytest.mark.parametrize(("share", "holds"), [(0.6, "yes"), (0.0, "undecided")])
def test_influence_on_the_own_class_is_beside_chance(share, holds):
    row = table({"top_influences": top(share, images=40)}, 10).iloc[0]
    assert row["effect"] == pytest.approx(0.9 * share, abs=0.08) and row["holds"] == holds
    assert (row["n"], row["n_of"], row["source"]) == (40, "images, one set", "Fig. 10")


def test_influence_over_sets_and_at_its_end():
    row = table({"top_influences": top(0.5, sets=3)}, 10).iloc[0]
    assert (row["n"], row["n_of"]) == (3, "sets")
    row = table({"top_influences": top(1.0, images=20)}, 10).iloc[0]
    expected = scipy.stats.binomtest(20, 20).proportion_ci(method="wilson").low - 0.1
    assert row[["effect", "low", "high"]].tolist() == pytest.approx([0.9, expected, 0.9]) and row["n"] == 20


# ------------------------------------------------------------------------------------------------------- the tables


def everything():
    curves = {("real", 0, 0): np.full(20, 100.0), ("mtt", 0, 0): np.r_[np.full(10, 90.0), np.full(10, 9.0)]}
    shares = {"dm": [[0.5], [0.4]], "random": [[0.8], [0.7]]}
    return {
        "agreement_gain": gains(),
        "recognition_lead": leads(),
        "hessian": traces(curves, se=1.0),
        "mixing": mixed(-0.04, within=0.01, methods=("dm", "random")),
        "recognition_pretrained": recognised(shares),
        "top_influences": top(0.5),
    }


def test_files_give_what_the_tables_give(tmp_path):
    given = everything()
    for name, one in (given | {"other": pd.DataFrame({"x": [1]})}).items():
        one.to_csv(tmp_path / f"{name}.csv", index=False)
    found = table(read(tmp_path), 10)
    pd.testing.assert_frame_equal(found, table(given, 10), check_dtype=False)
    assert list(dict.fromkeys(found["hypothesis"])) == [finding.hypothesis for finding in FINDINGS]
    assert not found.duplicated(["hypothesis", *KEYS]).any() and found["n"].notna().all()
    (tmp_path / "mixing.csv").unlink()
    assert "a few real images hurt" not in set(table(read(tmp_path), 10)["hypothesis"])


def test_the_tables_of_the_package_have_the_columns():
    """Those made up here are tables that the analyses make."""
    pairs = pd.DataFrame(
        [
            SETTING
            | {"method": "dm", "ipc": 1, "set_seed": 0, "network_seed": k, "pool": pool, "run": r}
            | {"update": 1, "matching": "nearest", "pool_accuracy": 0.5, "set_accuracy": 0.5}
            | {"agreement": 0.5 + 0.2 * (pool == "early") + 0.01 * r * k, "error_agreement": 0.5, "kappa": 0.5}
            for k in (0, 1)
            for r in (0, 1, 2)
            for pool in ("early", "subset")
        ]
    )
    accuracy = torch.tensor([[[0.1, 0.1], [0.4, 0.6], [0.6, 0.9]], [[0.1, 0.1], [0.3, 0.2], [0.6, 0.9]]])
    one = pd.Series({"method": "dm", "ipc": 1, "seed": 0})
    followed = recognition.recognition_table(
        {"accuracy": accuracy, "loss": accuracy}, [one], "toy", "net", [0, 1], [0, 1, 2]
    )
    first = recognition.recognised_first(followed, 0.5)
    lead = intervals.summarise(first, [*KEYS, "level"], "lead", ["network_seed", "set_seed"])
    found = table({"agreement_gain": agreement.gain(pairs, 0, 50), "recognition_lead": lead}, 10)
    assert found["effect"].tolist() == pytest.approx([0.2, -0.5])
    assert set(hypotheses._RECOGNISED) <= set(recognised({}).columns)


@pytest.mark.parametrize(
    ("given", "n_classes", "message"),
    [
        ({}, 10, "there is no table to test hypotheses on: at least one of agreement_gain, recognition_lead,"),
        ({"accuracy": pd.DataFrame()}, 10, "unknown table 'accuracy': allowed are agreement_gain,"),
        ({"mixing": mixed(0.0)}, 1, "n_classes is 1: it must be a whole number of at least 2"),
        ({"mixing": mixed(0.0).drop(columns="mode")}, 10, "table mixing has no column mode: needed are dataset,"),
        ({"hessian": everything()["hessian"].drop(columns=["trace", "probes"])}, 10, "no column trace, probes: needed"),
        ({"mixing": mixed(0.0).query("real_per_class > 0")}, 10, "has no accuracy with real_per_class 0"),
        (
            {"hessian": everything()["hessian"].query("target != 'real'")}, 10,
            "table hessian has no row of target real for dataset toy, network net, network_seed 0: sets are compared",
        ),
        (
            {"recognition_pretrained": recognised({"dm": [[0.5, 0.6]]})}, 10,
            "table recognition_pretrained has no row of method real for dataset toy, network net, network_seed 1:",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(given, n_classes, message):
    with pytest.raises(ValueError) as error:
        table(given, n_classes)
    assert message in str(error.value)


def test_a_missing_column_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(hypotheses, "_tested", lambda *a: pytest.fail("there was work"))
    with pytest.raises(ValueError, match="table top_influences has no column test_class"):
        table({"mixing": mixed(0.0), "top_influences": top(0.5).drop(columns="test_class")}, 10)


# ------------------------------------------------------------------------------------------------------- the figure


def test_the_forest_has_every_row_where_it_belongs():
    found = table(everything(), 10)
    figure = forest(found)
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert len(panels) == len(FINDINGS)
    for ax, finding in zip(panels, FINDINGS, strict=True):
        own = found[found["hypothesis"] == finding.hypothesis]
        assert ax.get_title().replace("\n", " ").replace("- ", "-") == finding.hypothesis.capitalize()
        points = {float(line.get_xdata()[0]): line for line in ax.lines if line.get_marker() not in ("", "None")}
        assert sorted(points) == pytest.approx(sorted(own["effect"]))
        for row in own.itertuples():
            colour = METHOD_COLOURS[row.method]
            inside = to_hex(points[row.effect].get_markerfacecolor()).upper()
            assert inside == ("#FFFFFF" if row.holds == "undecided" else colour)
        bars = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.1]
        assert sorted(tuple(b.get_xdata()) for b in bars) == sorted(zip(own["low"], own["high"], strict=True))
        assert sum(b.get_linestyle() == ":" for b in bars) == own["source"].isin(["control", "not claimed"]).sum()
        (shade,) = ax.patches
        middle = shade.get_x() + shade.get_width() / 2
        assert np.sign(middle) == finding.sign and to_hex(shade.get_facecolor()).upper() == SHADE
        assert {text.get_text().split()[0] for text in ax.texts if text.get_text()} == {str(n) for n in own["n"]}
    assert drawn(figure)


def test_the_forest_tells_networks_and_datasets_apart():
    found = table({"recognition_pretrained": recognised({"dm": [[0.5], [0.4]]})}, 10)
    both = pd.concat([found, found.assign(network="other"), found.assign(dataset="more")], ignore_index=True)
    figure = forest(both)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["Distribution matching, IPC 10, more", "Distribution matching, IPC 10, toy"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[-2:] == ["net", "other"]
    assert len({line.get_marker() for line in figure.axes[0].lines if line.get_linestyle() == "None"}) == 2


def test_rows_without_an_interval_are_drawn():
    assert drawn(forest(table({"agreement_gain": gains(early=1)}, 10)))


def test_the_forest_refuses_other_tables():
    with pytest.raises(ValueError, match="the table has no column hypothesis"):
        forest(mixed(0.0))
    with pytest.raises(ValueError, match="the table has no rows"):
        forest(pd.DataFrame(columns=COLUMNS))
