"""Outer steps of dataset distillation and of label distillation as their published code takes them, in plain PyTorch.

LeNet on one vector of weights, or on a list of them, is a plain function: no module is taken apart at every call, which
spares the published way a little. Draws are the caller's, so that ours can be given the same ones.

Dataset distillation (Wang et al. 2018) walks the steps for one network after the other and keeps a graph of every step;
then goes back through them. The graphs of a network are freed before the next one, the gradients of its images, one of
every step, are kept until all networks are done. The code of Sucholutsky and Schonlau 2019 that builds on it keeps the
graphs of all networks: ``alive``.

Label distillation, second order (Bohdal et al. 2020): back-propagation through a look-ahead step, into everything that
has a gradient, and the network's own gradient by another pass through the graph of the look-ahead.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from ddanalysis.data import ImageData
from ddanalysis.distill import Job
from ddanalysis.distill.dataset_distillation import step_order
from ddanalysis.distill.label_loop import Task

Labelled = tuple[Tensor, Tensor]
Fresh = Callable[[int], Tensor]  # of the number of a network: its weights, one vector
SHAPES = (
    (6, 1, 5, 5), (6,), (16, 6, 5, 5), (16,), (120, 400), (120,), (84, 120), (84,), (10, 84), (10,),
)  # fmt: skip


def lenet(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Logits (n, 10) of images (n, 1, 28, 28); the order of the weights is that of ``SHAPES``, and the package's."""
    x = F.max_pool2d(F.relu(F.conv2d(x, *weights[:2], padding=2)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, *weights[2:4])), 2)
    x = F.relu(F.linear(x.flatten(1), *weights[4:6]))
    return F.linear(F.relu(F.linear(x, *weights[6:8])), *weights[8:])


def unflat(weights: Tensor) -> list[Tensor]:
    parts = weights.split([math.prod(shape) for shape in SHAPES])
    return [part.view(shape) for part, shape in zip(parts, SHAPES, strict=True)]


def drawn(device: str = "cpu") -> Fresh:
    """Networks as dataset distillation draws them anew for every outer step: Xavier, biases 0."""
    generator = torch.Generator().manual_seed(0)

    def fresh(_: int) -> Tensor:
        weights = torch.zeros(sum(math.prod(shape) for shape in SHAPES))
        for part in unflat(weights):
            if part.ndim > 1:
                nn.init.xavier_normal_(part, generator=generator)
        return weights.to(device)

    return fresh


# Dataset distillation -------------------------------------------------------------------------------------------------

Step = tuple[Tensor, Tensor, Tensor]  # images, labels and size


@dataclass
class Distillation:
    """What is learned, and its optimiser: a batch of images for each step, and a step size before the softplus for each
    step of each pass.
    """

    images: list[Tensor]
    labels: list[Tensor]
    raw: Tensor  # (T, 1)
    passes: int
    optimiser: torch.optim.Optimizer

    def steps(self) -> list[Step]:
        sizes = F.softplus(self.raw).unbind()
        pairs = [*zip(self.images, self.labels, strict=True)] * self.passes
        return [(x, y, size) for (x, y), size in zip(pairs, sizes, strict=True)]


@dataclass
class Way:
    """One network's way there: the loss of its end, its weights before every step and after the last, and gradients."""

    loss: Tensor
    weights: list[Tensor]
    gradients: list[Tensor]  # times the step size, each with its graph


def begin_distillation(job: Job, steps: int, passes: int, step_size: float = 0.02) -> Distillation:
    """The start of the package's method with the same settings."""
    order = step_order(job.data.n_classes, job.ipc, steps, 1)
    x = job.noise().to(job.data.train_x)
    images, labels = [x[rows].requires_grad_() for rows in order], [job.labels()[rows] for rows in order]
    raw = x.new_full((steps * passes, 1), step_size).expm1().log().requires_grad_()
    return Distillation(images, labels, raw, passes, torch.optim.Adam([*images, raw], lr=0.01, betas=(0.5, 0.999)))


def there(weights: Tensor, steps: Sequence[Step], real: Labelled) -> Way:
    path, gradients = [weights.detach().requires_grad_()], []
    for x, y, size in steps:
        loss = F.cross_entropy(lenet(unflat(path[-1]), x), y)
        (gradient,) = torch.autograd.grad(loss, path[-1], size.squeeze(), create_graph=True)
        gradients.append(gradient)
        path.append((path[-1] - gradient).detach().requires_grad_())
    return Way(F.cross_entropy(lenet(unflat(path[-1]), real[0]), real[1]), path, gradients)


