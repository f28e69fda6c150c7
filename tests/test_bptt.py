"""BPTT and RaT-BPTT against autograd through plain PyTorch, their windows, clipping and resumption."""

import math
from dataclasses import replace

import plain
import pytest
import resuming
import torch
import torch.nn.functional as F
from test_distill import job
from torch.func import functional_call

from ddanalysis import augment, networks
from ddanalysis.distill import Method, bptt, outer
from ddanalysis.distill.bptt import preset, rat_bptt
from ddanalysis.distilled import DistilledSet
from ddanalysis.seeding import generator, stream_seed
from ddanalysis.training import Recipe, epoch_order

make = bptt.bptt
LARGE = 1e9  # no clipping


def train(the_job, learned, iteration, steps, window, inner, minibatch, augmented, k=0):
    """Plain PyTorch: a module trained ``steps`` updates on the images, the last ``window`` of them with a graph."""
    seed = stream_seed(the_job.seed, "network to train on the images", iteration, k)
    state = {name: t[0] for name, t in networks.create(the_job.architecture, [seed], dtype=torch.float64).state.items()}
    module = plain.with_state(plain.convnet(1, 8, 3, 4), state)
    w = {name: t.detach().clone().requires_grad_() for name, t in module.named_parameters()}
    m, s = ({name: torch.zeros_like(t) for name, t in w.items()} for _ in range(2))
    for t in range(steps):
        rows = outer.some_rows(the_job, minibatch, "inner batch", iteration, t)
        rows = torch.arange(len(learned["x"])) if rows is None else rows
        x, y = augmented(learned["x"][rows], t), learned.get("y", the_job.labels())[rows]
        graph = t >= steps - window
        g = torch.autograd.grad(F.cross_entropy(functional_call(module, w, x), y), list(w.values()), create_graph=graph)
        for (name, old), own in zip(list(w.items()), g, strict=True):
            if inner["kind"] == "sgd":
                m[name] = inner["momentum"] * m[name] + own
                w[name] = old - inner["rate"] * m[name]
            else:
                m[name], s[name] = 0.9 * m[name] + 0.1 * own, 0.999 * s[name] + 0.001 * own * own
                root = (s[name].clamp(min=1e-60) / (1 - 0.999 ** (t + 1))).sqrt()
                w[name] = old - inner["rate"] * m[name] / (1 - 0.9 ** (t + 1)) / (root + 1e-8)
        if not graph:
            w = {name: t.detach().requires_grad_() for name, t in w.items()}
            m, s = ({name: t.detach() for name, t in old.items()} for old in (m, s))
    return module, w


@pytest.mark.parametrize(("minibatch", "strategy"), [(None, ""), (1, ""), (None, "flip_rotate")])
def test_two_iterations_of_bptt_are_those_of_plain_pytorch(minibatch, strategy):
    the_job = job(dtype=torch.float64)
    made = make(
        the_job, iterations=2, steps=3, inner_rate=0.05, rate=0.3, clip=LARGE, batch_real=4, minibatch=minibatch,
        strategy=strategy, initialisation="real",
    )  # fmt: skip
    x, velocity = the_job.start("real"), 0
    for iteration in range(2):
        leaf = x.clone().requires_grad_()

        def augmented(images, _, iteration=iteration):
            return augment.augment(images, strategy, generator(0, "BPTT augmentation", iteration))

        inner = {"kind": "sgd", "momentum": 0.9, "rate": 0.05}
        module, w = train(the_job, {"x": leaf}, iteration, 3, 3, inner, minibatch, augmented)
        rows = outer.real_rows(the_job, 4, iteration)
        real = augmented(the_job.data.train_x[rows], None)
        loss = F.cross_entropy(functional_call(module, w, real), the_job.data.train_y[rows])
        velocity = 0.5 * velocity + torch.autograd.grad(loss, leaf)[0]
        x = x - 0.3 * velocity
        assert float(made.history["loss"][iteration]) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert float((x - the_job.start("real")).norm()) > 1e-5
    assert float((made.x - x).norm()) < 1e-7 * float((x - the_job.start("real")).norm())


