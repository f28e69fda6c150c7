"""Leave-one-out influence against the published loop, and what estimates of it cost and are worth.

    python -m benchmarks.influence --root DIR --out benchmarks/results/influence.json [--set FILE] [--quick]

* **Leave-one-out.** The published loop ("What is Dataset Distillation Learning?", 2024), written again plainly: for one
  network after the other a copy of the first, a copy of the set without one image, full-batch updates. 8 of the 101
  networks and 60 of their 300 updates are timed, and the losses of some of the test images; what all of it would take
  is extrapolated from these, and says so. The published notebook has all 10,000 test images in one pass, of 5 GB a
  feature map; here both ways take slices.
* **Screening.** Estimates from the gradients of one trained network: what is done once for the set is timed whole, the
  test images' part on some of them, and extrapolated. Whoever asks for influences usually has the trained network;
  training it is one network of the 101, and is a column of its own.
* **What estimates are worth.** Exact leave-one-out from several initialisations, of a narrower network and with nothing
  left out of its training; correlations over test images, averaged over the images of the set, with 95 % t intervals
  over initialisations. "leave-one-out, another initialisation" says how well exact influences tell each other; an
  estimate that knows the initialisation may do better. Gains are over the gradient dot product, paired by
  initialisation.

Without ``--set``, a file of any layout that the package reads, the set is 10 real images a class, and says so.
"""

import argparse
import copy
import statistics
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import ALLOCATORS, Job, Task, Worker, environment, interleave, ratio, table, write_json
from benchmarks.published_steps import ConvNet
from ddanalysis import architectures, distilled, intervals, makers, networks, training
from ddanalysis import data as datasets
from ddanalysis.analysis import influence, influence_estimates
from ddanalysis.compute import Compute
from ddanalysis.data import ImageData
from ddanalysis.distilled import DistilledSet
from ddanalysis.training import Recipe

# Column: the published way's allocator and ours, and the bar.
COLUMNS = {
    "both default": ("default", "default", None),
    "as shipped": ("default", "kept", 2.0),
    "both kept": ("kept", "kept", 1.15),
}
PUBLISHED_UPDATES = 300
SCREENING_BAR = 100.0
DOT = "gradient dot product"


@dataclass(frozen=True)
class Settings:
    """How much of the real thing is measured."""

    root: str
    set: str = ""
    dataset: str = "cifar10"
    width: int = 128
    ipc: int = 10  # of real images, without a set
    members: int = 8  # networks that are timed, the last of them on all images
    updates: int = 60
    test_images: int = 500  # that are timed
    rounds: int = 3
    threads: int = 2
    compiled: bool = True  # ours
    worth_width: int = 16
    worth_seeds: int = 3
    worth_updates: int = PUBLISHED_UPDATES
    worth_test_images: int = 1000


def inputs(settings: Settings) -> tuple[ImageData, DistilledSet]:
    data = datasets.load(settings.dataset, root=settings.root)
    if settings.set:
        return data, makers.read_sets([settings.set], data)[0]
    rows = datasets.balanced_rows(data.train_y, settings.ipc, 0)
    what = distilled.describe(
        n_classes=data.n_classes, mean=data.mean, std=data.std, method="real", dataset=data.name,
        ipc=settings.ipc,
    )  # fmt: skip
    return data, distilled.assemble({"x": data.train_x[rows], "y": data.train_y[rows]}, what)


def start(data: ImageData, width: int, seeds: range = range(1)) -> networks.Networks:
    return networks.create(architectures.build("ConvNet", data.shape, data.n_classes, width=width), seeds)


def some_test_images(data: ImageData, n: int) -> tuple[Tensor, Tensor]:
    """Evenly spaced, so that no order of classes matters."""
    rows = torch.linspace(0, len(data.test_y) - 1, min(n, len(data.test_y))).long()
    return data.test_x[rows], data.test_y[rows]


def recipe(updates: int) -> Recipe:
    return Recipe(updates=updates, batch_size=None, learning_rate=0.01, momentum=0.9)


# Both ways ------------------------------------------------------------------------------------------------------------


def published_network(first: ConvNet, x: Tensor, y: Tensor, left_out: int, updates: int) -> ConvNet:
    """One network of the loop; ``left_out`` beyond the set leaves nothing out."""
    net = copy.deepcopy(first)
    kept = [i for i in range(len(x)) if i != left_out]
    x, y = torch.stack([x[i] for i in kept]), torch.stack([y[i] for i in kept])
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for _ in range(updates):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net


@torch.no_grad()
def published_losses(net: ConvNet, x: Tensor, y: Tensor) -> Tensor:
    parts = [F.cross_entropy(net(a), b, reduction="none") for a, b in zip(x.split(256), y.split(256), strict=True)]
    return torch.cat(parts)


