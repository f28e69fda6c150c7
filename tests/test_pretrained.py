"""Reference networks: their recipes, where training stops, foreign state dicts, and what the networks recognise."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
import torchvision
from resuming import Stop
from safetensors.torch import save_file
from test_distill import toy_data
from torch import nn

from ddanalysis import networks, published, training
from ddanalysis.analysis import pretrained
from ddanalysis.analysis.pretrained import Reference, recipe, reference
from ddanalysis.architectures import build
from ddanalysis.data import hold_out
from ddanalysis.distilled import DistilledSet
from ddanalysis.report import Run
from ddanalysis.seeding import stream_seed
from ddanalysis.state_dicts import read_state
from ddanalysis.store import Checkpoint
from ddanalysis.training import Recipe

DATA = toy_data(per_class=20)
SMALL = build("ConvNet", (1, 8, 8), 3, width=4)
SLOW = Recipe(epochs=8, batch_size=8)
LEVEL = 0.6  # first reached by seeds 0, 1 and 3 after 4, 4 and 6 epochs, and by the first lost again after the next


def like_cifar():
    """Data that are called and shaped as CIFAR-10."""
    x = torch.zeros(10, 3, 32, 32)
    y = torch.arange(10)
    return replace(DATA, name="cifar10", train_x=x, train_y=y, test_x=x, test_y=y, classes=tuple("abcdefghij"))


# ------------------------------------------------------------------------------------------------ recipes


def test_convnets_are_trained_as_published_and_resnets_stop_at_the_published_accuracy():
    data = like_cifar()
    found = {name: reference(name, data) for name in pretrained.NAMES}
    assert [one.name for one in found.values()] == list(pretrained.NAMES)
    assert found["ConvNet-Tiny"].recipe == Recipe(epochs=20, batch_size=256, learning_rate=0.01, momentum=0.9)
    assert found["ConvNet"].recipe == Recipe(epochs=40)
    assert [one.stop_at for one in found.values()] == [0, 0, 0.9079, 0.9276]
    assert [one.architecture.parameter_count() for one in found.values()] == [7754, 320010, 11173962, 21282122]
    assert found["ResNet18"].recipe.augment == "crop_flip" and recipe("ResNet18", "mnist").augment == "crop"
    assert recipe("ResNet34", "cifar10", 10).milestones == (6, 8)
    assert reference("ConvNet", data, stop_at=0.8, epochs=3).recipe.epochs == 3
    assert reference("ResNet18", DATA).stop_at == 0  # nothing is published of it
    assert reference("ResNet18", replace(data, name="cifar10-jpeg")).stop_at == 0.9079


@pytest.mark.parametrize(
    ("name", "options", "called"),
    [
        ("ConvNet", {"width": 0, "depth": 3}, "ConvNet"),
        ("ConvNet", {"width": 16, "depth": 2}, "ConvNet-W16-D2"),
        ("ConvNet-Tiny", {"depth": 2}, "ConvNet-Tiny-D2"),
        ("ConvNet-Tiny", {"width": 4}, "ConvNet-W4"),
        ("ResNet34", {"widths": (16, 32, 64, 128)}, "ResNet34-W16"),
        ("ResNet18-IN", {}, "ResNet18-IN"),
    ],
)
def test_names_say_what_is_not_as_published(name, options, called):
    assert reference(name, DATA, **options).name == called


def test_the_published_legend_names_each_network_and_exchanges_two():
    table = published.load()
    drawn = table[(table["place"] == "Fig. 2 left") & (table["method"] == "mtt")].set_index("network")["note"]
    assert set(pretrained.PUBLISHED_LEGEND) == set(drawn.index) == set(pretrained.NAMES)
    for network in ("ResNet18", "ConvNet-Tiny", "ResNet34"):
        assert f"drawn as {pretrained.PUBLISHED_LEGEND[network]}" in drawn[network]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: reference("ResNet9", DATA), "unknown network 'ResNet9'"),
        (lambda: reference("ConvNet", DATA, stop_at=68.0), "stop_at of ConvNet is 68.0: it must be a share of 1"),
        (lambda: reference("ConvNet", DATA, stop_at=-0.1), "stop_at of ConvNet is -0.1"),
        (lambda: reference("ConvNet", DATA, epochs=-1), "epochs is -1"),
        (lambda: Reference("a", SMALL, Recipe(updates=5), 0.5), "stop_at of a is 0.5: its recipe must have epochs"),
    ],
)
def test_impossible_references_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------------------------ training


def held_out_curve(data, seed=0, epochs=8):
    """The plain way: train on the rest for so many epochs, each time from the start, and look at the held-out images.

    The network of each, and its accuracy.
    """
    own = stream_seed(seed, "reference network")
    rest, (x, y) = hold_out(data, 0.1, own)
    fresh = networks.create(SMALL, [own], dtype=data.train_x.dtype)
    nets = [
        training.train(fresh, rest.train_x, rest.train_y, replace(SLOW, epochs=n), [own]).networks
        for n in range(1, epochs + 1)
    ]
    return nets, [float(net.evaluate(x, y).accuracy[0]) for net in nets]


def test_training_stops_after_the_first_epoch_that_reaches_the_accuracy_on_held_out_images():
    data = toy_data(per_class=20, dtype=torch.float64)
    nets, accuracy = held_out_curve(data)
    first = next(i for i, value in enumerate(accuracy) if value >= LEVEL)
    assert 0 < first < len(nets) - 1 and accuracy[first + 1] < LEVEL
    found = pretrained.train(Reference("small", SMALL, SLOW, LEVEL), data, seed=0)
    assert found["epochs"].tolist() == [first + 1] and found["held_out"].tolist() == [accuracy[first]]
    for name, t in nets[first].state.items():
        assert torch.equal(found[f"state/{name}"], t)


def test_what_is_never_reached_ends_with_the_recipe_and_none_asked_for_learns_all_images():
    noise = replace(DATA, train_y=torch.arange(60) % 3)
    noise = replace(noise, train_y=noise.train_y[torch.randperm(60, generator=torch.Generator().manual_seed(0))])
    found = pretrained.train(Reference("small", SMALL, SLOW, 1.0), noise, seed=1)
    assert found["epochs"].tolist() == [8] and float(found["held_out"]) < 1
    plain = pretrained.train(Reference("small", SMALL, SLOW), noise, seed=1)
    own = stream_seed(1, "reference network")
    expected = training.train(networks.create(SMALL, [own]), noise.train_x, noise.train_y, SLOW, [own]).networks
    assert all(torch.equal(plain[f"state/{name}"], t) for name, t in expected.state.items())
    assert plain["epochs"].tolist() == [8] and plain["held_out"].isnan().all()


@pytest.mark.parametrize("stop_at", [0.0, LEVEL])
def test_the_test_images_are_never_looked_at(stop_at):
    blind = replace(DATA, test_x=torch.full_like(DATA.test_x, torch.nan), test_y=torch.full_like(DATA.test_y, -1))
    one = Reference("small", SMALL, SLOW, stop_at)
    both = [pretrained.train(one, data, seed=0) for data in (DATA, blind)]
    assert all(torch.equal(t.nan_to_num(2), both[1][name].nan_to_num(2)) for name, t in both[0].items())


def test_held_out_images_decide_when_to_stop_and_teach_nothing():
    own = stream_seed(0, "reference network")
    _, (x, _) = hold_out(DATA, 0.1, own)
    held = (DATA.train_x[:, None] == x).flatten(2).all(2).any(1)
    other = replace(DATA, train_x=torch.where(held[:, None, None, None], -DATA.train_x, DATA.train_x))
    assert held.sum() == 6
    both = [pretrained.train(Reference("small", SMALL, SLOW, LEVEL), data, seed=0) for data in (DATA, other)]
    epochs = int(both[0]["epochs"])
    assert epochs < int(both[1]["epochs"])
    ended = pretrained.train(Reference("small", SMALL, replace(SLOW, epochs=epochs), 1.0), other, seed=0)
    assert all(torch.equal(ended[name], t) for name, t in both[0].items() if name.startswith("state/"))


def test_an_interrupted_training_resumes_and_stops_in_the_same_epoch(tmp_path):
    one = Reference("small", SMALL, SLOW, LEVEL)
    whole = pretrained.train(one, DATA, seed=0)
    assert whole["epochs"].tolist() == [4]
    steps, per_epoch = [], 7  # 54 images in batches of 8

    def stop(n):
        steps.append(n)
        if len(steps) == per_epoch + 3:
            raise Stop

    checkpoint = Checkpoint(tmp_path / "net.checkpoint", {}, seconds=0)
    with pytest.raises(Stop):
        pretrained.train(one, DATA, seed=0, checkpoint=checkpoint, progress=stop)
    again = pretrained.train(one, DATA, seed=0, checkpoint=checkpoint)
    assert all(torch.equal(again[name], t) for name, t in whole.items())


@pytest.fixture
def run(tmp_path):
    return Run("02_pretrained_recognition", profile="smoke", parameters={}, device="cpu", outputs=str(tmp_path))


def test_networks_are_kept_and_read_again(run, monkeypatch):
    one = Reference("small", SMALL, SLOW, LEVEL)
    found = pretrained.pretrained(run, DATA, one, [0, 3])
    assert len(found.networks) == 2 and found.seeds == [0, 3]
    assert found.table.columns.tolist() == [
        "dataset", "network", "network_seed", "source", "stop_at", "epochs", "held_out_accuracy",
    ]  # fmt: skip
    assert found.table["source"].tolist() == ["trained"] * 2 and (found.table["held_out_accuracy"] >= LEVEL).all()
    assert found.table["epochs"].tolist() == [4, 6]
    monkeypatch.setattr(training, "train", None)
    again = pretrained.pretrained(run, DATA, one, [3, 0])
    assert again.table["epochs"].tolist() == found.table["epochs"].tolist()[::-1]
    assert all(torch.equal(again.networks[1].state[name], t[:1]) for name, t in found.networks.state.items())
    wider = replace(one, architecture=build("ResNet18", (1, 8, 8), 3, widths=(2, 2, 2, 4)))
    for other in (replace(one, stop_at=0.8), wider, replace(one, recipe=replace(SLOW, epochs=9))):
        with pytest.raises(TypeError):  # it has to be trained anew
            pretrained.pretrained(run, DATA, other, [0])


# ------------------------------------------------------------------------------------------------ recognising


def sets_of(data):
    soft = torch.eye(3)[data.train_y[:4]] * 0.9 + 0.02
    space = (3, data.mean, data.std)
    return [
        DistilledSet(data.train_x[:6], data.train_y[:6], *space, "random", data.name, 2, seed=4),
        DistilledSet(data.train_x[7:11].flip(3), soft.roll(1, 0), *space, "dm", data.name, 1),
    ]


def test_recognition_is_the_share_of_images_whose_class_is_predicted(run):
    nets = networks.create(SMALL, [1, 2, 3])
    one = pretrained.Pretrained("small", nets, [5, 6, 7], None)
    table = pretrained.recognised(run, DATA, [one], sets_of(DATA))
    assert table.columns.tolist() == [
        "dataset", "method", "ipc", "network", "set_seed", "network_seed", "accuracy", "images",
    ]  # fmt: skip
    assert len(table) == 9 and table["images"].tolist() == [9, 6, 4] * 3
    for k, seed in enumerate([5, 6, 7]):
        predict = nets[k].logits
        by_hand = [(predict(DATA.test_x)[0].argmax(1) == DATA.test_y).double().mean()]
        by_hand += [(predict(s.x)[0].argmax(1) == s.labels()).double().mean() for s in sets_of(DATA)]
        assert table.loc[table["network_seed"] == seed, "accuracy"].tolist() == [float(v) for v in by_hand]
    real = table[table["method"] == "real"]
    assert real["ipc"].isna().all() and real["set_seed"].isna().all()
    assert table.loc[table["method"] == "random", "set_seed"].eq(4).all()
    assert pretrained.recognise(nets, [], DATA).shape == (3, 1)


def test_published_numbers_come_beside_ours():
    what = {"dataset": "cifar10", "ipc": 10, "method": "dm", "network": "ConvNet-Tiny", "accuracy": 0.5}
    table = pretrained.pd.DataFrame([what]).astype({"ipc": "Int64"})
    found = published.beside(table, "recognition pretrained")
    assert sorted(found["published"]) == [0.47, 0.54]


def test_two_kinds_of_one_name_are_refused(run):
    one = pretrained.Pretrained("small", networks.create(SMALL, [1]), [0], None)
    with pytest.raises(ValueError, match="the networks are called small, small: each needs a name of its own"):
        pretrained.recognised(run, DATA, [one, one], sets_of(DATA))


# ------------------------------------------------------------------------------------------------ state dicts


def published_resnet(depth=18, classes=10):
    """Torchvision's ResNet with the published stem, its running statistics no longer those of a fresh network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(torchvision.models, f"resnet{depth}")(num_classes=classes)
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        for name, t in net.named_buffers():
            if "running" in name:
                t.uniform_(0.5, 1.5)
    return net.double().eval()


