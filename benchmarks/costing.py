"""What every figure of Yang et al. 2024 costs: the published way, ours at the published counts, ours as a profile asks.

    python -m benchmarks.costing --profile paper --tflops 100 --out benchmarks/results/costing.json

Nothing is run. Arithmetic is that of convolutions and linear layers, a multiplication and an addition two operations:
one image's pass of each kind is counted on meta tensors and multiplied by the images that pass, as the notebook's
parameters have it. Published counts are those of the published code (CIFAR-10, ten images a class, ConvNet of width
128), of which some numbers are inferred and say so. What two notebooks share is counted in the first. Minutes on a GPU
are computed, operations over a rate that is assumed; seconds that were measured are those of manifests, and no others.
Distillation is a row apart.
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import table, write_json
from benchmarks.costing_counts import (
    EIGENPAIR_PRODUCTS,
    KINDS,
    MAKER,
    NOTEBOOKS,
    Part,
    asked,
    distillation,
    flops,
    parameters,
    passes,
)
from benchmarks.costing_published import FOUR, NOTES, PROBES, PUBLISHED_COUNTS, PUBLISHED_WALL, published
from ddanalysis import architectures, index, report

ASSUMPTIONS = [
    "Minutes are operations over {tflops:g} TFLOP/s, an assumed rate: reached by large batches at best, and never by "
    "passes of a few images, whose launches take longer than their arithmetic. The printed times of the published code "
    "imply 6 to 12. Loading, normalisation, optimisers, UMAP, permutations and files count as nothing.",
    "Operations are those of convolutions and linear layers, a multiplication and an addition two, without the padding "
    "of short batches; in the estimates of influence those of their matrix products, too.",
    "Classes have equal sizes, but for the digits. Vectors share passes as on a GPU.",
    f"The top eigenvalues take {EIGENPAIR_PRODUCTS} products with the Hessian, and their residuals.",
    "Work that two notebooks share counts in the first. What 01 shares with others counts in both.",
    "Measured seconds are of the last run alone: what an earlier one had kept took it no time.",
    "Every published figure is of one run; a profile with more seeds and sets does more work.",
]


def costing(root: Path, profile: str, tflops: float) -> dict[str, Any]:
    """Every number of the tables; ``tflops`` is the rate that is assumed."""
    if not tflops > 0:
        raise ValueError(f"tflops is {tflops}: it must be above 0")
    mine = {name: asked(root, profile, name) for name in (*NOTEBOOKS, MAKER)}
    same = {name: parts(asked(root, "paper", name, PUBLISHED_COUNTS[name])) for name, parts in NOTEBOOKS.items()}
    ways = {
        "published": published(),
        "ours, same counts": {name: [part for part in parts if not part.beyond] for name, parts in same.items()},
        "ours": {name: parts(mine[name]) for name, parts in NOTEBOOKS.items()},
    }
    found = {way: work(parts, tflops) for way, parts in ways.items()}
    rows = [row(root, profile, name, {way: own[name] for way, own in found.items()}) for name in NOTEBOOKS]
    total = {way: sum(own[name]["operations"] for name in NOTEBOOKS) for way, own in found.items()}
    theirs = asked(root, "paper", MAKER, {"methods": FOUR, "set_seeds": [0], "protocols": []})
    theirs = replace(theirs, recipes=[(method, 10, {}) for method in FOUR])
    made = {"published": distillation(theirs), "ours": distillation(mine[MAKER])}
    apart = {way: work({MAKER: parts}, tflops)[MAKER] for way, parts in made.items()}
    net = architectures.build("ConvNet", (3, 32, 32), 10)
    traced = {name: work(published(n), tflops)["06_hessian"]["operations"] for name, n in PROBES.items()}
    return {
        "profile": profile,
        "tflops, assumed": tflops,
        "assumptions": [*(line.format(tflops=tflops) for line in ASSUMPTIONS), passes(mine["06_hessian"])],
        "operations of an image, ConvNet of width 128": {kind: flops(net, kind) for kind in KINDS},
        "published Hessian, by probes a state": {str(PROBES[name]): value for name, value in traced.items()},
        "notebooks": rows,
        "total": {way: {"operations": n, "minutes": n / tflops / 6e13} for way, n in total.items()},
        "distillation": row(root, profile, MAKER, apart),
    }


def work(found: dict[str, list[Part]], tflops: float) -> dict[str, dict[str, Any]]:
    """By notebook what none before it has done: operations, minutes, what they are for, and what was done before."""
    done: set[Part] = set()
    rows = {}
    for name, parts in found.items():
        own = dict.fromkeys(replace(part, which=part.which or name) for part in parts)
        by: Counter[str] = Counter()
        for part in own:
            by[part.what] += 0 if part in done else part.flops
        n, most = float(by.total()), by.most_common(1)
        rows[name] = {
            "operations": n,
            "minutes": n / tflops / 6e13,
            "shared with those before": float(sum(part.flops for part in own if part in done)),
            "dominated by": f"{most[0][0]}, {most[0][1] / n:.0%}" if n else "-",
            "parts": {what: float(value) for what, value in by.most_common() if value},
        }
        done.update(own)
    return rows


def row(root: Path, profile: str, name: str, ways: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A notebook's work by every way, beside the wall clock that is known."""
    theirs, same = (ways.get(way, {}).get("operations") for way in ("published", "ours, same counts"))
    wall = {other: measured(root, other, name) for other in dict.fromkeys(["quick", "mnist", profile])}
    return {
        "notebook": name,
        **ways,
        "published / ours, same counts": theirs / same if same else None,
        "published wall clock": PUBLISHED_WALL[name],
        "measured": {other: known for other, known in wall.items() if known},
        "note": NOTES[name],
    }


