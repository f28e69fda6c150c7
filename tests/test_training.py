"""The engine equals K plain PyTorch trainings, resumes exactly, and does not depend on what is computed together."""

import plain
import pytest
import torch

from ddanalysis import augment_dc, networks, training
from ddanalysis.architectures import build
from ddanalysis.augment_dc import DC_DIGITS
from ddanalysis.compute import Compute
from ddanalysis.seeding import generator
from ddanalysis.store import Checkpoint
from ddanalysis.training import Recipe

RELATIVE = 1e-9  # largest relative difference allowed between the engine and plain PyTorch, float64

CASES = {
    "convnet": ("ConvNet", (1, 8, 8), {"width": 4}, lambda: plain.convnet(1, 8, 3, 4)),
    "convnet-28": ("ConvNet", (1, 28, 28), {"width": 4}, lambda: plain.convnet(1, 28, 3, 4)),
    "convnet-batch": ("ConvNet", (3, 8, 8), {"width": 4, "norm": "batch"}, lambda: plain.convnet(3, 8, 3, 4, "batch")),
    "lenet": ("LeNet", (1, 28, 28), {}, lambda: plain.lenet(1, 28, 3)),
    "mlp": ("MLP", (1, 8, 8), {}, lambda: plain.mlp(1, 8, 3)),
    "resnet14": ("ResNet14", (3, 8, 8), {}, lambda: plain.ResNet(3, 3, (2, 2, 2), (16, 32, 64), "batch")),
    "resnet-in": (
        "ResNet18-IN", (3, 16, 16), {"widths": (4, 8), "blocks": (1, 1)},
        lambda: plain.ResNet(3, 3, (1, 1), (4, 8), "instance"),
    ),
}  # fmt: skip
RECIPES = {
    "sgd": Recipe(updates=6, batch_size=5, momentum=0.9, weight_decay=5e-4, learning_rate=0.05),
    "plain sgd": Recipe(epochs=2, batch_size=4, momentum=0.0, learning_rate=0.1),
    "full batch": Recipe(updates=4, batch_size=None),
    "adam": Recipe(updates=5, batch_size=5, optimiser="adam", learning_rate=0.003, weight_decay=1e-3),
}


def toy(shape, n=14, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=g, dtype=torch.float64), torch.arange(n) % 3


def plain_batches(recipe, rows, seed):
    """Row numbers of every update, from the published way: a permutation an epoch, cut into batches."""
    batches, epoch = [], 0
    while len(batches) < recipe.total_updates(len(rows)):
        order = training.epoch_order(recipe, rows, seed, epoch)
        batches += list(order.split(recipe.batch_size or len(rows)))
        epoch += 1
    return batches[: recipe.total_updates(len(rows))]


def one(nets, k):
    return {name: t[k] for name, t in nets.state.items()}


def difference(module, state):
    """Largest difference in any parameter, relative to the largest entry of that parameter."""
    own = module.state_dict()
    return max(float((own[n] - t).abs().max() / own[n].abs().max().clamp_min(1e-3)) for n, t in state.items())


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_plain_trainings(case, recipe):
    name, shape, options, module = case
    a = build(name, shape, 3, **options)
    x, y = toy(shape)
    nets = networks.create(a, [1, 2, 3], dtype=torch.float64)
    rows = [torch.arange(14), torch.arange(0, 14, 2), torch.arange(3, 14)]  # ragged: 14, 7 and 11 images
    trained = training.train(nets, x, y, recipe, seeds=[5, 6, 7], rows=rows).networks
    for k in range(3):
        net = plain.with_state(module(), one(nets, k))
        opt = plain.optimiser(net, recipe.optimiser, recipe.learning_rate, recipe.momentum, recipe.weight_decay)
        plain.train(net, opt, plain_batches(recipe, rows[k], 5 + k), x, y)
        assert difference(net, one(trained, k)) < RELATIVE
        assert difference(net, one(nets, k)) > 1e-4  # it did train


