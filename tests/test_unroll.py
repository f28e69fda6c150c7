"""The replay adjoint against autograd through the whole unroll, finite differences and PyTorch's optimisers."""

import pytest
import torch
import torch.nn.functional as F

from ddanalysis import augment, networks, training, unroll
from ddanalysis.architectures import build
from ddanalysis.optimisers import Optimiser
from ddanalysis.training import Recipe
from ddanalysis.unroll import State

SGD, MOMENTUM, ADAM = Optimiser(), Optimiser("sgd", 0.9), Optimiser("adam")
EARLY = Optimiser("adam", early_epsilon=True)
OPTIMISERS = pytest.mark.parametrize(
    "optimiser", [SGD, MOMENTUM, ADAM, EARLY], ids=["sgd", "momentum", "adam", "adam, epsilon early"]
)
STEPS, DSA = 4, augment.DSA


def architecture(**options):
    """Two channels a group: with one, the bias of a convolution has no slope, and Adam divides it by its size."""
    published = {"width": 8, "depth": 2, "activation": "gelu", "norm": "group"}
    return build("ConvNet", (1, 8, 8), 3, **(published | options))


def numbers(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Problem:
    """K networks learn from 6 images with soft labels: rows and augmentation change with the step; L is a random
    direction plus a quadratic of the end weights.
    """

    def __init__(self, optimiser, k=1, own=False, steps=STEPS, **options):
        self.a, self.optimiser, self.own = architecture(**options), optimiser, own
        self.nets = networks.create(self.a, list(range(k)), dtype=torch.float64)
        self.k = k
        self.x, self.y = numbers(6, 1, 8, 8).requires_grad_(), numbers(6, 3, seed=1).softmax(1).requires_grad_()
        rate = 0.01 if optimiser.kind == "adam" else 0.1
        self.rates = torch.linspace(rate, 2 * rate, steps, dtype=torch.float64).requires_grad_()
        self.target = numbers(*unroll.flat(self.nets).shape, seed=2)

    def batches(self, t):
        rows = torch.arange(6).roll(t)[:4]
        x = augment.apply(augment.draw(DSA, (1, 8, 8), torch.Generator().manual_seed(t), 4), self.x[rows])
        if self.own:  # every network its own images and labels
            return torch.stack([x * (k + 1) for k in range(self.k)]), self.y[rows].roll(1, 1).expand(self.k, -1, -1)
        return x, self.y[rows]

    def loss(self, weights):
        return (self.target * weights).sum() + weights.square().sum()

    def whole(self, state=None):
        """The end and initial weights and averages of an unroll that keeps its graph, by textbook formulas."""
        state = state or unroll.begin(self.nets, self.optimiser)
        w, averages = state.weights.clone().requires_grad_(), [t.clone().requires_grad_() for t in state.averages]
        start = [w, *averages]
        for t, rate in enumerate(self.rates):
            x, y = self.batches(t)
            net = unroll.unflat(self.a, w)
            logits = self.a.logits(net.state, net.spread(x), {}).transpose(0, 1)
            loss = -(y * F.log_softmax(logits, 2)).sum(2).mean(1).sum()
            (g,) = torch.autograd.grad(loss, w, create_graph=True)
            if self.optimiser.kind == "adam":
                m, s = 0.9 * averages[0] + 0.1 * g, 0.999 * averages[1] + 0.001 * g * g
                n, averages = state.step + t + 1, [m, s]
                root, unbiased = s.clamp(min=1e-60).sqrt(), (1 - 0.999**n) ** 0.5  # torch's slope of root 0 is infinite
                early = self.optimiser.early_epsilon
                step = (m / (1 - 0.9**n)) / ((root + 1e-8) / unbiased if early else root / unbiased + 1e-8)
            elif self.optimiser.momentum:
                averages = [self.optimiser.momentum * averages[0] + g]
                step = averages[0]
            else:
                step = g
            w = w - rate * step
        return w, averages, start

    def replay(self, state=None, compiled=False, **options):
        state, options = state or unroll.begin(self.nets, self.optimiser), options | {"compiled": compiled}
        trace = unroll.forward(self.a, self.optimiser, state, self.batches, self.rates, True, compiled)
        gradient = self.target + 2 * trace.end.weights
        found = unroll.adjoint(self.a, self.optimiser, trace, self.batches, gradient, [self.x, self.y], **options)
        return trace, found


def near(found, expected, tolerance=1e-9):
    assert float((found - expected).norm()) <= tolerance * float(expected.norm()), (found, expected)


@OPTIMISERS
@pytest.mark.parametrize(("k", "own"), [(1, False), (3, False), (3, True)], ids=["one", "shared images", "own images"])
def test_the_adjoint_is_that_of_the_whole_graph(optimiser, k, own):
    problem = Problem(optimiser, k, own)
    end, _, start = problem.whole()
    expected = torch.autograd.grad(problem.loss(end), [problem.x, problem.y, problem.rates, start[0]])
    trace, found = problem.replay()
    assert torch.allclose(trace.end.weights, end, rtol=1e-12, atol=1e-14)
    for ours, theirs in zip([*found.inputs, found.rates, found.weights], expected, strict=True):
        near(ours, theirs)


def test_compiled_is_the_same():
    problem = Problem(SGD, depth=1, norm="none", activation="relu")
    expected, found = problem.replay()[1], problem.replay(compiled=True)[1]
    for ours, theirs in zip([*found.inputs, found.weights], [*expected.inputs, expected.weights], strict=True):
        near(ours, theirs)


@OPTIMISERS
def test_the_adjoint_is_the_slope_that_differences_find(optimiser):
    problem = Problem(optimiser, 2)
    _, found = problem.replay()
    for leaf, own in zip((problem.x, problem.y, problem.rates), (*found.inputs, found.rates), strict=True):
        along = numbers(*leaf.shape, seed=7, scale=float(leaf.detach().abs().mean()))
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf.add_(along, alpha=sign * 1e-7)
            ends.append(float(problem.loss(problem.replay()[0].end.weights)))
            with torch.no_grad():
                leaf.sub_(along, alpha=sign * 1e-7)
        assert (ends[0] - ends[1]) / 2e-7 == pytest.approx(float((own * along).sum()), rel=1e-5)


@OPTIMISERS
def test_an_unroll_in_two_parts_is_the_whole(optimiser):
    problem, x_y = Problem(optimiser), []
    whole, expected = problem.replay()
    rates = problem.rates.detach()

    def later(t):
        return problem.batches(t + 1)

    first = unroll.forward(
        problem.a, optimiser, unroll.begin(problem.nets, optimiser), problem.batches, rates[:1], True
    )
    last = unroll.forward(problem.a, optimiser, first.end, later, rates[1:], True)
    assert torch.equal(last.end.weights, whole.end.weights) and last.end.step == STEPS
    x_y = [problem.x, problem.y]
    gradient = problem.target + 2 * last.end.weights
    back = unroll.adjoint(problem.a, optimiser, last, later, gradient, x_y)
    front = unroll.adjoint(problem.a, optimiser, first, problem.batches, back.weights, x_y, back.averages)
    near(front.weights, expected.weights)
    near(torch.cat([front.rates, back.rates]), expected.rates)
    for a, b, both in zip(front.inputs, back.inputs, expected.inputs, strict=True):
        near(a + b, both)


@OPTIMISERS
@pytest.mark.parametrize("segment", [1, 2, STEPS, STEPS + 1])
def test_an_unroll_in_segments_is_the_whole(optimiser, segment):
    problem = Problem(optimiser)
    _, expected = problem.replay()

    def end(weights):
        return (problem.target * weights + weights**2).sum(1), problem.target + 2 * weights

    begun = unroll.begin(problem.nets, optimiser)
    rates, inputs = problem.rates.detach(), [problem.x, problem.y]
    losses, found = unroll.through(problem.a, optimiser, begun, problem.batches, rates, inputs, end, segment)
    trained = unroll.advance(problem.a, optimiser, begun, problem.batches, rates)
    near(losses, end(trained.weights)[0])
    near(found.weights, expected.weights)
    for ours, whole in zip(found.inputs, expected.inputs, strict=True):
        near(ours, whole)
    assert (found.rates is None) == (optimiser.kind == "sgd")
    if found.rates is not None:
        near(found.rates, expected.rates)


@OPTIMISERS
def test_the_end_averages_may_be_in_the_loss_and_training_may_be_under_way(optimiser):
    problem = Problem(optimiser, 2)
    begun = unroll.begin(problem.nets, optimiser)
    ahead = unroll.advance(problem.a, optimiser, begun, problem.batches, [0.05, 0.05])
    assert ahead.step == 2
    end, averages, start = problem.whole(ahead)
    extra = tuple(numbers(*t.shape, seed=5) for t in averages)
    loss = problem.loss(end) + sum((e * t).sum() for e, t in zip(extra, averages, strict=True))
    expected = torch.autograd.grad(loss, [problem.x, problem.y, problem.rates, *start])
    _, found = problem.replay(ahead, averages=extra)
    for ours, theirs in zip([*found.inputs, found.rates, found.weights, *found.averages], expected, strict=True):
        near(ours, theirs)


@OPTIMISERS
def test_slices_of_a_batch_change_nothing(optimiser, monkeypatch):
    problem = Problem(optimiser, 2)
    _, expected = problem.replay()
    monkeypatch.setattr(unroll, "images_per_pass", lambda *_: 3)
    _, found = problem.replay()
    for ours, theirs in zip([*found.inputs, found.rates], [*expected.inputs, expected.rates], strict=True):
        near(ours, theirs)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@OPTIMISERS
def test_every_normalisation_and_batch_statistics_of_the_whole_batch(optimiser, norm, monkeypatch):
    monkeypatch.setattr(unroll, "images_per_pass", lambda *_: 2)
    problem = Problem(optimiser, 2, norm=norm)
    end, _, _ = problem.whole()
    expected = torch.autograd.grad(problem.loss(end), [problem.x, problem.y])
    _, found = problem.replay()
    for ours, theirs in zip(found.inputs, expected, strict=True):
        near(ours, theirs, 1e-6)


def test_networks_together_are_networks_alone():
    together = Problem(MOMENTUM, 3)
    _, found = together.replay()
    total = torch.zeros_like(found.inputs[0])
    for k in range(3):
        alone = Problem(MOMENTUM, 1)
        alone.nets, alone.target = together.nets[k], together.target[k : k + 1]
        total += alone.replay()[1].inputs[0]
    near(total, found.inputs[0])


@pytest.mark.parametrize("optimiser", [SGD, MOMENTUM, ADAM], ids=["sgd", "momentum", "adam"])
def test_training_is_that_of_the_engine(optimiser):
    a = architecture()
    net = networks.create(a, [5, 6], dtype=torch.float64)
    x, y = numbers(9, 1, 8, 8), torch.arange(9) % 3
    recipe = Recipe(
        updates=5, batch_size=None, optimiser=optimiser.kind, learning_rate=0.02, momentum=optimiser.momentum
    )
    engine = unroll.flat(training.train(net, x, y, recipe, [0, 1]).networks)
    state = unroll.begin(net, optimiser)
    ours = unroll.advance(a, optimiser, state, lambda t: (x, y), [0.02] * 5).weights
    kept = unroll.forward(a, optimiser, state, lambda t: (x, y), torch.full((5,), 0.02, dtype=torch.float64))
    assert torch.allclose(ours, engine, rtol=1e-8, atol=1e-10)
    assert torch.allclose(kept.end.weights, ours, rtol=1e-12, atol=1e-14)
    assert unroll.unflat(a, unroll.flat(net)).state["conv0.weight"].equal(net.state["conv0.weight"])


def test_only_what_is_needed_is_kept():
    for optimiser, learned, count in ((SGD, False, 0), (MOMENTUM, False, 0), (MOMENTUM, True, 1), (ADAM, False, 1)):
        problem = Problem(optimiser)
        state = unroll.begin(problem.nets, optimiser)
        trace = unroll.forward(problem.a, optimiser, state, problem.batches, problem.rates, learned)
        assert len(trace.weights) == STEPS and {len(k) for k in trace.kept} == {count}
        assert len(trace.marks) == (-(-STEPS // unroll.SEGMENT) if optimiser is ADAM else 0)
        assert not any(t.requires_grad for t in (trace.end.weights, *trace.weights))
    found = unroll.adjoint(problem.a, SGD, trace_without_rates(), lambda t: (problem.x, problem.y), problem.target, [])
    assert found.rates is None and found.inputs == []


def trace_without_rates():
    problem = Problem(SGD)
    return unroll.forward(problem.a, SGD, unroll.begin(problem.nets, SGD), problem.batches, problem.rates)


def test_hard_labels_and_a_dead_unit_under_adam():
    a = architecture(activation="relu", norm="none")
    net = networks.create(a, [0], dtype=torch.float64)
    net.state["conv0.bias"][0, 0] = -100.0  # this unit never fires: its gradients and averages are 0
    x, y = numbers(6, 1, 8, 8).requires_grad_(), torch.arange(6) % 3
    rates = torch.full((3,), 0.01, dtype=torch.float64)
    trace = unroll.forward(a, ADAM, unroll.begin(net, ADAM), lambda t: (x, y), rates)
    found = unroll.adjoint(a, ADAM, trace, lambda t: (x, y), torch.ones_like(trace.end.weights), [x])
    assert torch.isfinite(found.inputs[0]).all() and float(found.inputs[0].abs().max()) > 0
    ends = []
    along = numbers(*x.shape, seed=3)
    for sign in (1, -1):
        moved = (x + sign * 1e-6 * along).detach()
        ends.append(
            float(unroll.advance(a, ADAM, unroll.begin(net, ADAM), lambda t, m=moved: (m, y), rates).weights.sum())
        )
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((found.inputs[0] * along).sum()), rel=1e-4)


def test_truncated_is_exact_for_one_step_alone():
    for steps, near_enough in ((1, True), (4, False)):
        problem = Problem(SGD, steps=steps)
        _, exact = problem.replay()
        _, cut = problem.replay(truncated=True)
        relative = float((cut.inputs[0] - exact.inputs[0]).norm() / exact.inputs[0].norm())
        assert (relative < 1e-12) is near_enough


def test_a_loss_and_its_gradient():
    problem = Problem(SGD, 3)
    x, y = numbers(7, 1, 8, 8, seed=4), torch.arange(7) % 3
    loss, gradient = unroll.loss_and_gradient(problem.a, unroll.flat(problem.nets), x, y)
    assert torch.allclose(loss, problem.nets.loss(x, y))
    named = {name: t.clone().requires_grad_() for name, t in problem.nets.state.items()}
    expected = torch.autograd.grad(networks.Networks(problem.a, named).loss(x, y).sum(), list(named.values()))
    assert torch.allclose(gradient, torch.cat([g.flatten(1) for g in expected], 1), atol=1e-12)


BAD = [
    (lambda p, t: unroll.forward(p.a, SGD, State(p.target), p.batches, torch.tensor(0.1)), "rates of an unroll"),
    (lambda p, t: unroll.forward(p.a, SGD, State(p.target), p.batches, torch.zeros(0)), "rates of an unroll"),
    (lambda p, t: unroll.adjoint(p.a, SGD, t, p.batches, p.target, [p.x * 2]), "must be leaves"),
    (lambda p, t: unroll.adjoint(p.a, SGD, t, p.batches, p.target, [p.x.detach()]), "must be leaves"),
    (lambda p, t: unroll.adjoint(p.a, SGD, t, p.batches, p.target[0], [p.x]), "gradient of the end"),
    (lambda p, t: Optimiser("lamb"), "unknown optimiser 'lamb'"),
    (lambda p, t: Optimiser("sgd", -0.1), "momentum is -0.1"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuses(call, message):
    problem = Problem(SGD)
    trace = unroll.forward(problem.a, SGD, unroll.begin(problem.nets, SGD), problem.batches, problem.rates)
    with pytest.raises(ValueError, match=message):
        call(problem, trace)
