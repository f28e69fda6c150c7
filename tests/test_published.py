"""The published numbers are well formed, are those of the sources, and join to ours without losing a row."""

import numpy as np
import pandas as pd
import pytest

from ddanalysis import parameters, published
from ddanalysis.published import BESIDE, COLUMNS, beside, load

KEY = ["source", "place", "dataset", "method", "ipc", "network", "protocol", "quantity"]


def test_the_table_has_its_columns_and_types():
    table = load()
    assert tuple(table.columns) == COLUMNS
    assert table["ipc"].dtype == "Int64"
    assert table["value"].dtype == table["deviation"].dtype == "float64"
    for column in published.TEXT:
        assert table[column].notna().all()
        assert (table[column] == table[column].str.strip()).all()


def test_every_number_says_what_it_is_and_how_sure():
    table = load()
    assert table["value"].notna().all()
    for column in ("source", "place", "dataset", "method", "network", "quantity", "unit", "certainty"):
        assert (table[column] != "").all(), column
    assert not table.duplicated(KEY).any()
    assert set(table["unit"]) == {"fraction", "iteration", "trace", "loss", "nat", "second"}
    assert table.loc[table["unit"] == "fraction", "value"].between(0, 1).all()
    assert (table["deviation"].dropna() >= 0).all() and table["deviation"].max() < 0.3
    assert table.loc[table["network"] == "ConvNet", "deviation"].max() < 0.02
    known = r"printed|quoted by others|recalled, unverified|measured from the published (?:scripts|data)|"
    known += r"(?:read off|derived from) a figure(?: ±\.?\d+|, roughly)"
    assert table["certainty"].str.fullmatch(known).all()


OTHER_PROTOCOLS = {
    "batch 256, SGD .01, momentum .9", "20 epochs", "40 epochs", "unknown", "", "all images",
    "all images, pretrained on imagenet", "minibatch SGD", "Keras training", "75 epochs, SGD one image at a time",
    "from mnist", "from usps", "from svhn",
}  # fmt: skip
"""How networks of published numbers were trained that belong to no distilled set, or of which nobody said how."""
OWN_STEPS = (
    r"own-steps(?:, (?:fixed|random))?(?:, pretrained on \w+|, from \w+)?(?:, label softmax)?"
    r"(?:, \d+ (?:images|epochs|networks))?"
)
"""Sets that are trained on by their own steps: with which networks, and what else tells two numbers apart."""
TEXTS = {"imdb", "sst5", "trec6", "trec50"}
TEXT_NETWORKS = {"TextConvNet1", "TextConvNet3", "TextRNN1", "TextLSTM1", "TextLSTM2", "RNN1", "LSTM1"}
STEPWISE = {
    "dd", "sldd", "tdd", "random real", "optimised real", "k-means", "average real", "majority", "motiian2017",
    "nearest neighbours, random real", "nearest neighbours, k-means",
}  # fmt: skip
LABELS = {
    "ld", "ld_ridge", "ld_images", "ld_images_ridge", "true labels", "smoothed labels", "true labels, ridge",
    "smoothed labels, ridge",
}  # fmt: skip


def test_names_are_those_of_the_package():
    table = load()
    assert set(table["dataset"]) - set(parameters.DATASETS) == TEXTS | {"several"}
    nets = set(table["network"]) - set(parameters.NETWORKS)
    assert nets == TEXT_NETWORKS | {"nearest neighbours", "none", "unknown"}
    own = table["protocol"].str.fullmatch(OWN_STEPS)
    assert set(table.loc[~own, "protocol"]) - set(parameters.PROTOCOLS) == OTHER_PROTOCOLS
    assert set(table["method"]) == {"bptt", "dm", "dc", "dsa", "mtt", "random", "real"} | STEPWISE | LABELS
    assert not table.loc[table["method"].isin(["real", "majority"]), "ipc"].notna().any()
    lacking = table[table["ipc"].isna() & ~table["method"].isin(["real", "majority"])]
    named = {("mnist", "sldd"), ("several", "sldd"), ("kuzushiji49_published", "ld")} | {(d, "tdd") for d in TEXTS}
    assert set(zip(lacking["dataset"], lacking["method"], strict=True)) == named
    assert lacking.loc[lacking["method"] == "tdd", "quantity"].str.startswith("seconds an iteration").all()


