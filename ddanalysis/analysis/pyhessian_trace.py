"""The trace of the Hessian as PyHessian 0.1 estimates it, the library behind the published figure: for comparison."""

import math
import warnings
from collections.abc import Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddanalysis import artefacts, checks
from ddanalysis.analysis.pretrained import fingerprint
from ddanalysis.compute import slices
from ddanalysis.data import ImageData
from ddanalysis.distill.making import Progress
from ddanalysis.distilled import DistilledSet
from ddanalysis.networks import Networks
from ddanalysis.report import Run
from ddanalysis.seeding import stream_seed
from ddanalysis.store import Checkpoint, Tensors


class PlainModule(nn.Module):
    """The one network of ``network`` (K = 1) as other libraries want it: images (n, c, h, w) -> logits (n, classes).

    Its parameters are copies, in the order of :func:`ddanalysis.unroll.flat`. It computes in evaluation mode, whatever
    ``train()`` and ``eval()`` say.
    """

    def __init__(self, network: Networks) -> None:
        super().__init__()
        if len(network) != 1:
            raise ValueError(f"{len(network)} networks cannot be one module: pick one, networks[k]")
        self.architecture, self.names, self.rest = network.architecture, network.trainable(), dict(network.state)
        self.weights = nn.ParameterList(nn.Parameter(network.state[name].detach().clone()) for name in self.names)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        state = self.rest | dict(zip(self.names, self.weights, strict=True))
        return self.architecture.logits(state, x)[:, 0]


def pyhessian_trace(
    network: Networks,
    x: Tensor,
    y: Tensor,
    seed: int,
    probes: int = 100,
    batch_size: int = 256,
    early_stop: bool = True,
) -> Tensor:
    """PyHessian's values of v H v (n,) float64, n <= ``probes``; their mean is its estimate of the trace.

    The Hessian is that of :func:`ddanalysis.traces.trace`. ``early_stop`` is the library as it comes: it stops at
    probe n if (|mean_n - mean_(n-1)|) / (mean_(n-1) + 1e-6) < 1e-3. There is no absolute value below the line, so a
    negative running mean ends it at once, after as few as 2 probes, which is what the published figure has in its first
    states; and where the mean happens to move little says nothing of its error. Without it, all ``probes`` are taken.

    What PyHessian changes is undone: it draws from PyTorch's global generator, which is put back as it was; it leaves a
    module in evaluation mode, and its gradients in a cycle of references, which befalls a copy of the network alone,
    whose gradients are dropped.
    """
    import pyhessian  # slow to import, and only wanted here

    checks.whole("probes", probes)
    checks.whole("batch_size", batch_size)
    checks.images("images", x, (network.architecture.channels, network.architecture.size, network.architecture.size))
    checks.labels("labels", y, len(x), network.architecture.classes)
    module = PlainModule(network)
    batches = [(x[s], y[s]) for s in slices(len(x), batch_size)]
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices), warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", message=".*create_graph=True.*")
        torch.manual_seed(stream_seed(seed, "pyhessian"))
        library = pyhessian.hessian(module, F.cross_entropy, dataloader=batches, cuda=x.device.type == "cuda")
        values = library.trace(maxIter=probes, tol=1e-3 if early_stop else -math.inf)
    module.zero_grad(set_to_none=True)
    return torch.tensor(values, dtype=torch.float64)


def stops_after(values: Tensor, tolerance: float = 1e-3) -> int:
    """How many of the values (n,) PyHessian's rule takes before it stops, 1 to n."""
    means = values.cumsum(0) / torch.arange(1, len(values) + 1)
    for n in range(1, len(values)):
        if (means[n] - means[n - 1]).abs() / (means[n - 1] + 1e-6) < tolerance:
            return n + 1
    return len(values)


def stopped_early(
    run: Run,
    data: ImageData,
    states: Networks,
    at: Sequence[int],
    sets: Sequence[DistilledSet],
    network_seed: int,
    probes: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """The trace on every set at T ``states``, those after ``at`` (T,) updates, as PyHessian reports it and from all
    ``probes``, kept as an artefact a set.

    Columns dataset, target, ipc, network, network_seed, update, set_seed, ``shipped`` (the library's trace),
    ``shipped_probes`` (after how many it stopped), ``trace`` and ``trace_se`` (of all probes), ``probes``.
    """
    tables = []
    for one in sets:
        arguments = {
            "set": artefacts.fingerprint(one), "states": fingerprint(states), "probes": probes, "seed": seed,
        }  # fmt: skip

        def build(_: Checkpoint | None, progress: Progress | None, one: DistilledSet = one) -> Tensors:
            x, y = one.x.to(states.device), one.y.to(states.device)
            found = []
            for network in states:
                found.append(pyhessian_trace(network, x, y, seed, probes, early_stop=False))
                if progress:
                    progress(1)
            return {"values": torch.stack(found)}

        name = f"pyhessian_{arguments['set']}_{data.name}_{states.architecture.name}_s{network_seed}"
        values = artefacts.artefact(run, "hessian", name, data, "pyhessian_trace", 1, arguments, build)["values"]
        stops = [stops_after(own) for own in values]
        facts = {"dataset": data.name, "target": one.method, "ipc": one.ipc, "network": states.architecture.name}
        columns = facts | {"network_seed": network_seed, "update": list(at), "set_seed": one.seed}
        columns |= {"shipped": [float(own[:n].mean()) for own, n in zip(values, stops, strict=True)]}
        columns |= {"shipped_probes": stops, "trace": values.mean(1).numpy()}
        columns |= {"trace_se": (values.std(1) / probes**0.5).numpy(), "probes": probes}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)
