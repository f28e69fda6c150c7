"""DC and DSA against a plain restatement in PyTorch's own modules; the distances against a double loop."""

import math
from dataclasses import replace

import plain
import pytest
import resuming
import torch
import torch.nn.functional as F
from test_distill import job, toy_data

from ddanalysis import augment, data, evaluation, networks, training
from ddanalysis.architectures import build
from ddanalysis.compute import Compute
from ddanalysis.distill import Job, Method, matching_distance
from ddanalysis.distill import gradient_matching as gm
from ddanalysis.distill.making import real_batch
from ddanalysis.distilled import DistilledSet
from ddanalysis.seeding import generator, stream_seed

METHODS = {"dc": Method(gm.dc, version=1, networked=True), "dsa": Method(gm.dsa, version=1, networked=True)}
FEW = {"iterations": 2, "batch_real": 5}
STRATEGY = "color_crop_cutout_scale_rotate"


# ------------------------------------------------------------------------------------------------------------ distance


def gradients(seed, k=3):
    """Gradients of a convolution, its biases, a layer normalisation and a linear layer; one row of them 0."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((4, 2, 3, 3), (4,), (4, 5, 5), (3, 8))
    made = [torch.randn(k, *shape, generator=g, dtype=torch.float64) for shape in shapes]
    made[0][1, 2] = 0
    return made


def plain_distance(kind, real, given):
    """Of one pair of gradients, number by number."""
    if kind == "row-cosine":
        total = 0.0
        for r, s in zip(real, given, strict=True):
            for a, b in zip(r, s, strict=True) if r.ndim > 1 else ():
                a, b = a.flatten().tolist(), b.flatten().tolist()
                dot = sum(u * v for u, v in zip(a, b, strict=True))
                total += 1 - dot / (math.hypot(*a) * math.hypot(*b) + 1e-6)
        return total
    a, b = (torch.cat([t.flatten() for t in own]).tolist() for own in (real, given))
    if kind == "mse":
        return sum((u - v) ** 2 for u, v in zip(a, b, strict=True))
    return 1 - sum(u * v for u, v in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b) + 1e-6)


@pytest.mark.parametrize("kind", matching_distance.DISTANCES)
def test_distance_is_that_of_a_double_loop(kind):
    real, given = gradients(0), gradients(1)
    found = matching_distance.between(kind, real, given)
    expected = [plain_distance(kind, [t[k] for t in real], [t[k] for t in given]) for k in range(3)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    same = matching_distance.between(kind, real, real)
    assert same.tolist() == pytest.approx([0, 1 if kind == "row-cosine" else 0, 0], abs=1e-5)  # a row of 0 is far away


@pytest.mark.parametrize("kind", matching_distance.DISTANCES)
def test_distance_has_a_finite_derivative_at_a_row_of_zeros(kind):
    real, given = gradients(0), [t.requires_grad_() for t in gradients(1)]
    found = torch.autograd.grad(matching_distance.between(kind, real, given).sum(), given, allow_unused=True)
    assert all(t is None or torch.isfinite(t).all() for t in found)
    assert (found[1] is None) == (kind == "row-cosine")  # biases do not count


def test_matched_parameters():
    conv = ["conv0.weight", "conv1.weight", "conv2.weight", "head.weight"]
    for norm in ("instance", "batch"):
        a = build("ConvNet", (1, 8, 8), 3, width=4, norm=norm)
        assert matching_distance.matched(a, "row-cosine") == conv
        everything = networks.create(a, [0]).trainable()
        assert matching_distance.matched(a, "mse") == matching_distance.matched(a, "cos") == everything
    layer = matching_distance.matched(build("ConvNet", (1, 8, 8), 3, width=4, norm="layer"), "row-cosine")
    assert "norm0.weight" in layer and "norm0.bias" in layer  # (channels, h, w) has rows


# ------------------------------------------------------------------------------------------------------------ gradient


def settings(strategy="", distance="row-cosine", batch=6, **options):
    s = gm._Settings("DC", strategy, 1, 0.1, 0.5, 0.01, batch, 256, 1, 1, distance, Compute())
    return replace(s, **options)


def plain_network(the_job, net, rows):
    """The same network as a PyTorch module; one with batch normalisation has looked at real images, then froze."""
    module = plain.convnet(1, 8, 3, 4, getattr(the_job.architecture, "norm", "instance"))
    module = plain.with_state(module, {name: t[0] for name, t in net.state.items()})
    with torch.no_grad():
        module.train()(the_job.data.train_x[rows])
    return module.eval()


def plain_loss(the_job, module, x, real, number, s):
    """The matching loss of one outer step, class by class, by full autograd."""
    parameters = [p for p in module.parameters() if p.ndim > 1 or s.distance != "row-cosine"]
    loss = 0
    for c in range(the_job.data.n_classes):
        g = generator(the_job.seed, "matching augmentation", number, c)
        draw = augment.draw(s.strategy, the_job.data.shape, g)
        found = []
        for images in (the_job.data.train_x[real[c]], x[c * the_job.ipc : (c + 1) * the_job.ipc]):
            ce = F.cross_entropy(module(augment.apply(draw, images)), torch.full((len(images),), c))
            found.append(torch.autograd.grad(ce, parameters, create_graph=True))
        if s.distance == "row-cosine":
            for r, t in zip(*found, strict=True):
                r, t = r.detach().flatten(1), t.flatten(1)
                loss = loss + (1 - (r * t).sum(1) / (r.norm(dim=1) * t.norm(dim=1) + 1e-6)).sum()
        else:
            loss = loss + sum(((r.detach() - t) ** 2).sum() for r, t in zip(*found, strict=True))
    return loss


def rows_of(the_job, n, seed=None, number=0):
    seed = the_job.seed if seed is None else seed
    own = [(the_job.data.train_y == c).nonzero()[:, 0] for c in range(the_job.data.n_classes)]
    return torch.stack([real_batch(rows, n, seed, number, c) for c, rows in enumerate(own)])


AT_ONCE = {"all classes": (9, 9, 1), "two classes, real ones alone": (2, 1, 4), "class by class": (1, 1, 2)}
"""Classes at once, of distilled and of real images, and images of a real class at once where it is alone."""


@pytest.mark.parametrize("together", AT_ONCE.values(), ids=AT_ONCE)
@pytest.mark.parametrize("case", [{}, {"strategy": STRATEGY}, {"distance": "mse"}, {"norm": "batch"}], ids=str)
def test_gradient_is_that_of_the_loss(case, together, monkeypatch):
    monkeypatch.setattr(gm, "networks_together", lambda a, n, device: together[0] if n == 2 else together[1])
    monkeypatch.setattr(gm, "images_per_pass", lambda *_: together[2])
    the_job = job(dtype=torch.float64, norm=case.get("norm", "instance"))
    s = settings(**{k: v for k, v in case.items() if k != "norm"})
    x, real = the_job.start("real"), rows_of(the_job, 6)
    by_class = [(the_job.data.train_y == c).nonzero()[:, 0] for c in range(3)]
    for number in range(3):
        net = networks.create(the_job.architecture, [number], dtype=torch.float64)
        statistics = rows_of(the_job, 16, stream_seed(the_job.seed, "batch statistics"), number).flatten()
        module = plain_network(the_job, net, statistics)
        net = gm._with_real_statistics(the_job, net, by_class, number)
        loss, gradient = gm._gradient(the_job, s, net, x, real, number)
        leaf = x.clone().requires_grad_()
        expected = plain_loss(the_job, module, leaf, real, number, s)
        assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-10)
        theirs = torch.autograd.grad(expected, leaf)[0]
        assert torch.allclose(gradient, theirs, rtol=1e-7, atol=1e-10) and gradient.abs().max() > 1e-4


def test_gradient_against_finite_differences():
    the_job = job(dtype=torch.float64, activation="gelu", depth=2)
    net, x, real = (
        networks.create(the_job.architecture, [1], dtype=torch.float64),
        the_job.start("real"),
        rows_of(job(), 6),
    )
    _, gradient = gm._gradient(the_job, settings(), net, x, real, 0)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    up, down = (float(gm._gradient(the_job, settings(), net, x + s * 1e-6 * direction, real, 0)[0]) for s in (1, -1))
    assert (up - down) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def test_real_and_distilled_images_of_a_class_share_an_augmentation(monkeypatch):
    seen = []
    monkeypatch.setattr(gm.augment, "apply", lambda draw, x: seen.append((len(x), draw.op, draw.parameters)) or x)
    the_job = job()
    net = networks.create(the_job.architecture, [0])
    for number in range(12):
        gm._gradient(the_job, settings(STRATEGY), net, the_job.start("real"), rows_of(the_job, 6), number)
    real, given = ([call for call in seen if call[0] == n] for n in (6, 2))
    assert len(real) == len(given) == 36
    assert all(a[1] == b[1] and torch.equal(a[2], b[2]) and len(a[2]) == 1 for a, b in zip(real, given, strict=True))
    assert {op for _, op, _ in real} == set(STRATEGY.split("_"))
    assert any(real[i][1] != real[i + 1][1] for i in range(0, 36, 3))  # classes have their own


# ---------------------------------------------------------------------------------------------------------- iterations


def plain_dc(the_job, iterations, outer, inner, batch_train):
    """DC as published, with PyTorch's optimisers: images, and the mean loss of every iteration."""
    x, losses = the_job.start("real").requires_grad_(), []
    opt = torch.optim.SGD([x], lr=0.1, momentum=0.5)
    for iteration in range(iterations):
        seeds = [stream_seed(the_job.seed, "matched network", iteration)]
        net = networks.create(the_job.architecture, seeds, dtype=torch.float64)
        module, total = plain.with_state(plain.convnet(1, 8, 3, 4), {n: t[0] for n, t in net.state.items()}), 0.0
        for step in range(outer):
            number = iteration * outer + step
            loss = plain_loss(the_job, module, x, rows_of(the_job, 5, number=number), number, settings())
            opt.zero_grad()
            loss.backward(inputs=[x])
            opt.step()
            total += float(loss.detach())
            if step + 1 < outer:
                recipe = training.Recipe(epochs=inner, batch_size=batch_train)
                seed, everything = stream_seed(the_job.seed, "training of the matched network", number), torch.arange(6)
                orders = [training.epoch_order(recipe, everything, seed, epoch) for epoch in range(inner)]
                batches = [batch for order in orders for batch in order.split(batch_train)]
                descent = torch.optim.SGD(module.parameters(), lr=0.01)
                plain.train(module, descent, batches, x.detach(), the_job.labels())
        losses.append(total / (3 * outer))
    return x.detach(), losses