def test_what_is_recalled_is_nowhere_else_better_known():
    """A number that is both printed and recalled is there once, as printed."""
    table = load()
    table = table[table["source"].isin(["Wang et al. 2018", "Sucholutsky & Schonlau 2019", "Bohdal et al. 2020"])]
    table = table[~table["certainty"].str.startswith("measured")]
    assert not table.duplicated([*(name for name in KEY if name != "place"), "value"]).any()
    recalled = table[table["certainty"] == "recalled, unverified"]
    assert set(recalled["place"]) == {
        "Table 1", "Table 2", "Table 3", "table of images", "table of texts", "table of one dataset",
        "table across datasets", "table of times",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("place", "rows", "certainty"),
    [
        ("project page", 14, "printed"), ("teaser", 2, "printed"), ("Table 1", 13, "recalled, unverified"),
        ("Table 2", 23, "recalled, unverified"), ("Table 3", 10, "recalled, unverified"),
        ("table of images", 3, "recalled, unverified"), ("committed logs", 27, "printed"),
        ("table of texts", 32, "recalled, unverified"), ("Table 1 of Nguyen et al. 2021", 6, "quoted by others"),
        ("table of one dataset", 49, "recalled, unverified"), ("table across datasets", 8, "recalled, unverified"),
        ("published scripts, run again", 73, "measured from the published scripts"), ("notebook", 9, "printed"),
    ],
)  # fmt: skip
def test_every_table_is_whole(place, rows, certainty):
    found = load()[lambda t: t["place"] == place]
    assert len(found) == rows and set(found["certainty"]) == {certainty}


@pytest.mark.parametrize(
    ("dataset", "method", "ipc", "protocol", "quantity", "value", "deviation"),
    [
        ("mnist", "dd", 1, "own-steps, fixed", "accuracy before", 0.129, np.nan),
        ("mnist", "dd", 1, "own-steps, fixed", "accuracy", 0.938, np.nan),
        ("mnist", "dd", 10, "own-steps, random", "accuracy", 0.795, 0.081),
        ("cifar10", "dd", 10, "own-steps, random", "accuracy", 0.368, 0.012),
        ("mnist", "dd", 10, "own-steps, pretrained on usps", "accuracy before", 0.675, 0.039),
        ("mnist", "dd", 10, "own-steps, pretrained on usps", "accuracy", 0.927, 0.014),
        ("mnist", "dd", 10, "own-steps, pretrained on mnist", "attack success", 0.714, 0.296),
        ("mnist", "sldd", 1, "own-steps, fixed", "accuracy", 0.96, np.nan),
        ("cifar10", "sldd", 10, "own-steps, fixed", "accuracy", 0.60, np.nan),
        ("mnist", "dd", 10, "75 epochs, SGD one image at a time", "accuracy@75", 0.375, np.nan),
        ("mnist", "ld", 10, "own-steps", "accuracy", 0.873, 0.007),
        ("mnist", "ld_ridge", 10, "own-steps, 60 epochs", "accuracy", 0.878, 0.0038),
        ("mnist", "true labels", 10, "own-steps", "accuracy", 0.8241, 0.0139),
        ("mnist", "smoothed labels", 10, "own-steps", "accuracy", 0.861, 0.0082),
        ("imdb", "tdd", 1, "own-steps, fixed", "accuracy", 0.7829, np.nan),
    ],
)
def test_verified_numbers_of_learned_images_and_labels(dataset, method, ipc, protocol, quantity, value, deviation):
    table = load()[lambda t: t["certainty"] != "recalled, unverified"]
    wanted = {"dataset": dataset, "method": method, "ipc": ipc, "protocol": protocol, "quantity": quantity}
    row = table[(table[list(wanted)] == list(wanted.values())).all(axis=1)]
    np.testing.assert_array_equal(row[["value", "deviation"]].to_numpy(dtype=float), [[value, deviation]])


def test_sets_of_five_images_have_their_number_without_an_ipc():
    table = pd.DataFrame({"dataset": ["mnist"], "method": ["sldd"], "protocol": ["own-steps, fixed, 5 images"]})
    found = beside(table, "accuracy", on=["dataset", "method", "protocol"])
    assert found["published"].tolist() == [0.92] and found["certainty"].tolist() == ["printed"]


def test_the_agreement_gains_are_the_differences_of_the_means():
    figure = load().query("place == 'Fig. 4'").pivot(index="method", columns="quantity", values="value")
    difference = figure["agreement early"] - figure["agreement subset"]
    np.testing.assert_allclose(figure["agreement gain"], difference, atol=1e-12)
    for pool in ("subset", "early"):
        inside = (figure[f"agreement {pool} lowest"] < figure[f"agreement {pool}"]) & (
            figure[f"agreement {pool}"] < figure[f"agreement {pool} highest"]
        )
        assert inside.all() and len(inside) == 4


@pytest.mark.parametrize(
    ("method", "quantity", "place", "value", "certainty"),
    [
        ("dm", "accuracy", "agreement notebook", 0.4266, "printed"),
        ("dc", "accuracy", "agreement notebook", 0.4596, "printed"),
        ("mtt", "agreement early", "Fig. 4", 0.623, "read off a figure ±.003"),
        ("bptt", "agreement subset", "Fig. 4", 0.621, "read off a figure ±.003"),
        ("dm", "recognition@120", "Fig. 5", 0.74, "read off a figure ±.03"),
        ("real", "recognition@298", "Fig. 5", 0.665, "read off a figure ±.01"),
    ],
)
def test_numbers_of_the_paper(method, quantity, place, value, certainty):
    row = load().query("method == @method and quantity == @quantity and place == @place")
    assert row[["value", "certainty"]].values.tolist() == [[value, certainty]]


