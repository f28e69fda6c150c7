"""Real images in place of those of a set made step by step (Wang et al. 2018, section 4 and their code).

Each baseline is a set of as many images, walked in as many steps and passes, at one rate that is chosen on training
images. Labels are those of the images: in the published code of soft labels (Sucholutsky and Schonlau 2019) they are
in another order than the images wherever a step has several of a class, and exchanged where there are two classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ddanalysis import artefacts, checks, makers, store
from ddanalysis.analysis import held_out
from ddanalysis.analysis.held_out import Examiner, Replay
from ddanalysis.architectures import Architecture
from ddanalysis.compute import Compute
from ddanalysis.distill.baselines import class_mean, k_means, random_images
from ddanalysis.distill.dataset_distillation import step_order
from ddanalysis.distill.making import Job, Made, Progress
from ddanalysis.distilled import DistilledSet, assemble, describe
from ddanalysis.networks import Networks
from ddanalysis.seeding import stream_seed
from ddanalysis.store import Checkpoint, Tensors

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3)
"""The rates that are tried; of the published choice an example with 0.3 is recorded, and for text .001 to .3."""

NEIGHBOURS = ((1, 1.0), (1, 2.0), (3, 1.0), (3, 2.0))
"""The numbers of neighbours and the norms that are tried, the first named in the published examples."""


def average_images(job: Job) -> Made:
    """The mean image of each class, ``ipc`` times, as published."""
    means = class_mean(replace(job, ipc=1)).x
    return Made(means.repeat_interleave(job.ipc, 0), job.labels())


REAL: dict[str, Callable[[Job], Made]] = {
    "random real": random_images,
    "k-means": k_means,
    "average real": average_images,
}
"""What gives the images of each baseline but "optimised real", which is a choice among random ones."""


def scheduled(one: DistilledSet, steps: int, passes: int, rate: float) -> DistilledSet:
    """A class-major set with hard labels as one that is walked step by step, at one ``rate``.

    Raises ``ValueError`` for a set of another kind, steps that do not divide its images a class, or a rate not above 0.
    """
    for what, value in (("steps", steps), ("passes", passes)):
        checks.whole(what, value)
    wanted = torch.arange(one.n_classes, device=one.y.device).repeat_interleave(one.ipc)
    if one.y.ndim > 1 or not torch.equal(one.y, wanted):
        raise ValueError(f"{one.name} has not {one.ipc} images a class with hard labels, class by class")
    order = step_order(one.n_classes, one.ipc, steps, passes).to(one.x.device)
    rates = torch.tensor([rate], dtype=torch.float32, device=one.x.device)
    return replace(one, order=order, learning_rates=rates)


def real_set(baseline: str, job: Job, steps: int, passes: int, rate: float) -> DistilledSet:
    """A baseline of ``REAL`` as a set that is walked step by step; ``job.ipc`` images a class in all steps together."""
    checks.one_of("baseline", baseline, REAL)
    made, data = REAL[baseline](job), job.data
    described = describe(
        n_classes=data.n_classes, mean=data.mean, std=data.std, method=baseline.replace(" ", "_"), dataset=data.name,
        ipc=job.ipc, seed=job.seed,
    )  # fmt: skip
    plain = assemble({"x": made.x.float(), "y": made.y}, described)
    return scheduled(replace(plain, whitening=data.whitening), steps, passes, rate)


def candidate(job: Job, number: int, steps: int, passes: int, rate: float) -> DistilledSet:
    """One of the sets of random real images among which the best are sought; its seed is its number."""
    own = replace(job, seed=stream_seed(job.seed, "candidate", number))
    return replace(real_set("random real", own, steps, passes, rate), seed=number, method="optimised_real")


def optimised_real(
    job: Job,
    steps: int,
    passes: int,
    rate: float,
    starts: Networks,
    x: Tensor,
    y: Tensor,
    candidates: int = 50,
    keep: int = 20,
    compute: Compute = Compute(),
) -> list[DistilledSet]:
    """The ``keep`` best of so many sets of random real images, the best first.

    What counts is the mean accuracy on training images ``x``, ``y`` of networks that begin as ``starts``, published
    20. Raises ``ValueError`` where more are to be kept than there are.
    """
    checks.whole("candidates of optimised real images", candidates)
    checks.whole("sets kept of optimised real images", keep)
    if keep > candidates:
        raise ValueError(f"{keep} sets of optimised real images are to be kept of {candidates} candidates")
    accuracy = []
    for number in range(candidates):
        one = candidate(job, number, steps, passes, rate)
        accuracy.append(held_out.after(one, starts, x, y, compute=compute).accuracy.mean())
        job.advance(len(starts))
    ranks = torch.stack(accuracy).argsort(descending=True, stable=True)[:keep]
    return [candidate(job, number, steps, passes, rate) for number in ranks.tolist()]


def chosen_sets(
    examiner: Examiner,
    baseline: str,
    architecture: Architecture,
    settings: Mapping[str, Any],
    ipc: int,
    set_seeds: Sequence[int],
    rates: Sequence[float] = RATES,
    candidates: int = 50,
) -> list[DistilledSet]:
    """A baseline for every seed, in the steps and passes of ``settings``, at the one of ``rates`` learned with best.

    That is by networks of these settings of dataset distillation, on training images, the mean over the sets. Of
    "optimised real" the r-th best set is that of the r-th seed; its rate is that of "random real".
    """
    if not rates or not all(rate > 0 for rate in rates):
        raise ValueError(f"rates are {list(rates)}: numbers above 0, at least 1, are needed")
    checks.one_of("baseline", baseline, [*REAL, "optimised real"])
    steps, passes = settings["steps"], settings["passes"]
    if baseline == "optimised real":
        plain = chosen_sets(examiner, "random real", architecture, settings, ipc, set_seeds, rates)
        return _optimised(examiner, plain, architecture, settings, set_seeds, candidates)
    if baseline == "k-means":  # which takes its time, and is kept
        made = makers.distilled_sets(
            examiner.run, examiner.data, architecture, ["k_means"], [ipc], set_seeds, {"k_means": {"ipc": [ipc]}}
        )
        sets = [scheduled(one, steps, passes, rates[0]) for one in made.sets]
    else:
        jobs = [examiner.job(architecture, seed, ipc) for seed in set_seeds]
        sets = [real_set(baseline, job, steps, passes, rates[0]) for job in jobs]
    replays = [Replay(rate=rate) for rate in rates]
    rate = examiner.chosen(sets, architecture, settings, set_seeds[0], replays).rate
    return [scheduled(one, steps, passes, rate) for one in sets]


def _optimised(
    examiner: Examiner,
    plain: Sequence[DistilledSet],
    a: Architecture,
    settings: Mapping[str, Any],
    set_seeds: Sequence[int],
    candidates: int,
) -> list[DistilledSet]:
    """The best candidates at the rate of ``plain`` sets of random real images; which they are is kept."""
    seed, ipc, rate = set_seeds[0], plain[0].ipc, float(plain[0].learning_rates[0])  # type: ignore[index]
    job, schedule = examiner.job(a, seed, ipc), (settings["steps"], settings["passes"], rate)

    def build(_: Checkpoint | None, progress: Progress | None) -> Tensors:
        x, y = held_out.training_images(examiner.data, held_out.CHOOSING_IMAGES, seed)
        found = optimised_real(
            replace(job, progress=progress), *schedule, examiner.choosers(a, settings, seed), x, y, candidates,
            len(set_seeds), examiner.compute,
        )  # fmt: skip
        return {"numbers": torch.tensor([one.seed for one in found])}

    arguments = {"ipc": ipc, "schedule": list(schedule), "candidates": candidates, "keep": len(set_seeds)}
    name = f"optimised_real_{examiner.data.name}_ipc{ipc}_{a.name}"
    numbers = examiner.keep(name, "real_baselines.optimised_real", a, settings, seed, arguments, build)["numbers"]
    pairs = zip(numbers.tolist(), set_seeds, strict=True)
    return [replace(candidate(job, number, *schedule), seed=own) for number, own in pairs]


def nearest_neighbours(one: DistilledSet, x: Tensor, neighbours: int, norm: float) -> Tensor:
    """The class (n,) int64 that most of the nearest images of a set have, of each image ``x``; the lower of equal ones.

    Distances are ``norm``-norms of differences of pixels in normalised space. Nothing is trained.
    """
    checks.whole("neighbours", neighbours)
    if not norm > 0:
        raise ValueError(f"norm of the neighbours is {norm}: it must be above 0")
    if neighbours > len(one):
        raise ValueError(f"{neighbours} neighbours of {len(one)} images in {one.name} are asked for")
    model = KNeighborsClassifier(neighbours, p=norm, algorithm="brute")
    model.fit(one.x.flatten(1).cpu().double().numpy(), one.labels().cpu().numpy())
    return torch.from_numpy(model.predict(x.flatten(1).cpu().double().numpy())).to(x.device)


def best_neighbours(
    sets: Sequence[DistilledSet], x: Tensor, y: Tensor, grid: Sequence[tuple[int, float]] = NEIGHBOURS
) -> tuple[int, float]:
    """The number of neighbours and the norm of ``grid`` that are right most often on training images ``x``, ``y``.

    An image that is in a set itself is left out there, since one neighbour would be right without having learned.
    Raises ``ValueError`` for an empty grid.
    """
    if not grid:
        raise ValueError("no neighbours and norms were given to choose among: at least 1 pair is needed")
    right = []
    for neighbours, norm in grid:
        own = [(nearest_neighbours(one, x, neighbours, norm) == y)[_strange(one, x)] for one in sets]
        right.append(torch.cat(own).double().mean())
    return grid[int(torch.stack(right).argmax())]


def _strange(one: DistilledSet, x: Tensor) -> Tensor:
    """Which of the images ``x`` are not in the set."""
    known = {image.numpy().tobytes() for image in one.x.cpu()}
    return torch.tensor([image.numpy().tobytes() not in known for image in x.cpu().to(one.x.dtype)], device=x.device)


def neighbour_accuracy(
    examiner: Examiner, sets: Sequence[DistilledSet], grid: Sequence[tuple[int, float]] = NEIGHBOURS
) -> tuple[int, float, Tensor]:
    """:func:`best_neighbours`, and the accuracy (sets,) float64 on all test images by each set with them; kept."""
    data = examiner.data

    def build(*_: object) -> Tensors:
        x, y = held_out.training_images(data, held_out.CHOOSING_IMAGES, sets[0].seed)
        own = best_neighbours(sets, x, y, grid)
        right = [(nearest_neighbours(one, data.test_x, *own) == data.test_y).double().mean() for one in sets]
        return {"accuracy": torch.stack(right).cpu(), "chosen": torch.tensor(grid.index(own))}

    arguments = {"sets": [artefacts.fingerprint(one) for one in sets], "grid": [list(pair) for pair in grid]}
    name = f"neighbours_{sets[0].name}_{artefacts.digest({}, store.canonical(arguments))[:8]}"
    found = artefacts.artefact(
        examiner.run, "trained", name, data, "real_baselines.neighbour_accuracy", 1, arguments, build
    )
    return *grid[int(found["chosen"])], found["accuracy"]
