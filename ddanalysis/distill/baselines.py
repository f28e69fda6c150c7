"""Real images, or averages of them, in place of distilled ones: what every distilled set must beat."""

import torch
from sklearn.cluster import KMeans

from ddanalysis import checks, networks, training
from ddanalysis.data import class_rows
from ddanalysis.distill.making import Job, Made
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.training import Recipe


def _rows(job: Job, c: int) -> torch.Tensor:
    """The training rows of class ``c``, at least ``ipc`` of them."""
    rows = class_rows(job.data.train_y, c)
    if len(rows) < job.ipc:
        raise ValueError(f"ipc is {job.ipc}: class {job.data.classes[c]!r} of {job.data.name} has {len(rows)} images")
    return rows


def random_images(job: Job) -> Made:
    """``ipc`` real training images a class; those of a smaller ipc are among those of a larger one."""
    return Made(job.real_images(), job.labels())


def class_mean(job: Job) -> Made:
    """The mean image of each class; for ``ipc`` > 1, of each of ``ipc`` random shares of the class."""
    means = []
    for c in range(job.data.n_classes):
        own = job.data.train_x[_rows(job, c)]
        order = torch.randperm(len(own), generator=generator(job.seed, "shares", c)).to(own.device)
        means += [own[share.sort().values].mean(0) for share in order.tensor_split(job.ipc)]
    return Made(torch.stack(means), job.labels())


def k_means(job: Job) -> Made:
    """The centres of ``ipc`` clusters of the pixels of each class (k-means++, the best of 3 starts)."""
    centres = []
    for c in range(job.data.n_classes):
        own = job.data.train_x[_rows(job, c)].flatten(1).cpu()
        seed = stream_seed(job.seed, "k-means", c) % 2**32
        found = KMeans(job.ipc, n_init=3, random_state=seed).fit(own.double().numpy()).cluster_centers_
        centres.append(torch.from_numpy(found).to(own.dtype))
    x = torch.cat(centres).view(-1, *job.data.shape).to(job.data.train_x.device)
    return Made(x, job.labels())


def herding(job: Job, epochs: int = 20) -> Made:
    """Real images picked one by one so that the mean of their features stays nearest to that of their class (Welling
    2009).

    Features are the penultimate ones of one network of the job's architecture, trained ``epochs`` epochs on the real
    training images (SGD 0.01, momentum 0.9, batch 256); 0 epochs leave it as initialised.
    """
    checks.whole("epochs of herding", epochs, 0)
    data, seed = job.data, stream_seed(job.seed, "herding network")
    net = networks.create(job.architecture, [seed], device=data.train_x.device)
    if epochs:
        recipe = Recipe(epochs=epochs)
        net = training.train(
            net, data.train_x, data.train_y, recipe, [seed], checkpoint=job.checkpoint, progress=job.progress
        ).networks
    rows = []
    for c in range(data.n_classes):
        own = _rows(job, c)
        rows.append(own[herd(net.all_features(data.train_x[own]), job.ipc)])
    return Made(data.train_x[torch.cat(rows)].clone(), job.labels())


def herd(features: torch.Tensor, n: int) -> torch.Tensor:
    """Rows of ``features`` (m, f), greedily: each keeps the running mean as near as it can be to the mean of all."""
    target, total, free = features.mean(0), torch.zeros_like(features[0]), torch.ones(len(features), dtype=torch.bool)
    picked: list[int] = []
    for count in range(1, n + 1):
        distance = ((total + features) / count - target).square().sum(1)
        best = int(distance.masked_fill(~free.to(distance.device), torch.inf).argmin())
        total, free[best] = total + features[best], False
        picked.append(best)
    return torch.tensor(picked, device=features.device)