def ours(methods, ipc=10):
    table = pd.DataFrame({"method": methods, "mean": np.arange(len(methods)) / 10})
    return table.assign(dataset="cifar10", ipc=ipc, network="ConvNet", protocol="full-batch-300")


def test_beside_keeps_our_rows_in_order_and_adds_theirs():
    table = ours(["mtt", "k_means", "dm"])
    found = beside(table, "agreement early")
    assert list(found.columns) == [*table.columns, *BESIDE]
    pd.testing.assert_frame_equal(found[list(table.columns)], table)
    assert found["published"].fillna(-1).tolist() == [0.623, -1, 0.571]
    assert found["source"].fillna("").tolist() == ["Yang et al. 2024, Fig. 4", "", "Yang et al. 2024, Fig. 4"]
    assert found["published_deviation"].isna().all()


def test_beside_repeats_a_row_for_each_number_and_joins_on_the_protocol():
    found = beside(ours(["dm"]), "accuracy")
    assert sorted(found["published"]) == [0.4266, 0.429, 0.489]
    assert set(found["published_protocol"]) == {"full-batch-300", "dsa-1000"}
    assert found.loc[found["published"] == 0.489, "published_deviation"].tolist() == [0.006]
    joined = beside(ours(["dm"]), "accuracy", on=["dataset", "method", "ipc", "network", "protocol"])
    assert sorted(joined["published"]) == [0.4266, 0.429]
    assert beside(ours(["dm"], ipc=7), "accuracy")["published"].isna().all()


def test_whitened_data_have_the_numbers_of_their_dataset():
    table = ours(["dm"]).assign(dataset="cifar10-zca-kornia")
    found = beside(table, "accuracy")
    assert sorted(found["published"]) == [0.4266, 0.429, 0.489] and set(found["dataset"]) == {"cifar10-zca-kornia"}


def test_beside_joins_real_data_on_its_missing_ipc():
    table = ours(["real"]).assign(ipc=pd.array([None], dtype="Int64"))
    assert beside(table, "recognition@100")["published"].tolist() == [0.558]


@pytest.mark.parametrize(
    ("table", "quantity", "on", "message"),
    [
        (ours(["dm"]), "precision", ["method"], "unknown quantity 'precision'.*agreement early"),
        (ours(["dm"]), "accuracy", [], "on is empty"),
        (ours(["dm"]), "accuracy", ["mean"], "unknown column to join on 'mean'"),
        (ours(["dm"]).drop(columns="ipc"), "accuracy", ["method", "ipc"], "no column 'ipc'"),
        (ours(["dm"]).assign(source="x"), "accuracy", ["method"], "'source' already"),
    ],
)
def test_what_cannot_be_joined_is_refused(table, quantity, on, message):
    with pytest.raises(ValueError, match=message):
        beside(table, quantity, on)


def test_numbers_of_own_steps_say_of_which_sets_they_are():
    found = published.own_steps("mnist", 10).set_index(["method", "images", "initialisation", "pretrained_on", "base"])
    assert found.loc[("dd", 10, "fixed", "", "mnist"), "published"] == 0.938
    assert found.loc[("sldd", 5, "fixed", "", "mnist"), "published"] == 0.92
    assert found.loc[("dd", 100, "pretrained", "usps", "mnist"), "published_deviation"] == 0.014
    assert found.loc[("ld", 100, "", "", "mnist"), "published"] == 0.873  # not those of 5 and 60 epochs
    assert found.loc[("ld_ridge", 100, "", "", "emnist_letters"), "certainty"] == "recalled, unverified"
    assert published.own_steps("digits", 10).empty


def test_recalled_numbers_are_shown_in_grey():
    table = pd.DataFrame({"published": [0.5, 0.25], "certainty": ["printed", "recalled, unverified"]})
    html = published.greyed(table).to_html()
    assert html.count("color: gray") == 1 and "row1_col0" in html.split("{")[0] and "row0" not in html.split("{")[0]
    beside_ours = published.greyed(table.assign(mean=0.3)).to_html().split("{")[0]
    assert "row1_col1" in beside_ours and "col2" not in beside_ours
    every = published.greyed(table.rename(columns={"published": "value"})).to_html().split("{")[0]
    assert "row1_col0" in every and "row1_col1" in every
    with pytest.raises(ValueError, match="no column 'certainty': it has value"):
        published.greyed(pd.DataFrame({"value": [1.0]}))