@pytest.mark.parametrize("batch_train", [4, 256])
def test_dc_is_the_published_loop(batch_train):
    the_job = job(dtype=torch.float64)
    made = gm.dc(the_job, 3, batch_real=5, batch_train=batch_train, outer=3, inner=2, initialisation="real")
    x, losses = plain_dc(the_job, 3, 3, 2, batch_train)
    assert torch.allclose(made.x, x, atol=1e-8) and not torch.allclose(made.x, the_job.start("real"), atol=1e-2)
    assert made.history["loss"].tolist() == pytest.approx(losses, rel=1e-5)
    assert made.y.tolist() == [0, 0, 1, 1, 2, 2]


def test_training_between_outer_steps_is_plain_sgd_and_augmented_by_image(monkeypatch):
    seen = []

    def train(net, x, y, recipe, seeds, compute):
        seen.append((recipe, seeds[0], compute))
        return training.Trained(net)

    monkeypatch.setattr(gm.training, "train", train)
    gm.dsa(job(10), strategy="crop", **FEW)
    recipe = training.Recipe(epochs=50, batch_size=256, learning_rate=0.01, momentum=0.0, augment="crop")
    assert {r for r, _, _ in seen} == {recipe} and len(seen) == 2 * 9
    assert len({seed for _, seed, _ in seen}) == 18 and {compute for _, _, compute in seen} == {Compute()}


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_and_any_ipc_will_do(method):
    x = METHODS[method].make(job(3), inner=1, **FEW).x
    assert x.shape == (9, 1, 8, 8) and torch.equal(x, METHODS[method].make(job(3), inner=1, **FEW).x)
    assert not torch.equal(x, METHODS[method].make(job(3, seed=1), inner=1, **FEW).x)


