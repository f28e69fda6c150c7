"""Do networks that have learned real data recognise distilled sets? (Yang et al. 2024, section 3, Fig. 2)

The reference networks are trained here on all real training images, or read from a state dict that the user names. The
published figure has one network of each kind, and its legend has two of them exchanged (:data:`PUBLISHED_LEGEND`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd
import torch

from ddanalysis import architectures, artefacts, checks, networks, published, training
from ddanalysis.architectures import ZOO, Architecture
from ddanalysis.architectures.resnet import ResNet
from ddanalysis.compute import Compute
from ddanalysis.data import ImageData, hold_out
from ddanalysis.distilled import DistilledSet, fits
from ddanalysis.evaluation import NO_FLIP
from ddanalysis.networks import Networks
from ddanalysis.report import Run
from ddanalysis.seeding import stream_seed
from ddanalysis.state_dicts import read_state
from ddanalysis.store import Checkpoint, Tensors
from ddanalysis.training import Recipe

NAMES = ("ConvNet-Tiny", "ConvNet", "ResNet18", "ResNet34")
"""The published reference networks."""

PUBLISHED_LEGEND = {
    "ResNet18": "ConvNet-Tiny",
    "ConvNet": "ConvNet",
    "ConvNet-Tiny": "ResNet-18",
    "ResNet34": "ResNet-32",
}
"""What the legend of the published figure calls the bars of each network: two are exchanged, one is a misprint."""

PUBLISHED_EPOCHS = {"ConvNet-Tiny": 20, "ConvNet": 40}
"""Of the networks whose training is published: batches of 256, SGD 0.01, momentum 0.9, nothing else."""

HELD_OUT = 0.1
"""Share of the training images of each class that decides when training stops; the test images never do."""


# ------------------------------------------------------------------------------------------------- which networks


@dataclass(frozen=True)
class Reference:
    """A kind of network for real data. ``name`` is what tables print.

    Training follows ``recipe`` to its end, or, with a ``stop_at`` above 0, to the first epoch after which the accuracy
    on held-out training images has reached it (a share of 1). With a ``path`` the network is read from that state dict
    instead.
    """

    name: str
    architecture: Architecture
    recipe: Recipe
    stop_at: float = 0.0
    path: str = ""

    def __post_init__(self) -> None:
        checks.at_least(f"stop_at of {self.name}", self.stop_at, 0)
        if self.stop_at > 1:
            raise ValueError(f"stop_at of {self.name} is {self.stop_at}: it must be a share of 1")
        if self.stop_at and not self.recipe.epochs:
            raise ValueError(f"stop_at of {self.name} is {self.stop_at}: its recipe must have epochs to stop after")


def reference(
    name: str, data: ImageData, stop_at: float | None = None, epochs: int = 0, path: str = "", **options: object
) -> Reference:
    """The reference network ``name`` of the zoo for ``data``, trained as published unless told otherwise.

    ``options`` change the architecture (:func:`architectures.build`); ``epochs`` 0 is that of :func:`recipe`.
    ``stop_at`` None is the published accuracy where the training is not published (ResNets, CIFAR-10) and 0, to the
    end, elsewhere. Raises ``ValueError`` for an unknown name or option or an impossible accuracy.
    """
    architecture = architectures.build(name, data.shape, data.n_classes, **options)
    if stop_at is None:
        stop_at = 0.0 if name in PUBLISHED_EPOCHS else published_accuracy(name, data.name)
    called = _called(name, architecture, architectures.build(name, data.shape, data.n_classes))
    return Reference(called, architecture, recipe(name, data.name, epochs), stop_at, path)


def _called(name: str, own: Architecture, published: Architecture) -> str:
    """The zoo's ``name`` and what is not as published: ``ConvNet-Tiny-D2``, ``ResNet18-W16``."""
    if own == published:
        return name
    if isinstance(own, ResNet) and isinstance(published, ResNet) and own.widths != published.widths:
        return f"{own.name}-W{own.widths[0]}"
    changed = own.name.startswith(f"{published.name}-")
    return f"{name}{own.name.removeprefix(published.name)}" if changed else own.name


def recipe(name: str, dataset: str, epochs: int = 0) -> Recipe:
    """How the reference network ``name`` is trained.

    ConvNets as published. The ResNets' recipe is not: SGD 0.01 with momentum 0.9 as all networks of the paper, batches
    of 128, weight decay 5e-4, 100 epochs with a tenth of the rate after 60 and 80 % of them, and crops or flips (no
    flips of characters), so that accuracy rises slowly enough to be stopped at a given one.
    """
    checks.one_of("network", name, ZOO)
    checks.whole("epochs", epochs, 0)
    if name in PUBLISHED_EPOCHS:
        return Recipe(epochs=epochs or PUBLISHED_EPOCHS[name])
    epochs = epochs or 100
    milestones = (round(0.6 * epochs), round(0.8 * epochs))
    augment = "crop" if dataset.split("-")[0] in NO_FLIP else "crop_flip"
    return Recipe(epochs=epochs, batch_size=128, weight_decay=5e-4, milestones=milestones, augment=augment)