def measured(root: Path, profile: str, notebook: str) -> dict[str, Any] | None:
    """The wall clock of a notebook's last run, all parts of one together, and the parameters that have changed since.

    None where there is no manifest. A run that found artefacts of an earlier one took less time than all of its work.
    """
    folder = root / "outputs" / profile
    runs = index.read_manifests(folder) if any(folder.glob("manifests/*.json")) else []
    runs = [run for run in runs if run["notebook"] == notebook]
    if not runs:
        return None
    now, parts = parameters(root, profile, notebook), any(run["part"] for run in runs)
    kept = set(now) - {"outputs", "data_root", "part", *(["methods"] if parts else [])}
    changed = {name for run in runs for name in kept if run["parameters"].get(name, now[name]) != now[name]}
    machines = {f"{m['processor']}, {m['device']}, threads {m['threads']}" for m in (run["machine"] for run in runs)}
    seconds = sum(run["wall_seconds"] for run in runs)
    return {"seconds": seconds, "machine": "; ".join(sorted(machines)), "parameters changed since": sorted(changed)}


def show(result: dict[str, Any]) -> str:
    """The tables in Markdown."""
    rate, net = result["tflops, assumed"], result["operations of an image, ConvNet of width 128"]
    rows = [shown(one) for one in result["notebooks"]]
    total: list[dict[str, object]] = [{way: _cell(one) for way, one in result["total"].items()}]
    per_image: list[dict[str, object]] = [
        {"one image, ConvNet of width 128": kind, "MFLOP": f"{n / 1e6:.2f}"} for kind, n in net.items()
    ]
    probes = ", ".join(f"{_big(n)} at {count}" for count, n in result["published Hessian, by probes a state"].items())
    head = (
        f"PFLOP (minutes on a GPU, computed at {rate:g} TFLOP/s, which is assumed); ours: profile {result['profile']}"
    )
    notes = [f"* {one['notebook']}: {one['note']}" for one in (*result["notebooks"], result["distillation"])]
    facts = [f"* {line}" for line in result["assumptions"]]
    facts.append(f"* Published Hessian by probes a state, PFLOP: {probes}.")
    parts = [head, table(rows), table(total), table([shown(result["distillation"])]), table(per_image)]
    return "\n\n".join([*parts, "\n".join(notes), "\n".join(facts)])


def shown(one: dict[str, Any]) -> dict[str, object]:
    """A row as it is printed."""
    ways = {way: one.get(way) for way in ("published", "ours, same counts", "ours")}
    cells: dict[str, object] = {"notebook": one["notebook"]}
    for way, own in ways.items():
        if own:
            more = own["shared with those before"]
            cells[way] = _cell(own) + (f" + {_big(more)} shared" if more else "")
    cells["published / ours, same counts"] = one["published / ours, same counts"]
    cells["published wall clock"] = one["published wall clock"]
    cells["measured"] = (
        "; ".join(
            f"{profile} {known['seconds']:.0f} s{' (older parameters)' if known['parameters changed since'] else ''}"
            for profile, known in one["measured"].items()
        )
        or None
    )
    return cells | {f"most of {way}": own["dominated by"] for way, own in ways.items() if own}


def _cell(one: dict[str, Any]) -> str:
    return f"{_big(one['operations'])} ({one['minutes']:.3g} min)"


def _big(operations: float) -> str:
    return f"{operations / 1e15:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description="what every figure costs, the published way and ours")
    parser.add_argument("--profile", required=True, help="a folder of params/")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--tflops", type=float, default=100.0, help="sustained rate of a GPU that is assumed")
    given = parser.parse_args()
    result = costing(report.project_root(), given.profile, given.tflops)
    write_json(given.out, result)
    print(show(result))


if __name__ == "__main__":
    main()