def test_milestones_and_restart_equal_a_rebuilt_optimiser():
    a, (x, y) = build("MLP", (1, 8, 8), 3), toy((1, 8, 8))
    recipe = Recipe(epochs=4, batch_size=5, milestones=(2,), restart=True, learning_rate=0.05)
    nets = networks.create(a, [1], dtype=torch.float64)
    trained = training.train(nets, x, y, recipe, seeds=[3]).networks
    net, batches = plain.with_state(plain.mlp(1, 8, 3), one(nets, 0)), plain_batches(recipe, torch.arange(14), 3)
    plain.train(net, plain.optimiser(net, "sgd", 0.05, 0.9, 0), batches[:6], x, y)
    plain.train(net, plain.optimiser(net, "sgd", 0.005, 0.9, 0), batches[6:], x, y)
    assert difference(net, one(trained, 0)) < RELATIVE


def test_soft_labels_are_cross_entropy_with_probabilities():
    a, (x, y) = build("MLP", (1, 8, 8), 3), toy((1, 8, 8))
    nets, recipe = networks.create(a, [1], dtype=torch.float64), Recipe(updates=3, batch_size=5)
    hard = training.train(nets, x, y, recipe, seeds=[0]).networks
    soft = training.train(nets, x, torch.eye(3, dtype=torch.float64)[y], recipe, seeds=[0]).networks
    assert all(torch.allclose(hard.state[n], soft.state[n], rtol=1e-12, atol=1e-14) for n in hard.state)


def test_leave_one_out_mask_equals_deletion():
    a, (x, y) = build("ConvNet", (1, 8, 8), 3, width=4), toy((1, 8, 8))
    nets, recipe = networks.create(a, [1] * 14, dtype=torch.float64), Recipe(updates=3, batch_size=None)
    masks = list(~torch.eye(14, dtype=torch.bool))
    together = training.train(nets, x, y, recipe, seeds=[0] * 14, rows=masks).networks
    for j in (0, 13):
        kept = masks[j]
        alone = training.train(nets[j], x[kept], y[kept], recipe, seeds=[0]).networks
        assert all(torch.allclose(alone.state[n][0], together.state[n][j], rtol=1e-9, atol=1e-12) for n in alone.state)


@pytest.mark.parametrize("strategy", ["", "color_crop_cutout_scale_rotate", "dc:crop_scale_rotate"])
def test_does_not_depend_on_what_is_computed_together(strategy):
    a, (x, y) = build("ConvNet", (1, 8, 8), 3, width=4), toy((1, 8, 8))
    recipe = Recipe(epochs=2, batch_size=5, augment=strategy)
    nets = networks.create(a, [1, 2, 3], dtype=torch.float64)
    rows = [torch.arange(n) for n in (14, 9, 12)]
    together = training.train(nets, x, y, recipe, seeds=[4, 5, 6], rows=rows).networks
    for k in range(3):
        alone = training.train(nets[k], x, y, recipe, seeds=[4 + k], rows=rows[k : k + 1]).networks
        assert all(torch.allclose(alone.state[n][0], together.state[n][k], rtol=1e-9, atol=1e-12) for n in alone.state)


@pytest.mark.parametrize("batch_size", [2, 14])
def test_batches_and_rates_are_taken_as_given(batch_size):
    a, (x, y) = build("ConvNet", (1, 8, 8), 3, width=4), toy((1, 8, 8))
    nets, rates = networks.create(a, [1, 2], dtype=torch.float64), (0.3, 0.01, 0.1)
    g = torch.Generator().manual_seed(0)
    batches = [torch.randint(14, (3, batch_size), generator=g) for _ in range(2)]  # a row may come twice
    recipe = Recipe(updates=3, batch_size=batch_size, momentum=0.0)
    trained = training.train(nets, x, y, recipe, [0, 0], batches, rates=rates).networks
    for k in range(2):
        net = plain.with_state(plain.convnet(1, 8, 3, 4), one(nets, k))
        for rate, rows in zip(rates, batches[k], strict=True):
            plain.train(net, plain.optimiser(net, "sgd", rate, 0, 0), [rows], x, y)
        assert difference(net, one(trained, k)) < RELATIVE