def plain(first: networks.Networks) -> ConvNet:
    a = first.architecture
    net = ConvNet(a.channels, a.size, a.classes, a.width).to(first.state["head.weight"].dtype)  # type: ignore[attr-defined]
    net.load_state_dict({name: t[0] for name, t in first.state.items()})
    return net


def published(settings: Settings) -> dict[str, Task]:
    """Tasks of a process that works the published way."""
    data, one = inputs(settings)
    net, test = plain(start(data, settings.width)), some_test_images(data, settings.test_images)
    left_out = [*range(settings.members - 1), len(one)]

    def loop() -> None:
        for j in left_out:
            published_network(net, one.x, one.y, j, settings.updates)

    def losses() -> None:
        published_losses(net, *test)

    return {"networks": loop, "losses": losses}


def ours(settings: Settings) -> dict[str, Task]:
    """Tasks of a process that uses the package."""
    data, one = inputs(settings)
    net, test, n = start(data, settings.width), some_test_images(data, settings.test_images), len(one)
    masks = [*~torch.eye(n, dtype=torch.bool)[: settings.members - 1], torch.ones(n, dtype=torch.bool)]

    def train() -> None:
        members = net[[0] * len(masks)]
        compute = Compute(compiled=settings.compiled)
        training.train(members, one.x, one.y, recipe(settings.updates), [0] * len(masks), masks, compute=compute)

    def losses() -> None:
        influence.each_loss(net, *test)

    def gradients() -> Tensor:
        return influence_estimates.each_gradient(net, one.x, one.y, influence_estimates.loss)

    damping = influence_estimates.default_damping(recipe(PUBLISHED_UPDATES), n)
    kept: dict[str, Tensor] = {}

    def once() -> None:
        kept["v"] = influence_estimates.influence_directions(net, one.x, one.y, gradients(), damping)

    def products() -> None:
        influence_estimates.products(net, *test, kept["v"])

    tasks: dict[str, Task] = {"networks": train, "losses": losses, "screening": once, "products": products}
    return tasks | {"facts": lambda: [len(one), len(data.test_y)], "worth": partial(worth, settings)}


def worth(settings: Settings) -> dict[str, object]:
    """How well each estimate tells exact influences, and what it gains over the gradient dot product."""
    data, one = inputs(settings)
    seeds, test = range(settings.worth_seeds), some_test_images(data, settings.worth_test_images)
    fresh, how = start(data, settings.worth_width, seeds), recipe(settings.worth_updates)
    exact = influence.leave_one_out(fresh, one.x, one.y, *test, how)
    found = influence_estimates.estimate(fresh, one.x, one.y, *test, how, seeds)
    scores = influence_estimates.scored(found, exact, one, data, fresh.architecture.name, seeds)
    rows = []
    for value in ("spearman", "pearson"):
        each = scores.groupby(["estimator", "network_seed"], sort=False)[value].mean()
        for what, values in (("correlation", each), ("gain over the dot product", each - each[DOT])):
            summary = intervals.summarise(values.reset_index(), ["estimator"], value, ["network_seed"])
            rows.append(summary[["estimator", "mean", "low", "high"]].assign(of=value, what=what))
    both = pd.concat(rows, ignore_index=True)[["of", "what", "estimator", "mean", "low", "high"]]
    kept = ~((both["what"] != "correlation") & (both["estimator"] == DOT))
    return {
        "rows": both[kept].astype(object).where(both.notna(), None).to_dict("records"),
        "data": f"{data.name}, {data.pixel_source}",
        "set": one.name,
        "network": fresh.architecture.name,
        "damping": influence_estimates.default_damping(how, len(one)),
        "each initialisation": scores.groupby(["estimator", "network_seed"])[["spearman", "pearson"]]
        .mean().reset_index().to_dict("records"),
    }  # fmt: skip


# One run --------------------------------------------------------------------------------------------------------------


def jobs(workers: dict[tuple[str, str], Worker], settings: Settings) -> list[Job]:
    """Every timing of one round."""
    updates, images = settings.members * settings.updates, settings.test_images
    units = {"networks": updates, "losses": images, "screening": 1, "products": images}
    found = []
    for task, own in units.items():
        for way in ("published", "ours") if task in ("networks", "losses") else ("ours",):
            found += [Job(f"{way}/{task}/{a}", workers[way, a], task, own) for a in ALLOCATORS]
    return found


