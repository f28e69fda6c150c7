"""The trace of the Hessian as PyHessian 0.1 estimates it, the library behind the published figure: for comparison."""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddanalysis import checks
from ddanalysis.compute import slices
from ddanalysis.networks import Networks
from ddanalysis.seeding import stream_seed


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

    The Hessian is that of :func:`ddanalysis.curvature.trace`. ``early_stop`` is the library as it comes: it stops at
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
