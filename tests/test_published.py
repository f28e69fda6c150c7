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
    assert set(table["unit"]) == {"fraction", "iteration", "trace"}
    assert table.loc[table["unit"] == "fraction", "value"].between(0, 1).all()
    assert (table["deviation"].dropna() > 0).all() and table["deviation"].max() < 0.02
    known = r"printed|quoted by others|recalled, unverified|(?:read off|derived from) a figure(?: ±\.?\d+|, roughly)"
    assert table["certainty"].str.fullmatch(known).all()


OTHER_PROTOCOLS = {"batch 256, SGD .01, momentum .9", "20 epochs", "40 epochs", "unknown", ""}
"""How networks of published numbers were trained that belong to no distilled set, or of which nobody said how."""


def test_names_are_those_of_the_package():
    table = load()
    assert set(table["dataset"]) <= set(parameters.DATASETS)
    assert set(table["network"]) <= set(parameters.NETWORKS)
    assert set(table["protocol"]) - set(parameters.PROTOCOLS) == OTHER_PROTOCOLS
    assert set(table["method"]) == {"bptt", "dm", "dc", "dsa", "mtt", "random", "real"}
    assert (table["ipc"].isna() == (table["method"] == "real")).all()


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