def back(way: Way, steps: Sequence[Step], alive: bool) -> list[tuple[Tensor, Tensor]]:
    """The gradients in the images and the size of every step, the last step first: one product with each graph."""
    (into_weights,) = torch.autograd.grad(way.loss, way.weights[-1], retain_graph=alive)
    found = []
    for (x, _, size), before, gradient in reversed([*zip(steps, way.weights[:-1], way.gradients, strict=True)]):
        product, into_x, into_size = torch.autograd.grad(gradient, [before, x, size], -into_weights, retain_graph=alive)
        found.append((into_x, into_size))
        into_weights += product
    return found


def distillation_step(own: Distillation, count: int, fresh: Fresh, real: Labelled, alive: bool = False) -> Tensor:
    """One outer step with ``count`` networks, and their mean loss; the gradients stay with what is learned."""
    own.optimiser.zero_grad()
    steps, losses, found, kept = own.steps(), [], [], []
    for k in range(count):
        way = there(fresh(k), steps, real)
        losses.append(way.loss.detach())
        found.append(back(way, steps, alive))
        if alive:
            kept.append(way)
        del way
    for x in own.images:
        x.grad = torch.zeros_like(x)
    for gradients in found:
        for (x, _, _), (into_x, _) in zip(reversed(steps), gradients, strict=True):
            x.grad += into_x
    sizes = [size for gradients in found for _, _, size in reversed(steps)]
    torch.autograd.backward(sizes, [into_size for gradients in found for _, into_size in gradients])
    for tensor in (*own.images, own.raw):
        tensor.grad /= count
    own.optimiser.step()
    return torch.stack(losses).mean()


# Label distillation ---------------------------------------------------------------------------------------------------


@dataclass
class LabelLearning:
    """Base images, their labels that are learned, the network that trains on them, and both optimisers."""

    x: Tensor
    y: Tensor
    weights: list[Tensor]
    label_optimiser: torch.optim.Optimizer
    network_optimiser: torch.optim.Optimizer


def begin_labels(task: Task) -> LabelLearning:
    """The start of a task of the package."""
    y = task.begin.clone().requires_grad_()
    weights = [part.clone().requires_grad_() for part in unflat(task.network(0)["network"].weights[0])]
    optimisers = torch.optim.Adam([y], lr=task.own["rate"]), torch.optim.Adam(weights, lr=task.own["network_rate"])
    return LabelLearning(task.x, y, weights, *optimisers)


def label_step(own: LabelLearning, rows: Tensor, real: Labelled, rate: float = 0.01) -> tuple[Tensor, list[float]]:
    """One outer step with the base images of ``rows``: the gradient in the labels; the loss, the error and the loss on
    the base images.
    """
    inner = -(own.y[rows] * lenet(own.weights, own.x[rows]).log_softmax(1)).sum(1).mean()
    gradients = torch.autograd.grad(inner, own.weights, create_graph=True)
    ahead = [w - rate * g for w, g in zip(own.weights, gradients, strict=True)]
    logits = lenet(ahead, real[0])
    loss = F.cross_entropy(logits, real[1])
    own.label_optimiser.zero_grad()
    loss.backward(retain_graph=True)  # into the network too
    found = own.y.grad.clone()
    own.label_optimiser.step()
    with torch.no_grad():
        own.y.data = own.y.data.clamp(0, 1)
        own.y.data = own.y.data / own.y.data.sum(1, keepdim=True)
    own.network_optimiser.zero_grad()
    inner.backward()
    own.network_optimiser.step()
    return found, [loss.item(), float((logits.argmax(1) != real[1]).double().mean()), inner.item()]


class Decoded(Dataset):
    """Grey images kept as bytes; each becomes a PIL image and a normalised tensor every time it is asked for."""

    def __init__(self, data: ImageData) -> None:
        self.pixels, self.y = data.denormalise(data.train_x)[:, 0].mul(255).round().byte().cpu(), data.train_y
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(data.mean, data.std)])

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[i].numpy())), int(self.y[i])


def loader(task: Task) -> DataLoader:
    """Batches of a task's target images in random order, loaded in the same process."""
    images = Subset(Decoded(task.job.data), task.rows.tolist())
    return DataLoader(images, task.own["batch_real"], shuffle=True, num_workers=0)


def label_steps(own: LabelLearning, batches: Iterable[Labelled], count: int) -> None:
    """``count`` outer steps, one for each of the first batches of target images, half of the base images in each."""
    for real in islice(batches, count):
        x, y = (t.to(own.x.device) for t in real)
        label_step(own, torch.randperm(len(own.x))[: len(own.x) // 2], (x, y))