def published_accuracy(name: str, dataset: str) -> float:
    """The published test accuracy of the reference network ``name``, 0 where none is: .684, .809, .908, .928."""
    table = published.load()
    table = table[
        (table["place"] == "Fig. 2 notebook") & (table["quantity"] == "accuracy") & (table["network"] == name)
    ]
    found = table.loc[table["dataset"] == dataset.split("-")[0], "value"]
    return float(found.iloc[0]) if len(found) else 0.0


# --------------------------------------------------------------------------------------------------- training them


class _Reached(Exception):
    """Training has come to the accuracy it was to stop at."""


def train(
    one: Reference,
    data: ImageData,
    seed: int,
    compute: Compute = Compute(),
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int], object] | None = None,
) -> Tensors:
    """Train one network on the training images of ``data``; the test images are not looked at.

    Returns its ``state/<name>`` (1, ...), the ``epochs`` done (1,) int64, and ``held_out`` (1,) float64, the accuracy
    on the held-out images after the last of them (NaN without a ``stop_at``, where all images are learned). It is at
    least ``stop_at`` unless the recipe ended before.
    """
    own = stream_seed(seed, "reference network")
    rest, kept = hold_out(data, HELD_OUT, own) if one.stop_at else (data, None)
    net = networks.create(one.architecture, [own], device=data.train_x.device, dtype=data.train_x.dtype)
    size = one.recipe.batches_per_epoch(len(rest.train_y))
    total = one.recipe.total_updates(len(rest.train_y))
    epochs, accuracy = _epochs_done(checkpoint, size), float("nan")

    def look(now: Networks) -> Tensors:
        nonlocal net, epochs, accuracy
        if kept is not None:
            net, epochs, accuracy = now, epochs + 1, float(now.evaluate(*kept, compute).accuracy[0])
            if accuracy >= one.stop_at:
                raise _Reached
        return {"held_out": torch.tensor([accuracy], dtype=torch.float64)}

    at = range(size, total + 1, size) if one.stop_at else [total]
    try:
        trained = training.train(
            net, rest.train_x, rest.train_y, one.recipe, [own], None, look, at, compute, checkpoint, progress
        )
        net, epochs, accuracy = trained.networks, total // size, float(trained.observed["held_out"][0, -1])
    except _Reached:
        pass
    facts = {"epochs": torch.tensor([epochs]), "held_out": torch.tensor([accuracy], dtype=torch.float64)}
    return {f"state/{name}": t for name, t in net.state.items()} | facts


def _epochs_done(checkpoint: Checkpoint | None, size: int) -> int:
    """How many epochs of ``size`` updates a training that is resumed from ``checkpoint`` has looked at."""
    saved = checkpoint.child(0).load() if checkpoint else None  # of the first, and only, networks trained together
    return int(saved["update"]) // size if saved else 0


@dataclass(frozen=True)
class Pretrained:
    """Networks (K) of one kind that have learned the real data, or one (K = 1, seed 0) read from a file.

    ``table`` has a row a network: dataset, network, network_seed, source ("trained" or the path), stop_at, epochs and
    held_out_accuracy (both missing where there is none).
    """

    name: str
    networks: Networks
    seeds: list[int]
    table: pd.DataFrame


def pretrained(
    run: Run, data: ImageData, one: Reference, network_seeds: Sequence[int], compute: Compute = Compute()
) -> Pretrained:
    """The networks of a kind: read from the state dict it names, else one trained for each seed, each kept."""
    what = {"dataset": data.name, "network": one.name, "source": one.path or "trained", "stop_at": one.stop_at}
    if one.path:
        net = read_state(one.path, one.architecture).to(data.train_x.dtype).to(data.train_x.device)
        table = pd.DataFrame([what | {"stop_at": 0.0, "epochs": None, "held_out_accuracy": float("nan")}])
        seeds = [0]
    else:
        found = [_kept(run, data, one, seed, compute) for seed in network_seeds]
        names = [name for name in found[0] if name.startswith("state/")]
        state = {name.removeprefix("state/"): torch.cat([t[name] for t in found]) for name in names}
        net, seeds = Networks(one.architecture, state).to(data.train_x.device), list(network_seeds)
        facts = {
            "epochs": [int(t["epochs"]) for t in found],
            "held_out_accuracy": [float(t["held_out"]) for t in found],
        }
        table = pd.DataFrame(facts).assign(**what)
    columns = ["dataset", "network", "network_seed", "source", "stop_at", "epochs", "held_out_accuracy"]
    return Pretrained(one.name, net, seeds, table.assign(network_seed=seeds).astype({"epochs": "Int64"})[columns])