def test_dc_augmentation_is_that_of_the_network_and_update():
    a, (x, y) = build("MLP", (1, 8, 8), 3), toy((1, 8, 8))
    nets, recipe = networks.create(a, [1], dtype=torch.float64), Recipe(updates=3, batch_size=None, augment=DC_DIGITS)
    trained = training.train(nets, x, y, recipe, [7]).networks
    net = plain.with_state(plain.mlp(1, 8, 3), one(nets, 0))
    opt = plain.optimiser(net, "sgd", 0.01, 0.9, 0)
    for update in range(3):
        images = augment_dc.augment(x, DC_DIGITS, generator(7, "augment", update))
        plain.train(net, opt, [torch.arange(14)], images, y)
    assert difference(net, one(trained, 0)) < RELATIVE


def test_equal_seeds_share_batches_and_different_ones_do_not():
    a, (x, y) = build("MLP", (1, 8, 8), 3), toy((1, 8, 8))
    nets = networks.create(a, [1, 1, 1])
    t = training.train(nets, x.float(), y, Recipe(updates=3, batch_size=5), seeds=[2, 2, 3]).networks.state[
        "head.weight"
    ]
    assert torch.equal(t[0], t[1]) and not torch.equal(t[0], t[2])


def test_training_slices_a_wide_batch_without_changing_it(monkeypatch):
    a, (x, y) = build("ConvNet", (1, 8, 8), 3, width=4), toy((1, 8, 8))
    nets, recipe = networks.create(a, [1], dtype=torch.float64), Recipe(updates=3, batch_size=10)
    whole = training.train(nets, x, y, recipe, seeds=[0]).networks
    monkeypatch.setattr(training, "images_per_pass", lambda *_: 3)
    sliced = training.train(nets, x, y, recipe, seeds=[0]).networks
    assert all(torch.allclose(whole.state[n], sliced.state[n], rtol=1e-9, atol=1e-12) for n in whole.state)


def test_observes_at_the_chosen_updates_only():
    a, (x, y) = build("MLP", (1, 8, 8), 3), toy((1, 8, 8))
    nets, recipe = networks.create(a, [1, 2]), Recipe(updates=5, batch_size=5)
    trained = training.train(
        nets, x.float(), y, recipe, [3, 4], observe=lambda n: {"w": n.state["head.bias"]}, at=(0, 2, 5)
    )
    seen = trained.observed["w"]
    assert seen.shape == (2, 3, 3)
    assert torch.equal(seen[:, 0], nets.state["head.bias"]) and torch.equal(
        seen[:, 2], trained.networks.state["head.bias"]
    )
    early = training.train(nets, x.float(), y, Recipe(updates=2, batch_size=5), [3, 4]).networks
    assert torch.equal(seen[:, 1], early.state["head.bias"])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_resumes_exactly_after_an_interruption(tmp_path, optimiser):
    a, (x, y) = build("ConvNet", (3, 8, 8), 3, width=4, norm="batch"), toy((3, 8, 8))
    nets, recipe = networks.create(a, [1, 2], dtype=torch.float64), Recipe(updates=7, batch_size=5, optimiser=optimiser)
    arguments = {"seeds": [3, 4], "observe": lambda n: {"w": n.state["head.bias"]}, "at": range(8)}
    whole = training.train(nets, x, y, recipe, **arguments)
    updates = []

    def stop(n):
        updates.append(n)
        if len(updates) == 4:
            raise Interrupted

    checkpoint = Checkpoint(tmp_path / "pool.checkpoint", {"what": "test"}, seconds=0)
    with pytest.raises(Interrupted):
        training.train(nets, x, y, recipe, checkpoint=checkpoint, progress=stop, **arguments)
    updates.clear()
    resumed = training.train(nets, x, y, recipe, checkpoint=checkpoint, progress=updates.append, **arguments)
    assert len(updates) == 4  # the interrupted fourth update came after the save of the third
    assert all(torch.equal(whole.networks.state[n], resumed.networks.state[n]) for n in whole.networks.state)
    assert torch.equal(whole.observed["w"], resumed.observed["w"])