def left_out(seconds: dict[str, list[float]], n: int, tests: int) -> list[dict[str, object]]:
    """Seconds of an update and of a loss, their ratio, and all of leave-one-out, extrapolated."""
    rows = []
    for column, (theirs, mine, bar) in COLUMNS.items():
        slow, fast = seconds[f"published/networks/{theirs}"], seconds[f"ours/networks/{mine}"]
        whole = {
            way: extrapolated(seconds, way, allocator, n, tests)
            for way, allocator in (("published", theirs), ("ours", mine))
        }
        row: dict[str, object] = {"column": column}
        row |= {"published s an update": statistics.median(slow), "ours s an update": statistics.median(fast)}
        row |= ratio(slow, fast) | {"bar": bar, "reached": None}
        if bar is not None:
            row["reached"] = statistics.median(slow) >= bar * statistics.median(fast)
        row |= {f"{way}, all, extrapolated s": whole[way] for way in whole}
        rows.append(row | {"ratio of these": whole["published"] / whole["ours"]})
    return rows


def extrapolated(seconds: dict[str, list[float]], way: str, allocator: str, n: int, tests: int) -> float:
    """Seconds of n + 1 networks of 300 updates and of their losses on all test images."""
    update, loss = (statistics.median(seconds[f"{way}/{task}/{allocator}"]) for task in ("networks", "losses"))
    return (n + 1) * (PUBLISHED_UPDATES * update + tests * loss)


def screening(seconds: dict[str, list[float]], n: int, tests: int) -> list[dict[str, object]]:
    """Seconds of the influence function for all images, against leave-one-out, ours and published."""
    rows = []
    for column, (theirs, mine, _) in COLUMNS.items():
        middle = {task: statistics.median(seconds[f"ours/{task}/{mine}"]) for task in ("screening", "products")}
        own = middle["screening"] + tests * middle["products"]
        network = PUBLISHED_UPDATES * statistics.median(seconds[f"ours/networks/{mine}"])
        exact = extrapolated(seconds, "ours", mine, n, tests)
        row = {"column": column, "of the set s": middle["screening"], "all, extrapolated s": own}
        row |= {"our leave-one-out over it": exact / own, "and its network": exact / (own + network)}
        row["published over it"] = extrapolated(seconds, "published", theirs, n, tests) / own
        rows.append(row | {"bar": SCREENING_BAR, "reached": exact >= SCREENING_BAR * own})
    return rows


def measure(settings: Settings) -> dict[str, object]:
    where = environment(settings.threads)
    with ExitStack() as stack:
        workers = {
            (way.__name__, allocator): stack.enter_context(
                Worker(way, settings, allocator=allocator, threads=settings.threads)
            )
            for way in (published, ours)
            for allocator in ALLOCATORS
        }
        work = jobs(workers, settings)
        first = {job.label: job.worker.run(job.task)[0] for job in work}  # warm, and ours compiled
        seconds = interleave(work, settings.rounds)
        n, tests = workers["ours", "kept"].run("facts")[1]
        found = workers["ours", "kept"].run("worth")[1]
    return {
        "environment": where,
        "settings": asdict(replace(settings, root="", set=Path(settings.set).name)),
        "images of the set": n,
        "test images": tests,
        "leave-one-out": left_out(seconds, n, tests),
        "screening": screening(seconds, n, tests),
        "what estimates are worth": found,
        "first call seconds": first,
        "seconds": seconds,
    }


def show(result: dict) -> str:
    """The tables of a result in Markdown."""
    names = {None: None, True: "yes", False: "NO"}
    timed = [[row | {"reached": names[row["reached"]]} for row in result[k]] for k in ("leave-one-out", "screening")]
    return "\n\n".join(table(rows) for rows in (*timed, result["what estimates are worth"]["rows"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="leave-one-out influence, ours against the published way; estimates")
    parser.add_argument("--root", required=True, help="folder that holds the dataset")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--dataset", default="cifar10", help="of 32 x 32 images, as the published ConvNet takes")
    parser.add_argument("--set", default="", help="a distilled set; real images without one")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--worth-width", type=int, default=16, help="of the network whose influences are all exact")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="two small rounds: shows that it runs, measures nothing")
    given = parser.parse_args()
    if min(given.width, given.worth_width, given.rounds, given.threads) < 1:
        parser.error("width, worth-width, rounds and threads must be at least 1")
    settings = Settings(
        given.root, given.set, given.dataset, given.width, rounds=given.rounds, threads=given.threads,
        worth_width=given.worth_width,
    )  # fmt: skip
    if given.quick:
        settings = replace(
            settings, width=4, ipc=1, members=3, updates=2, test_images=50, rounds=2, compiled=False, worth_width=4,
            worth_updates=5, worth_test_images=50,
        )  # fmt: skip
    result = measure(settings)
    write_json(given.out, result)
    print(show(result))


if __name__ == "__main__":
    main()