@pytest.mark.parametrize("window_start", ["random", "fixed"])
def test_an_iteration_of_rat_is_that_of_plain_pytorch(window_start):
    the_job = job(dtype=torch.float64)
    settings = dict(iterations=1, window=2, horizon=4, inner_rate=0.01, rate=0.1, batch_real=9, minibatch=1)
    made = rat_bptt(
        the_job, **settings, window_start=window_start, learn_labels=True, strategy="flip_rotate", initialisation="real"
    )
    leaves = {"x": the_job.start("real"), "y": F.one_hot(the_job.labels(), 3).double()}
    leaves = {name: t.requires_grad_() for name, t in leaves.items()}

    def augmented(images, t):
        return augment.augment(images, "flip_rotate", generator(0, "RaT augmentation", 0, t))

    start = 2 if window_start == "fixed" else int(torch.randint(0, 3, (), generator=generator(0, "RaT window", 0)))
    inner = {"kind": "adam", "rate": 0.01}
    module, w = train(the_job, leaves, 0, start + 2, 2, inner, 1, augmented)
    recipe = Recipe(updates=1, batch_size=9)
    rows = epoch_order(recipe, torch.arange(36), stream_seed(0, "RaT real batches"), 0)[:9]
    real = augmented(the_job.data.train_x[rows], "real")
    loss = F.cross_entropy(functional_call(module, w, real), the_job.data.train_y[rows])
    assert float(made.history["loss"][0]) == pytest.approx(float(loss.detach()), rel=1e-6)
    opt = torch.optim.Adam(list(leaves.values()), lr=0.1)
    loss.backward()
    opt.step()
    assert torch.allclose(made.x, leaves["x"], atol=1e-5)  # Adam's first step is the sign of the gradient
    assert torch.allclose(made.y, leaves["y"].clamp(min=0), atol=1e-5)


def test_networks_at_once_are_averaged_and_the_gradient_is_clipped():
    the_job = job(dtype=torch.float64)
    settings = dict(iterations=1, steps=2, inner_rate=0.05, rate=1.0, batch_real=4, initialisation="real")
    start = the_job.start("real")
    step = start - make(the_job, clip=LARGE, at_once=2, **settings).x
    singles = []
    for k in range(2):
        leaf = start.clone().requires_grad_()
        module, w = train(
            the_job, {"x": leaf}, 0, 2, 2, {"kind": "sgd", "momentum": 0.9, "rate": 0.05}, None, lambda x, _: x, k
        )
        rows = outer.real_rows(the_job, 4, 0)
        loss = F.cross_entropy(functional_call(module, w, the_job.data.train_x[rows]), the_job.data.train_y[rows])
        singles.append(torch.autograd.grad(loss, leaf)[0])
    mean = (singles[0] + singles[1]) / 2
    assert float((step - mean).norm()) < 1e-7 * float(mean.norm())
    limit = 0.1 * float(step.norm())
    clipped = start - make(the_job, clip=limit, at_once=2, **settings).x
    assert torch.allclose(clipped, 0.1 * step, rtol=1e-3, atol=1e-12)


def test_the_clip_of_rat_follows_the_norms():
    carried, gradients = {}, {"x": torch.tensor([3.0, 4.0]), "y": torch.zeros(2)}
    assert torch.equal(bptt._steadied(gradients, 2.0, carried)["x"], gradients["x"]) and carried["norm"] == 5
    assert torch.equal(bptt._steadied(gradients, 2.0, carried)["x"], gradients["x"]) and carried["norm"] == 5
    cut = bptt._steadied({"x": torch.tensor([30.0, 40.0]), "y": torch.zeros(2)}, 2.0, carried)
    assert torch.allclose(cut["x"], torch.tensor([6.0, 8.0])) and carried["norm"] == pytest.approx(5.5)


def test_windows_start_where_they_should():
    own = {"window": 3, "horizon": 10, "earliest": 2}
    drawn = [bptt._window_start(job(), own | {"window_start": "random"}, epoch, {}) for epoch in range(200)]
    assert set(drawn) == set(range(2, 8))
    assert bptt._window_start(job(), own | {"window_start": "fixed"}, 0, {}) == 7
    carried, sliding = {}, own | {"window_start": "sliding"}
    starts = []
    for epoch in range(400):  # two iterations an epoch; the loss falls for 20 of them after a move
        for _ in range(2):
            starts.append(bptt._window_start(job(), sliding, epoch, carried))
            age = len(starts) - starts.index(starts[-1])
            bptt._slide(carried, 1 / min(age, 20), 3, 10, 2)
    moves = [i for i in range(1, 800) if starts[i] != starts[i - 1]]
    assert sorted(set(starts)) == [2, 5, 7] and moves == [142, 284]  # 11 epochs that fall, 60 that do not