def test_compiled_and_bfloat16_train_the_same_function():
    a, (x, y) = build("ConvNet", (1, 8, 8), 3, width=4, activation="gelu"), toy((1, 8, 8))
    nets, recipe = networks.create(a, [1]), Recipe(updates=5, batch_size=6, learning_rate=0.05)
    plainly = training.train(nets, x.float(), y, recipe, seeds=[0]).networks
    compiled = training.train(nets, x.float(), y, recipe, seeds=[0], compute=Compute(compiled=True)).networks
    rough = training.train(nets, x.float(), y, recipe, seeds=[0], compute=Compute("bfloat16")).networks
    assert all(torch.allclose(plainly.state[n], compiled.state[n], atol=1e-5) for n in nets.state)
    assert all(torch.allclose(plainly.state[n], rough.state[n], atol=3e-2) for n in nets.state)
    assert not all(torch.equal(plainly.state[n], rough.state[n]) for n in nets.state)


BAD = {
    "seeds": ({"seeds": [1]}, "1 seeds for 2 networks"),
    "rows count": ({"rows": [torch.arange(3)]}, "1 rows for 2 networks"),
    "rows range": ({"rows": [torch.tensor([99]), torch.tensor([0])]}, "row numbers from 0 to 13"),
    "rows empty": ({"rows": [torch.tensor([], dtype=torch.int64)] * 2}, "row numbers from 0 to 13"),
    "batches": ({"rows": [torch.zeros(3, 2, dtype=torch.int64)] * 2}, r"network 0 have shape \(3, 2\): \(2, 256\)"),
    "batches range": ({"rows": [torch.full((2, 256), 14)] * 2}, "row numbers from 0 to 13"),
    "rates": ({"rates": (0.1,) * 3}, "3 learning rates, the recipe has updates = 2"),
    "mask": ({"rows": [torch.ones(3, dtype=torch.bool)] * 2}, "mask of network 0"),
    "labels": ({"y": torch.full((14,), 7)}, "allowed are 0 to 2"),
    "nan": ({"x": torch.full((14, 1, 8, 8), torch.nan)}, "NaN"),
    "shape": ({"x": torch.zeros(14, 1, 9, 9)}, r"\(1, 8, 8\) is needed"),
    "late": ({"at": [9], "observe": lambda n: {}}, "update 9 is to be observed"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_refuses_before_any_work(change, message):
    x, y = toy((1, 8, 8))
    nets = networks.create(build("MLP", (1, 8, 8), 3), [1, 2])
    arguments = {"x": x.float(), "y": y, "recipe": Recipe(updates=2), "seeds": [1, 2]} | change
    with pytest.raises(ValueError, match=message):
        training.train(nets, **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one"),
        ({"epochs": 1, "updates": 1}, "exactly one"),
        ({"updates": 1, "optimiser": "lamb"}, "unknown optimiser 'lamb'"),
        ({"updates": 1, "learning_rate": -1}, "learning_rate is -1"),
        ({"updates": 1, "batch_size": 0}, "batch_size is 0"),
        ({"updates": 1, "augment": "colour_swirl"}, "swirl|colour"),
        ({"updates": 1, "augment": "dc:crop_flip"}, "dc:crop_flip"),
        ({"updates": 1, "augment": None}, "strategy is None"),
    ],
)
def test_a_recipe_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)