@pytest.mark.parametrize("depth", [18, 34])
def test_torchvision_resnets_have_the_same_features_in_float64(tmp_path, depth):
    net, a = published_resnet(depth), build(f"ResNet{depth}", (3, 32, 32), 10)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    ours = read_state(tmp_path / "net.pth", a)
    x, seen = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), []
    net.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        logits = net(x)
        assert torch.allclose(ours.features(x)[0], seen[0], rtol=1e-10, atol=1e-12)
        assert torch.allclose(ours.logits(x)[0], logits, rtol=1e-10, atol=1e-12)
    assert sum(t.numel() for t in net.parameters()) == a.parameter_count()


def dc_convnet(norm, width=4, depth=2, classes=3):
    """The ConvNet of the DC code base, by its parameter names."""
    layers, c_in = [], 1
    for _ in range(depth):
        layers.append(nn.Conv2d(c_in, width, 3, padding=1))
        layers += {"instance": [nn.GroupNorm(width, width)], "batch": [nn.BatchNorm2d(width)], "none": []}[norm]
        layers += [nn.ReLU(), nn.AvgPool2d(2)]
        c_in = width
    return nn.Sequential(
        OrderedDict(features=nn.Sequential(*layers), flat=nn.Flatten(), classifier=nn.Linear(4 * width, classes))
    )


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("wrapped", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"net": s}])
def test_convnets_of_the_dc_code_base_are_read(tmp_path, norm, wrapped):
    net = dc_convnet(norm).double().eval()
    held = wrapped({f"module.{name}": t for name, t in net.state_dict().items()})
    torch.save(held, tmp_path / "net.pt")
    ours = read_state(tmp_path / "net.pt", build("ConvNet", (1, 8, 8), 3, width=4, depth=2, norm=norm))
    x = DATA.test_x.double()
    assert torch.allclose(ours.logits(x)[0], net(x), rtol=1e-10, atol=1e-12)


