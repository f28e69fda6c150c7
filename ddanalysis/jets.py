"""Second derivatives of a network along directions in its weights, by forward passes alone.

A jet is a tensor on a curve w + t v: its value at t = 0, and its first and second derivative along each of some
directions v. A network of :mod:`ddanalysis.architectures` whose weights are jets computes a jet; values are computed
once for all directions, and a direction costs nothing before the layer that it changes. Convolutions, linear layers,
group normalisation, ReLU, and what is linear have rules of their own; all else is differentiated by
:func:`torch.func.jvp`, twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp

Pair = tuple[Tensor | None, Tensor | None]
"""First and second derivative; None is 0."""

Triple = tuple[Any, Tensor | None, Tensor | None]
"""A value, a tensor or any constant argument, and its derivatives."""

Given = dict[int | str, Any]
"""Arguments of a function by position or keyword."""


@dataclass(frozen=True, eq=False)
class Jet:
    """A ``value`` and its derivatives ``along`` directions, each of the value's shape."""

    value: Tensor
    along: Mapping[Any, Pair]

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Tensor], types: object, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> "Jet":
        return _apply(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if not callable(of := getattr(Tensor, name)):
            return getattr(self.value, name)
        return lambda *args, **kwargs: _apply(of, (self, *args), kwargs)

    def __getitem__(self, index: Any) -> "Jet":
        return _apply(Tensor.__getitem__, (self, index), {})

    def __add__(self, other: Any) -> "Jet":
        return _apply(torch.add, (self, other), {})

    def __mul__(self, other: Any) -> "Jet":
        return _apply(torch.mul, (self, other), {})


def _apply(function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Jet:
    """``function`` of arguments of which some are jets."""
    given: Given = dict(enumerate(args)) | kwargs  # type: ignore[operator]
    value = _call(function, {key: a.value if isinstance(a, Jet) else a for key, a in given.items()})
    along: dict[Any, Pair] = {}
    for direction in dict.fromkeys(d for a in given.values() if isinstance(a, Jet) for d in a.along):
        pair = RULES.get(function, _derived)(function, {key: _triple(a, direction) for key, a in given.items()})
        along[direction] = tuple(None if t is None else t.expand_as(value) for t in pair)  # type: ignore[assignment]
    return Jet(value, along)


def _triple(a: Any, direction: Any) -> Triple:
    return (a.value, *a.along.get(direction, (None, None))) if isinstance(a, Jet) else (a, None, None)


def _call(function: Callable[..., Tensor], given: Given) -> Tensor:
    args = [a for key, a in given.items() if isinstance(key, int)]
    return function(*args, **{key: a for key, a in given.items() if isinstance(key, str)})


# ----------------------------------------------------------------------------------------------------------- the rules


def _sum(*terms: Tensor | None) -> Tensor | None:
    there = [t for t in terms if t is not None]
    return sum(there[1:], there[0]) if there else None


def _leibniz(product: Callable[[Any, Any], Tensor], a: Triple, b: Triple) -> Pair:
    """The derivatives of what is linear in each of two arguments."""

    def of(i: int, j: int) -> Tensor | None:
        return None if a[i] is None or b[j] is None else product(a[i], b[j])

    mixed = of(1, 1)
    return _sum(of(1, 0), of(0, 1)), _sum(of(2, 0), of(0, 2), None if mixed is None else 2 * mixed)


def _linear(function: Callable, given: Given) -> Pair:
    """Linear in its first argument, the one jet."""
    constants = {key: a[0] for key, a in given.items()}
    first, second = (None if t is None else _call(function, constants | {0: t}) for t in given[0][1:])
    return first, second


def _add(function: Callable, given: Given) -> Pair:
    return _sum(*(a[1] for a in given.values())), _sum(*(a[2] for a in given.values()))


def _multiply(function: Callable, given: Given) -> Pair:
    return _leibniz(torch.mul, given[0], given[1])


def _convolution(function: Callable, given: Given) -> Pair:
    constants = {key: a[0] for key, a in given.items()}
    pair = _leibniz(lambda a, b: _call(function, constants | {0: a, 1: b, 2: None}), given[0], given[1])
    return _plus(*pair, given[2])


def _plus(first: Tensor | None, second: Tensor | None, bias: Triple) -> Pair:
    """Feature maps and a number a channel."""
    own = [None if t is None else t[:, None, None] for t in bias[1:]]
    return _sum(first, own[0]), _sum(second, own[1])


def _layer(function: Callable, given: Given) -> Pair:
    """``baddbmm``."""
    first, second = _leibniz(torch.bmm, given[1], given[2])
    return _sum(first, given[0][1]), _sum(second, given[0][2])


def _relu(function: Callable, given: Given) -> Pair:
    value, *pair = given[0]
    first, second = (None if t is None else t * (value > 0) for t in pair)
    return first, second


def _group_norm(function: Callable, given: Given) -> Pair:
    centred = _centred(given[0], given[1][0])
    scale = _one_over_deviation(*centred, given["eps"][0])
    value = centred[0] * scale[0]
    triple = (value, *_leibniz(torch.mul, centred, scale))
    maps = tuple(None if t is None else t.view_as(given[0][0]) for t in triple)
    if given["weight"][0] is None:
        return maps[1], maps[2]
    channels = tuple(None if t is None else t[:, None, None] for t in given["weight"])
    return _plus(*_leibniz(torch.mul, maps, channels), given["bias"])  # type: ignore[arg-type]


def _centred(x: Triple, groups: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    parts = (None if t is None else t.reshape(len(t), groups, -1) for t in x)
    value, first, second = (None if t is None else t - t.mean(2, keepdim=True) for t in parts)
    return value, first, second  # type: ignore[return-value]


def _one_over_deviation(value: Tensor, first: Tensor | None, second: Tensor | None, eps: float) -> Triple:
    """1 / sqrt(variance + eps) of centred maps."""

    def mean(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else (a * b).mean(2, keepdim=True)

    scale = ((value**2).mean(2, keepdim=True) + eps).rsqrt()
    v1, v2 = mean(value, first), _sum(mean(first, first), mean(value, second))  # halves of the variance's derivatives
    own = None if v1 is None else -(scale**3) * v1
    return scale, own, _sum(None if v1 is None else 3 * scale**5 * v1**2, None if v2 is None else -(scale**3) * v2)


def _derived(function: Callable, given: Given) -> Pair:
    """Any function: differentiated along the first derivatives, twice, and along the second ones."""
    constants = {key: a[0] for key, a in given.items()}

    def along(order: int) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """A function of the arguments that move in this order, these, and how they do."""
        moves = {key: a[order] for key, a in given.items() if a[order] is not None}

        def of(*moved: Tensor) -> Tensor:
            return _call(function, constants | dict(zip(moves, moved, strict=True)))

        return of, tuple(constants[key] for key in moves), tuple(moves.values())

    first = bent = straight = None
    of, values, moves = along(1)
    if moves:
        first, bent = jvp(lambda *p: jvp(of, p, moves)[1], values, moves)  # type: ignore[misc]
    of, values, moves = along(2)
    if moves:
        straight = jvp(of, values, moves)[1]
    return first, _sum(bent, straight)


RULES: dict[Callable, Callable[[Callable, Given], Pair]] = {
    F.conv2d: _convolution,
    torch.baddbmm: _layer,
    F.group_norm: _group_norm,
    F.relu: _relu,
    torch.add: _add,
    torch.mul: _multiply,
    **dict.fromkeys(
        (
            F.avg_pool2d, Tensor.__getitem__, Tensor.flatten, Tensor.mean, Tensor.reshape, Tensor.transpose,
        ),
        _linear,
    ),
}  # fmt: skip
