"""Every number that others published and a notebook prints ours beside, with its source and how sure it is."""

from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

import pandas as pd

from ddanalysis import checks

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

TEXT = ("source", "place", "dataset", "method", "network", "protocol", "quantity", "unit", "certainty", "note")
COLUMNS = (*TEXT[:4], "ipc", *TEXT[4:7], "value", "deviation", *TEXT[7:])
"""The columns of ``published.csv``.

* ``source``, ``place``: who printed it, and where; ``note``: what else a reader should know.
* ``dataset``, ``method``, ``ipc``, ``network``, ``protocol``: what of, in this package's names; dc is also known as
  gradient matching, dm as distribution matching, mtt as trajectory matching; "real" is real data, without an ipc.
  ``protocol`` is how the networks were trained, blank if unknown. Of sets that are trained on by their own steps it
  is "own-steps", with their networks ("own-steps, fixed" | "random" | "pretrained on usps"), the source of base images
  ("from emnist_letters") and what else tells two numbers apart. ``ipc`` is blank for fewer images than classes, too.
* ``quantity``: "accuracy", "agreement subset", "agreement early", "agreement gain", "recognition@50" (at iteration 50
  of the published figure, which is after 51 updates), ...
* ``value``, ``deviation`` (standard deviation, blank if none was printed), both in ``unit``, mostly "fraction" of 1.
* ``certainty``: "printed", "read off a figure ±.003", "quoted by others", "recalled, unverified", ...
"""

OWN_STEPS = (
    r"own-steps(?:, (?P<initialisation>fixed|random))?(?:, pretrained on (?P<pretrained_on>\w+))?"
    r"(?:, from (?P<base>\w+))?(?:, (?P<few>\d+) images)?"
)
"""Protocols of :func:`own_steps`; those with another number of epochs or networks than the published default differ."""

BESIDE = ("published", "published_deviation", "published_network", "published_protocol", "certainty", "source")
"""The columns that :func:`beside` adds."""

_BLANK = {"ipc": [""], "deviation": [""]}


def load() -> pd.DataFrame:
    """The published numbers, one a row, with ``COLUMNS``; ``ipc`` is Int64, ``value`` and ``deviation`` float64."""
    with resources.files("ddanalysis").joinpath("published.csv").open(encoding="utf-8") as file:
        table = pd.read_csv(file, dtype=dict.fromkeys(TEXT, "str"), keep_default_na=False, na_values=_BLANK)
    return table.astype({"ipc": "Int64", "value": "float64", "deviation": "float64"})[list(COLUMNS)]


def beside(
    table: pd.DataFrame, quantity: str, on: Sequence[str] = ("dataset", "method", "ipc", "network")
) -> pd.DataFrame:
    """Our ``table`` with the published numbers of ``quantity`` that agree in the columns ``on``; adds ``BESIDE``.

    No row of ours is lost: where nothing is published the new columns are missing, where several numbers are, the row
    is repeated for each. Protocols differ by several points, so either join on the protocol too or read the one beside
    the number. Whitened data have the numbers of their dataset: whether a number is of whitened images is up to its
    method. ``source`` says the place as well. ``ValueError`` for a quantity that nobody published, a column that
    either side lacks, and a table that has such columns already.
    """
    published = load()
    checks.one_of("quantity", quantity, sorted(published["quantity"].unique()))
    if not on:
        raise ValueError("on is empty: name at least one column to join on")
    for column in on:
        checks.one_of("column to join on", column, ("dataset", "method", "ipc", "network", "protocol"))
        if column not in table.columns:
            raise ValueError(
                f"the table has no column {column!r} to join on: it has {', '.join(map(str, table.columns))}"
            )
    taken = [column for column in BESIDE if column in table.columns]
    if taken:
        raise ValueError(f"the table has the column {taken[0]!r} already: the published number would overwrite it")
    theirs = published[published["quantity"] == quantity]
    theirs = theirs.assign(
        published=theirs["value"],
        published_deviation=theirs["deviation"],
        published_network=theirs["network"],
        published_protocol=theirs["protocol"],
        source=theirs["source"] + ", " + theirs["place"],
    )
    if "dataset" not in on:
        return table.merge(theirs[[*on, *BESIDE]], how="left", on=list(on))
    plain = table["dataset"].str.replace(r"-zca-\w+$", "", regex=True)
    keys = ["plain dataset" if column == "dataset" else column for column in on]
    theirs = theirs.rename(columns={"dataset": "plain dataset"})[[*keys, *BESIDE]]
    return table.assign(**{"plain dataset": plain}).merge(theirs, how="left", on=keys).drop(columns="plain dataset")


def own_steps(dataset: str, n_classes: int) -> pd.DataFrame:
    """The published accuracies on ``dataset`` of sets that are trained on by their own steps, with all their epochs.

    Columns dataset, method, network, images (in all), initialisation ("fixed", "random", "pretrained", blank where the
    authors have one kind alone), pretrained_on (blank if nothing), base (the dataset of the base images), published,
    published_deviation and certainty.
    """
    table = load()
    table = table[(table["dataset"] == dataset) & (table["quantity"] == "accuracy")]
    table = table[table["protocol"].str.fullmatch(OWN_STEPS)]
    parts = table["protocol"].str.extract(OWN_STEPS)
    pretrained = parts["pretrained_on"].notna() & parts["initialisation"].isna()
    return pd.DataFrame({
        "dataset": dataset,
        "method": table["method"],
        "network": table["network"],
        "images": (table["ipc"] * n_classes).fillna(pd.to_numeric(parts["few"]).astype("Int64")).astype("Int64"),
        "initialisation": parts["initialisation"].mask(pretrained, "pretrained").fillna(""),
        "pretrained_on": parts["pretrained_on"].fillna(""),
        "base": parts["base"].fillna(dataset),
        "published": table["value"],
        "published_deviation": table["deviation"],
        "certainty": table["certainty"],
    })  # fmt: skip


def greyed(table: pd.DataFrame) -> "Styler":
    """``table`` to be shown, with three decimals, and grey where its ``certainty`` is that of a recalled number.

    Beside ours (:func:`beside`) the published columns of a row are, else all. ``ValueError`` without that column.
    """
    if "certainty" not in table.columns:
        raise ValueError(f"the table has no column 'certainty': it has {', '.join(map(str, table.columns))}")
    theirs = list(BESIDE) if "published" in table.columns else table.columns
    return table.style.apply(_grey, axis=1, subset=[c for c in table.columns if c in theirs]).format(
        precision=3, na_rep=""
    )


def _grey(row: pd.Series) -> list[str]:
    return ["color: gray" if str(row["certainty"]).startswith("recalled") else ""] * len(row)