def every_kind(
    run: Run,
    data: ImageData,
    names: Sequence[str],
    network_seeds: Sequence[int],
    epochs: Mapping[str, int],
    stop_at: Mapping[str, float] | None = None,
    paths: Mapping[str, str] | None = None,
    depth: int = 0,
    resnet_width: int = 0,
    compute: Compute = Compute(),
) -> list[Pretrained]:
    """:func:`pretrained` networks of each kind in ``names``; what a mapping leaves out is that of :func:`reference`.

    ``depth`` is that of the ConvNets, ``resnet_width`` that of the ResNets' first stage; 0 is the published one.
    """
    found = []
    for name in names:
        options: dict[str, object] = {"depth": depth} if name.startswith("ConvNet") else {}
        if resnet_width and name.startswith("ResNet"):
            options = {"widths": tuple(resnet_width * 2**stage for stage in range(4))}
        limit, path = (stop_at or {}).get(name), (paths or {}).get(name, "")
        found.append(reference(name, data, limit, epochs.get(name, 0), path, **options))
    return [pretrained(run, data, one, network_seeds, compute) for one in found]


def _kept(run: Run, data: ImageData, one: Reference, seed: int, compute: Compute) -> Tensors:
    arguments = {
        "network": repr(one.architecture),
        "recipe": asdict(one.recipe),
        "stop_at": one.stop_at,
        "held_out": HELD_OUT if one.stop_at else 0,
        "seed": seed,
        "compute": asdict(compute),
    }

    def build(checkpoint: Checkpoint | None, progress: Callable[[int], object] | None) -> Tensors:
        return train(one, data, seed, compute, checkpoint, progress)

    name = f"{one.name}_{data.name}_s{seed}"
    return artefacts.artefact(run, "pretrained", name, data, "pretrained.train", 1, arguments, build)


# --------------------------------------------------------------------------------------------------- recognising


def recognise(
    nets: Networks, sets: Sequence[DistilledSet], data: ImageData, compute: Compute = Compute()
) -> torch.Tensor:
    """Accuracy of every network on the real test images, column 0, and on every set: (K, 1 + sets) float64."""
    for one in sets:
        fits(one, data)
    tested = nets.evaluate(data.test_x, data.test_y, compute).accuracy[:, None]
    if not sets:
        return tested.cpu()
    x, y = torch.cat([s.x for s in sets]).to(data.train_x), torch.cat([s.labels() for s in sets]).to(data.train_y)
    right = (nets.evaluate(x, y, compute).predictions == y).double()
    return torch.cat(
        [tested, *(part.mean(1, keepdim=True) for part in right.split([len(s) for s in sets], 1))], 1
    ).cpu()


def recognition_table(
    accuracy: torch.Tensor, nets: Pretrained, sets: Sequence[DistilledSet], data: ImageData
) -> pd.DataFrame:
    """What :func:`recognise` found: dataset, method, ipc, network, set_seed, network_seed, accuracy, images.

    ``images`` is their number. The rows of the test images have method "real", no ipc and no set_seed.
    """
    what: list[dict[str, object]] = [{"method": "real", "ipc": None, "set_seed": None, "images": len(data.test_y)}]
    what += [{"method": s.method, "ipc": s.ipc, "set_seed": s.seed, "images": len(s)} for s in sets]
    index = pd.MultiIndex.from_product([nets.seeds, range(len(what))], names=["network_seed", "column"])
    table = pd.DataFrame({"accuracy": accuracy.flatten().numpy()}, index=index).reset_index()
    table = table.join(pd.DataFrame(what).astype({"ipc": "Int64", "set_seed": "Int64"}), on="column")
    columns = ["dataset", "method", "ipc", "network", "set_seed", "network_seed", "accuracy", "images"]
    return table.assign(dataset=data.name, network=nets.name)[columns]


def recognised(
    run: Run, data: ImageData, nets: Sequence[Pretrained], sets: Sequence[DistilledSet], compute: Compute = Compute()
) -> pd.DataFrame:
    """:func:`recognise` for each kind of network, kept as an artefact; the table ``recognition_pretrained``."""
    names = [own.name for own in nets]
    if len(set(names)) != len(names):
        raise ValueError(f"the networks are called {', '.join(names)}: each needs a name of its own")
    tables = []
    for own in nets:
        arguments = {
            "networks": fingerprint(own.networks),
            "sets": [artefacts.fingerprint(one) for one in sets],
            "compute": asdict(compute),
        }

        def build(_: Checkpoint | None, progress: object, own: Pretrained = own) -> Tensors:
            return {"accuracy": recognise(own.networks, sets, data, compute)}

        name = f"pretrained_{data.name}_{own.name}"
        found = artefacts.artefact(run, "recognition", name, data, "pretrained.recognise", 1, arguments, build)
        tables.append(recognition_table(found["accuracy"], own, sets, data))
    return pd.concat(tables, ignore_index=True)


def fingerprint(nets: Networks) -> str:
    """16 hex digits of a sha256 over the state of networks and what they are."""
    return artefacts.digest(nets.state, repr(nets.architecture))
