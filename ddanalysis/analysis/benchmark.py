"""What a distilled set is worth: its accuracy over that of random real images, of what it started from, and of the same
method without CLOM.
"""

from collections.abc import Callable

import pandas as pd

from ddanalysis.intervals import summarise

SETTING = ["dataset", "method", "ipc", "network", "protocol"]
PAIR = ["dataset", "ipc", "network", "protocol", "set_seed", "network_seed"]
"""What two accuracies have in common that are compared: networks of one seed begin alike, whatever they learn."""

OVER = ("random images", "own start", "the same without CLOM")


def gains(table: pd.DataFrame, starts: pd.DataFrame) -> pd.DataFrame:
    """The gain in accuracy of every network over its partner; rows of ``table`` with the columns ``over`` and ``gain``.

    ``table`` is the tidy one, with sets of the method "random" in it; ``starts`` has the same columns, of the sets as
    they were before their first iteration. Partners are of one dataset, ipc, network, protocol, set seed and network
    seed; over "own start" and "the same without CLOM" they share the method too. What has no partner has no row.
    """
    plain = table[~table["method"].str.startswith("clom_")]
    partners = {
        OVER[0]: (table[table["method"] == "random"], lambda method: "random"),
        OVER[1]: (starts, lambda method: method),
        OVER[2]: (plain, lambda method: method.removeprefix("clom_") if method.startswith("clom_") else ""),
    }
    return pd.concat([_over(table, over, *found) for over, found in partners.items()], ignore_index=True)


def _over(table: pd.DataFrame, over: str, theirs: pd.DataFrame, partner: Callable[[str], str]) -> pd.DataFrame:
    own = table.assign(partner=table["method"].map(partner), over=over)
    own = own[own["partner"] != own["method"]] if over != OVER[1] else own
    other = theirs[[*PAIR, "method", "accuracy"]].rename(columns={"method": "partner", "accuracy": "theirs"})
    both = own.merge(other, on=[*PAIR, "partner"])
    return both.assign(gain=both["accuracy"] - both["theirs"])[[*SETTING, "set_seed", "network_seed", "over", "gain"]]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The mean gain of every setting and its 95 % interval over sets, and whether that lies above 0 (``sure``)."""
    found = summarise(table, [*SETTING, "over"], "gain", ["set_seed", "network_seed"])
    return found.assign(sure=found["low"] > 0)
