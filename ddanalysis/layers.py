"""Layers of K networks at once, as pure functions.

Every parameter carries a leading K. Feature maps lie channel-major, ``(n, K * c, h, w)``: network k owns channels ``k
* c ... (k + 1) * c - 1``, so a convolution of K networks is one grouped convolution and pooling needs no change.
Vectors are ``(n, K, f)``. With K = 1 each function is the ordinary layer.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

Parameters = dict[str, torch.Tensor]


class Weight(NamedTuple):
    """One parameter of an architecture: its shape without the leading K, its role, and its fan-in."""

    shape: tuple[int, ...]
    role: str  # "weight", "bias", "scale", "shift", "running_mean" or "running_var"
    fan_in: int = 0


Weights = dict[str, Weight]


def conv_weights(name: str, c_out: int, c_in: int, kernel: int, bias: bool = True) -> Weights:
    """The parameters of one convolution."""
    fan_in = c_in * kernel * kernel
    weights = {f"{name}.weight": Weight((c_out, c_in, kernel, kernel), "weight", fan_in)}
    return weights | ({f"{name}.bias": Weight((c_out,), "bias", fan_in)} if bias else {})


def linear_weights(name: str, f_out: int, f_in: int) -> Weights:
    """The parameters of one linear layer."""
    return {f"{name}.weight": Weight((f_out, f_in), "weight", f_in), f"{name}.bias": Weight((f_out,), "bias", f_in)}


def norm_weights(name: str, kind: str, channels: int, size: int) -> Weights:
    """The parameters of one normalisation of ``channels`` maps of ``size`` x ``size``."""
    if kind == "none":
        return {}
    shape = (channels, size, size) if kind == "layer" else (channels,)
    weights = {f"{name}.weight": Weight(shape, "scale"), f"{name}.bias": Weight(shape, "shift")}
    if kind == "batch":
        weights[f"{name}.running_mean"] = Weight((channels,), "running_mean")
        weights[f"{name}.running_var"] = Weight((channels,), "running_var")
    return weights


def conv(p: Parameters, name: str, x: torch.Tensor, stride: int = 1, padding: int = 0) -> torch.Tensor:
    """(n, K * c_in, h, w) -> (n, K * c_out, h', w')."""
    weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
    flat = None if bias is None else bias.flatten()
    return F.conv2d(x, weight.flatten(0, 1), flat, stride, padding, groups=weight.shape[0])


def linear(p: Parameters, name: str, x: torch.Tensor) -> torch.Tensor:
    """(n, K, f_in) -> (n, K, f_out)."""
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    return torch.baddbmm(bias[:, None], x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


def norm(p: Parameters, name: str, kind: str, x: torch.Tensor, updated: Parameters | None = None) -> torch.Tensor:
    """Normalise feature maps; "instance" is a group norm with one group a channel, as the published networks have it.

    Batch normalisation uses its running statistics when ``updated`` is None (evaluation); else it uses those of the
    batch and puts the new running statistics into ``updated``.
    """
    if kind == "none":
        return x
    if kind == "batch":
        return _batch_norm(p, name, x, updated)
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    k = weight.shape[0]
    if kind == "layer":
        x = F.group_norm(x, k)
        return x * weight.flatten(0, 1) + bias.flatten(0, 1)
    groups = weight.shape[1] if kind == "instance" else 4
    return F.group_norm(x, k * groups, weight.flatten(), bias.flatten())


def _batch_norm(
    p: Parameters, name: str, x: torch.Tensor, updated: Parameters | None, momentum: float = 0.1
) -> torch.Tensor:
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    mean, var = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    if updated is None:
        return F.batch_norm(x, mean.flatten(), var.flatten(), weight.flatten(), bias.flatten())
    with torch.no_grad():
        batch_var, batch_mean = torch.var_mean(x, dim=(0, 2, 3))
        updated[f"{name}.running_mean"] = torch.lerp(mean, batch_mean.view_as(mean), momentum)
        updated[f"{name}.running_var"] = torch.lerp(var, batch_var.view_as(var), momentum)
    return F.batch_norm(x, None, None, weight.flatten(), bias.flatten(), training=True)


def flatten(p: Parameters, x: torch.Tensor) -> torch.Tensor:
    """(n, K * c, h, w) -> (n, K, c * h * w)."""
    k = next(iter(p.values())).shape[0]
    return x.reshape(x.shape[0], k, math.prod(x.shape[1:]) // k)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
}
NORMS = ("instance", "batch", "layer", "group", "none")
POOLINGS = ("avg", "max", "none")


def pool(kind: str, x: torch.Tensor) -> torch.Tensor:
    """2 x 2 pooling with stride 2."""
    if kind == "none":
        return x
    return F.avg_pool2d(x, 2) if kind == "avg" else max_pool(x)


def max_pool(x: torch.Tensor) -> torch.Tensor:
    """2 x 2 maxima with stride 2; a last row or column without a partner is left out.

    ``F.max_pool2d`` has no vector code on a CPU. Maxima of slices are the same numbers in a ninth of the time, but take
    three times as long to differentiate: so they are for evaluation.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return F.max_pool2d(x, 2)
    h, w = (size // 2 * 2 for size in x.shape[-2:])
    rows = torch.maximum(x[..., 0:h:2, :], x[..., 1:h:2, :])
    return torch.maximum(rows[..., 0:w:2], rows[..., 1:w:2])