@pytest.mark.parametrize("every_iteration", [False, True])
def test_a_random_window_holds_for_an_epoch_of_real_batches(every_iteration, monkeypatch):
    drawn = []
    inside = bptt._window_start
    monkeypatch.setattr(bptt, "_window_start", lambda *given: drawn.append(given[2]) or inside(*given))
    rat_bptt(job(), iterations=6, window=1, horizon=2, batch_real=12, every_iteration=every_iteration)
    assert drawn == ([0, 1, 2, 3, 4, 5] if every_iteration else [0, 0, 0, 1, 1, 1])  # 36 images


def test_images_start_as_published():
    the_job = job(40)
    x = bptt._start(the_job, "xavier")  # 120 images of 64 pixels
    bound = math.sqrt(6 / 184)
    assert float(x.abs().max()) <= bound and float(x.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert torch.allclose(bptt._start(the_job, "unit_noise").flatten(1).norm(dim=1), torch.ones(120))
    assert not torch.equal(x, bptt._start(job(40, seed=1), "xavier"))


def test_published_constants():
    assert Method(make, 1).settings({}) == {
        "iterations": 500_000, "steps": 150, "inner_rate": 0.01, "inner_momentum": 0.9, "rate": 0.1, "momentum": 0.5,
        "clip": 2.0, "batch_real": 64, "minibatch": None, "strategy": "", "learn_labels": False, "bases": None,
        "downsample": 2, "coefficient_decay": 1e-4, "initialisation": "xavier", "at_once": 1, "compiled": False,
    }  # fmt: skip
    ten = {"window": 60, "horizon": 200, "window_start": "random", "minibatch": 10, "rate": 1e-3, "learn_labels": False}
    assert preset("cifar10", 10, {}) == ten | {"strategy": "flip_rotate"} == preset("cifar10-jpeg", 1, {"window": None})
    assert preset("mnist", 50, {}) == ten | {"strategy": "rotate"}
    assert preset("cifar100", 3, {"rate": 0.5})["window_start"] == "fixed" and preset("cifar100", 1, {})["rate"] == 3e-4
    assert preset("cifar100", 50, {})["learn_labels"] and preset("cifar100", 10, {"rate": 0.5})["rate"] == 0.5
    assert preset("tiny_imagenet", 10, {})["rate"] == 3e-4


RAT = dict(window=2, horizon=5, batch_real=12, inner_rate=0.01, rate=0.05)
RUNS = {
    "bptt": (make, dict(steps=2, batch_real=4, minibatch=1, at_once=2)),
    "rat": (rat_bptt, RAT | dict(learn_labels=True, strategy="rotate")),
    "sliding": (rat_bptt, RAT | dict(window_start="sliding", earliest=1)),
}


@pytest.mark.parametrize("run", RUNS)
def test_resumes_exactly(run, tmp_path):
    method, settings = RUNS[run]
    whole = method(job(), iterations=5, **settings)
    resumed = resuming.resumed(job(), tmp_path, lambda own: method(own, iterations=5, **settings), after=3, left=3)
    assert torch.equal(whole.x, resumed.x) and torch.equal(whole.y, resumed.y)
    assert torch.equal(whole.history["loss"], resumed.history["loss"]) and len(whole.history["loss"]) == 5


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_loss_falls(norm):
    shallow = job(1, depth=2, norm=norm)
    for made in (
        make(shallow, iterations=15, steps=8, inner_rate=0.1, rate=2.0, batch_real=12, initialisation="noise"),
        rat_bptt(shallow, iterations=15, window=4, horizon=8, inner_rate=0.02, rate=0.1, initialisation="noise"),
    ):
        assert made.x.shape == (3, 1, 8, 8) and made.y.tolist() == [0, 1, 2] and made.x.dtype == torch.float32
        assert made.history["loss"][-5:].mean() < 0.9 * made.history["loss"][:3].mean()


LABELS = {
    "rat": (rat_bptt, dict(window=2, horizon=4, batch_real=12, rate=0.05)),
    "bptt": (make, dict(steps=3, inner_rate=0.1, batch_real=4, rate=5.0, clip=LARGE)),
}


@pytest.mark.parametrize("method", LABELS)
def test_learned_labels_are_soft_and_not_below_0(method):
    make_it, settings = LABELS[method]
    made = make_it(job(1), iterations=3, **settings, initialisation="real", learn_labels=True)
    assert made.y.shape == (3, 3) and float(made.y.min()) == 0 and not torch.equal(made.y, torch.eye(3))


@pytest.mark.parametrize("method", LABELS)
def test_a_given_set_is_continued_with_its_labels(method):
    make_it, settings = LABELS[method]
    y = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    for labels in (y, job(1).labels()):
        one = DistilledSet(job(1).start("noise"), labels, 3, (0.0,), (1.0,), "bptt", "toy", 1)
        the_job, still = replace(job(1), given=one), settings | {"rate": 1e-9, "initialisation": "given"}
        made = make_it(the_job, iterations=1, **still, learn_labels=True)
        soft = labels if labels.ndim == 2 else F.one_hot(labels, 3).float()
        assert torch.allclose(made.x, one.x, atol=1e-6) and torch.allclose(made.y, soft, atol=1e-6)
        assert torch.equal(make_it(the_job, iterations=1, **still).y, job(1).labels())


def test_labels_learn_by_their_gradient():
    the_job = job(dtype=torch.float64)
    made = make(
        the_job, iterations=1, steps=3, inner_rate=0.05, rate=0.3, clip=LARGE, batch_real=4, minibatch=1,
        initialisation="real", learn_labels=True,
    )  # fmt: skip
    leaves = {"x": the_job.start("real"), "y": F.one_hot(the_job.labels(), 3).double()}
    leaves = {name: t.requires_grad_() for name, t in leaves.items()}
    inner = {"kind": "sgd", "momentum": 0.9, "rate": 0.05}
    module, w = train(the_job, leaves, 0, 3, 3, inner, 1, lambda x, _: x)
    rows = outer.real_rows(the_job, 4, 0)
    loss = F.cross_entropy(functional_call(module, w, the_job.data.train_x[rows]), the_job.data.train_y[rows])
    loss.backward()
    for name, found in (("x", made.x), ("y", made.y)):
        assert float(leaves[name].grad.norm()) > 0
        expected = (leaves[name] - 0.3 * leaves[name].grad).detach()
        assert torch.allclose(found, expected if name == "x" else expected.clamp(min=0), atol=1e-10)


BAD = [
    (lambda: make(job(), steps=0), "steps of BPTT is 0"),
    (lambda: make(job(), iterations=0), "iterations of BPTT is 0"),
    (lambda: make(job(), at_once=0), "at_once of BPTT is 0"),
    (lambda: make(job(), rate=-1), "rate of BPTT is -1"),
    (lambda: make(job(), clip=-1.0), "clip of BPTT is -1"),
    (lambda: make(job(), inner_momentum=-1.0), "inner_momentum of BPTT is -1"),
    (lambda: make(job(), batch_real=13), "smallest class of toy has 12 images"),
    (lambda: make(job(), batch_real=4, minibatch=0), "minibatch of BPTT is 0"),
    (lambda: make(job(), batch_real=4, strategy="swirl"), "swirl"),
    (lambda: make(job(), batch_real=4, initialisation="zeros"), "unknown initialisation of the images 'zeros'"),
    (lambda: rat_bptt(job(), window=0), "window of RaT is 0"),
    (lambda: rat_bptt(job(), window=150, earliest=51), "earliest is 51 and window 150: together they exceed"),
    (lambda: rat_bptt(job(), earliest=-1), "earliest of RaT is -1"),
    (lambda: rat_bptt(job(), window_start="late"), "unknown window_start of RaT 'late'"),
    (lambda: rat_bptt(job(), minibatch=0), "minibatch of RaT is 0"),
    (lambda: rat_bptt(job(), batch_real=0), "batch_real of RaT is 0"),
    (lambda: rat_bptt(job(), initialisation="xavier"), "unknown initialisation of the images 'xavier'"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_loss_that_is_no_number_stops_the_work():
    with pytest.raises(FloatingPointError, match="loss of BPTT is nan in iteration 0: lower a learning rate"):
        make(job(), iterations=2, steps=3, inner_rate=1e38, batch_real=4)