def test_a_state_of_this_package_makes_a_round_trip_and_halves_become_floats(run, tmp_path):
    net = networks.create(SMALL, [1])
    path = tmp_path / "net.safetensors"
    save_file({name: t[0].half() for name, t in net.state.items()}, path)
    one = Reference("small", SMALL, SLOW, path=str(path))
    found = pretrained.pretrained(run, DATA, one, [0, 1, 2])
    assert len(found.networks) == 1 and found.seeds == [0] and found.table["source"].tolist() == [str(path)]
    for name, t in net.state.items():
        assert torch.equal(found.networks.state[name], t.half().float())
    assert found.table["epochs"].isna().all() and len(pretrained.recognised(run, DATA, [found], sets_of(DATA))) == 3


@pytest.fixture(scope="module")
def state():
    return dict(published_resnet().float().state_dict())


BROKEN = {
    "missing": (lambda s: s.pop("layer3.0.bn2.weight"), "it lacks layer3.0.bn2.weight$"),
    "two missing": (lambda s: [s.pop("bn1.weight"), s.pop("bn1.bias")], "it lacks bn1.weight and 1 more"),
    "no statistics": (lambda s: s.pop("bn1.running_mean"), "it lacks bn1.running_mean"),
    "unknown": (lambda s: s.update({"layer5.0.conv1.weight": torch.ones(2)}), "it has besides layer5.0.conv1"),
    "1000 classes": (
        lambda s: s.update({"fc.weight": torch.zeros(1000, 512)}),
        r"fc.weight has shape \(1000, 512\): \(10, 512\) is needed, of ResNet18 for images \(3, 32, 32\) and 10",
    ),
    "ImageNet stem": (
        lambda s: s.update({"conv1.weight": torch.zeros(64, 3, 7, 7)}),
        r"conv1.weight has shape \(64, 3, 7, 7\): \(64, 3, 3, 3\) is needed",
    ),
    "NaN": (lambda s: s["fc.bias"].fill_(torch.nan), "fc.bias is of type torch.float32 or not finite"),
    "whole numbers": (lambda s: s.update({"fc.bias": torch.ones(10).long()}), "fc.bias is of type torch.int64"),
    "other names": (
        lambda s: [s.update({f"x{i}": s.pop(name)}) for i, name in enumerate(list(s))],
        "no parameter of ResNet18 under a known name: it has x0, x1",
    ),
    "no tensors": (lambda s: s.update({"epoch": 3}), "holds a dict with .*: a state dict, names with tensors, is"),
    "nothing": (lambda s: s.clear(), "holds a dict with nothing: a state dict"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_state_dicts_are_refused(tmp_path, state, damage, message):
    held = {name: t.clone() if t.numel() < 5000 else t for name, t in state.items()}
    damage(held)
    torch.save({n: t.expand(t.shape) if isinstance(t, torch.Tensor) else t for n, t in held.items()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message):
        read_state(tmp_path / "a.pt", build("ResNet18", (3, 32, 32), 10))


def test_files_that_are_no_state_dict_are_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")  # a pickled module could run anything
    with pytest.raises(ValueError, match="Linear, which would have to be unpickled; refused"):
        read_state(tmp_path / "module.pt", SMALL)
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match="holds a tensor of shape .*: a state dict"):
        read_state(tmp_path / "tensor.pt", SMALL)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_state(tmp_path / "none.pt", SMALL)