@pytest.mark.parametrize("options", [{"norm": "batch"}, {"norm": "layer"}, {"pooling": "max"}, {"depth": 1}], ids=str)
def test_variants_of_the_network(options):
    made = gm.dsa(job(**options), inner=2, **FEW)
    assert torch.isfinite(made.x).all() and (made.history["loss"] > 0).all()


def test_other_networks():
    for name in ("LeNet", "MLP"):
        the_job = Job(toy_data(), build(name, (1, 8, 8), 3), 2)
        start, made = the_job.start("real"), gm.dc(the_job, inner=2, initialisation="real", **FEW)
        assert torch.isfinite(made.x).all() and not torch.equal(made.x, start)


def test_reduced_precision_is_for_the_real_gradients_alone(monkeypatch):
    seen = []
    real = gm.logits_function
    monkeypatch.setattr(gm, "logits_function", lambda a, compute: seen.append(compute) or real(a, compute))
    half = gm.dc(job(1), precision="bfloat16", **FEW).history["loss"]
    assert seen == [Compute("bfloat16"), Compute()] * 2
    assert half.tolist() == pytest.approx(gm.dc(job(1), **FEW).history["loss"].tolist(), rel=0.05)


def test_start_and_rate():
    still = gm.dc(job(20), rate=0.0, outer=1, **FEW).x
    assert float(still.mean()) == pytest.approx(0, abs=0.1) and float(still.std()) == pytest.approx(1, abs=0.1)
    assert torch.equal(gm.dsa(job(), rate=0.0, inner=0, **FEW).x, job().real_images())
    assert gm.image_rate(build("MLP", (1, 8, 8), 3)) == 0.01 and gm.image_rate(job().architecture) == 0.1


