"""Jets have the derivatives that nested forward mode and finite differences find, and cost what they should."""

import pytest
import torch
import torch.nn.functional as F
from hessians import fresh, toy
from torch.func import jvp
from torch.utils.flop_counter import FlopCounterMode

from ddanalysis import architectures, layers, unroll
from ddanalysis.architectures import build
from ddanalysis.jets import RULES, Jet

GREY = ("LeNet", "MLP", "MLP-small")
ZOO = {name: (name, (1, 28, 28) if name in GREY else (3, 32, 32), {}) for name in architectures.ZOO}
KINDS = zip((*layers.NORMS, "instance"), layers.ACTIVATIONS, ("max", "none", "avg") * 2, strict=True)
ZOO |= {
    f"{n} {a} {p}": ("ConvNet", (1, 8, 8), {"norm": n, "activation": a, "pooling": p}) for n, a, p in KINDS
}  # fmt: skip
SMALLER = {
    "ConvNet": {"width": 4}, "ConvNet-Tiny": {"width": 4}, "ResNet": {"widths": (4, 4, 4, 4)}, "MLP": {"hidden": (9, 7)}
}  # fmt: skip


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("case", ZOO.values(), ids=ZOO)
def test_a_network_of_jets_is_nested_forward_mode(case):
    name, shape, options = case
    smaller = next((own for kind, own in SMALLER.items() if name.startswith(kind) and name != "ResNet14"), {})
    a = build(name, shape, 3, **(smaller | options))
    net, (x, _) = fresh(a), toy(a, 2)
    weights, v = unroll.flat(net)[0], random(a.parameter_count())
    running = {n: t for n, t in net.state.items() if n not in net.trainable()}
    moves = unroll.unflat(a, v[None]).state
    state = {n: Jet(t, {"v": (moves[n], None)}) if n in net.trainable() else t for n, t in net.state.items()}
    found = a.logits(state, x)

    def logits(w):
        return a.logits(unroll.unflat(a, w[None]).state | running, x)

    first, second = jvp(lambda w: jvp(logits, (w,), (v,))[1], (weights,), (v,))
    assert torch.equal(found.value, logits(weights))
    assert torch.allclose(found.along["v"][0], first, rtol=1e-9, atol=1e-9 * float(first.abs().max()))
    assert torch.allclose(found.along["v"][1], second, rtol=1e-9, atol=1e-9 * float(second.abs().max()))


FUNCTIONS = {
    "conv": (lambda x: F.conv2d(x, random(4, 2, 3, 3), random(4), 1, 1), (3, 2, 4, 4)),
    "conv of both": (lambda x: F.conv2d(x, x[:2, :, :2, :2], None), (3, 2, 4, 4)),
    "layer": (lambda x: torch.baddbmm(x[:, :1], x, x.transpose(1, 2)[:, :, :4]), (2, 4, 4)),
    "group norm": (lambda x: F.group_norm(x, 2, random(4), random(4, seed=1)), (3, 4, 3, 3)),
    "group norm of all": (lambda x: F.group_norm(x, 2, x[0, :, 0, 0], x[1, :, 0, 0]), (3, 4, 3, 3)),
    "plain group norm": (lambda x: F.group_norm(x, 4), (3, 4, 3, 3)),
    "product": (lambda x: x * x * 3.0, (5,)),
    "sum": (lambda x: x + x[:1] + 2.0, (5,)),
    "relu": (F.relu, (20,)),
    "pooling": (lambda x: F.max_pool2d(F.avg_pool2d(x * x, 2), 2), (2, 2, 8, 8)),
    "others": (lambda x: torch.sigmoid(x).mean((0, 1), keepdim=True).reshape(-1).exp(), (2, 3, 4)),
}


@pytest.mark.parametrize(("function", "shape"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_of_jets_are_those_of_the_curve(function, shape):
    x, first, second = random(*shape), random(*shape, seed=1), random(*shape, seed=2)
    found = function(Jet(x, {0: (first, second), 1: (None, second), 2: (first, None)}))

    def curve(t, direction):
        parts = {0: (first, second), 1: (0 * first, second), 2: (first, 0 * second)}[direction]
        return function(x + t * parts[0] + t**2 / 2 * parts[1])

    for direction, (one, two) in found.along.items():
        t = torch.zeros((), dtype=torch.float64)
        expected = jvp(
            lambda t, d=direction: jvp(lambda s: curve(s, d), (t,), (torch.ones_like(t),))[1], (t,), (t + 1,)
        )
        for part, exact in zip((one, two), expected, strict=True):
            assert torch.allclose(torch.zeros_like(exact) if part is None else part, exact, rtol=1e-9, atol=1e-10)
    step = 1e-3  # and finite differences, which know nothing of forward mode
    if function is not F.relu:
        ahead, behind = (curve(s, 0) for s in (step, -step))
        difference = (ahead - 2 * found.value + behind) / step**2
        assert torch.allclose(found.along[0][1], difference, rtol=1e-4, atol=1e-3 * float(difference.abs().max()))


def test_a_direction_costs_nothing_before_its_layer():
    a = build("ConvNet", (3, 16, 16), 3, width=8)
    net, (x, _) = fresh(a), toy(a, 2)

    def flops(*moved):
        with FlopCounterMode(display=False) as counter:
            a.logits({n: Jet(t, {n: (t, None)}) if n in moved else t for n, t in net.state.items()}, x)
        return counter.get_total_flops()

    own = flops()
    assert flops("head.weight") - own == 2 * 2 * 3 * 8 * 4
    last, both = flops("conv2.weight") - own, flops("conv2.weight", "head.weight") - own
    assert 0 < last < own / 2 and both == last + flops("head.weight") - own  # directions share the value
    assert flops("conv0.weight") - own < 2.1 * own


def test_functions_without_a_rule_are_differentiated():
    assert torch.sigmoid not in RULES and F.max_pool2d not in RULES  # or the tests above test less than they say