def test_published_constants():
    common = {
        "iterations": 1000, "rate": None, "momentum": 0.5, "network_rate": 0.01, "batch_real": 256, "batch_train": 256,
        "outer": None, "inner": None, "distance": "row-cosine", "precision": "float32", "compiled": False,
    }  # fmt: skip
    assert METHODS["dc"].settings({}) == common | {"initialisation": "noise"}
    assert METHODS["dsa"].settings({}) == common | {"initialisation": "real", "strategy": None}


def test_loops():
    published = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
    assert {ipc: gm.loops(ipc) for ipc in published} == published
    assert [gm.loops(ipc) for ipc in (2, 5, 11, 49, 51, 1250)] == [
        (2, 50),
        (5, 50),
        (11, 50),
        (49, 15),
        (50, 10),
        (50, 10),
    ]


@pytest.mark.parametrize("method", METHODS)
def test_resumes_exactly(method, tmp_path):
    given = {"iterations": 4, "batch_real": 5, "inner": 2}
    whole = METHODS[method].make(job(), **given)
    resumed = resuming.resumed(job(), tmp_path, lambda own: METHODS[method].make(own, **given), after=2, left=3)
    assert torch.equal(whole.x, resumed.x) and torch.equal(whole.history["loss"], resumed.history["loss"])


@pytest.mark.parametrize("method", METHODS)
def test_on_digits_the_loss_falls_and_networks_learn_more(method):
    digits = data.load("digits")
    the_job = Job(digits, build("ConvNet", digits.shape, 10, width=8, depth=2), 1)
    made = METHODS[method].make(the_job, iterations=80, batch_real=24)
    assert made.history["loss"][-10:].mean() < 0.8 * made.history["loss"][:5].mean()
    start = the_job.start(METHODS[method].settings({})["initialisation"])
    sets = [DistilledSet(x, made.y, 10, digits.mean, digits.std, method, "digits", 1) for x in (start, made.x)]
    found = evaluation.predict(sets, digits, the_job.architecture, "full-batch-300", [0, 1])
    before, after = (found.long() == digits.test_y).double().mean(1).view(2, 2).mean(1).tolist()
    assert after > before + 0.1


BAD = [
    ({"iterations": 0}, "iterations of DC is 0"),
    ({"batch_real": 0}, "batch_real of DC is 0"),
    ({"batch_real": 13}, "batch_real is 13: the smallest class of toy has 12 images"),
    ({"batch_train": 0}, "batch_train of DC is 0"),
    ({"outer": 0}, "outer of DC is 0"),
    ({"inner": -1}, "inner of DC is -1"),
    ({"rate": -1}, "rate of DC is -1"),
    ({"momentum": math.nan}, "momentum of DC is nan"),
    ({"network_rate": -0.1}, "network_rate of DC is -0.1"),
    ({"initialisation": "zeros"}, "unknown initialisation of the images 'zeros'"),
    ({"distance": "l1"}, "unknown distance of DC 'l1': allowed are row-cosine, mse, cos"),
    ({"precision": "float16"}, "unknown precision 'float16'"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=str)
def test_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        gm.dc(job(), **(FEW | given))


def test_refuses_more():
    with pytest.raises(ValueError, match="without augmentation it is DC"):
        gm.dsa(job(), strategy="", **FEW)
    with pytest.raises(ValueError, match="unknown augmentation 'swirl'"):
        gm.dsa(job(), strategy="swirl", **FEW)
    with pytest.raises(ValueError, match="rate of DSA is -1"):
        gm.dsa(job(), rate=-1, **FEW)
    with pytest.raises(ValueError, match="unknown distance of gradients 'l1'"):
        matching_distance.between("l1", gradients(0), gradients(1))
    with pytest.raises(ValueError, match="unknown distance of gradients 'l1'"):
        matching_distance.matched(job().architecture, "l1")
    with pytest.raises(FloatingPointError, match="loss of DC is nan in iteration 1: lower the rate"):
        gm.dc(job(), outer=1, rate=1e38, **FEW)
