"""The zoo has the published sizes, and K networks behave as K single ones."""

import plain
import pytest
import torch
import torch.nn.functional as F

from ddanalysis import layers, networks, parameters
from ddanalysis.architectures import ZOO, build
from ddanalysis.compute import Compute

COUNTS = [  # published or counted from the published code: name, image shape, classes, options, trainable numbers
    ("ConvNet", (1, 28, 28), 10, {}, 317_706),
    ("ConvNet", (3, 32, 32), 10, {}, 320_010),
    ("ConvNet", (3, 32, 32), 100, {}, 504_420),
    ("ConvNet", (3, 32, 32), 10, {"depth": 1}, 331_530),
    ("ConvNet", (3, 32, 32), 10, {"depth": 2}, 233_610),
    ("ConvNet", (3, 32, 32), 10, {"width": 32}, 24_714),
    ("ConvNet", (3, 32, 32), 10, {"width": 64}, 86_282),
    ("ConvNet", (3, 32, 32), 10, {"width": 256}, 1_229_834),
    ("ConvNet", (3, 32, 32), 10, {"norm": "none"}, 319_242),
    ("ConvNet", (3, 32, 32), 10, {"norm": "layer"}, 663_306),
    ("ConvNet", (3, 32, 32), 10, {"norm": "batch"}, 320_010),
    ("ConvNet", (3, 32, 32), 10, {"norm": "group"}, 320_010),
    ("ConvNet", (3, 32, 32), 10, {"activation": "sigmoid", "pooling": "max"}, 320_010),
    ("ConvNet", (3, 32, 32), 10, {"pooling": "none"}, 1_610_250),
    ("ConvNet-Tiny", (3, 32, 32), 10, {}, 7_754),
    ("LeNet", (1, 28, 28), 10, {}, 61_706),
    ("LeNet", (3, 32, 32), 10, {}, 62_006),
    ("AlexCifarNet", (3, 32, 32), 10, {}, 1_756_426),
    ("AlexCifarNet", (3, 32, 32), 100, {}, 1_773_796),
    ("MLP", (3, 32, 32), 10, {}, 411_146),
    ("MLP", (1, 28, 28), 10, {}, 118_282),
    ("MLP-small", (1, 28, 28), 10, {}, 235_146),
    ("AlexNet", (3, 32, 32), 10, {}, 1_872_202),
    ("AlexNet", (1, 28, 28), 10, {}, 1_865_802),
    ("AlexNet-ImageNet", (3, 224, 224), 1000, {}, 61_100_840),
    ("AlexNet-ImageNet", (3, 224, 224), 20, {}, 57_085_780),
    ("VGG11", (3, 32, 32), 10, {}, 9_231_114),
    ("VGG11", (1, 28, 28), 10, {}, 9_229_962),
    ("ResNet14", (3, 32, 32), 10, {}, 175_258),
    ("ResNet14", (3, 32, 32), 100, {}, 181_108),
    ("ResNet18", (3, 32, 32), 10, {}, 11_173_962),
    ("ResNet34", (3, 32, 32), 10, {}, 21_282_122),
    ("ResNet18-IN", (3, 32, 32), 10, {}, 11_173_962),
    ("ResNet18-IN", (1, 28, 28), 10, {}, 11_172_810),
    ("ResNet34-IN", (3, 32, 32), 10, {}, 21_282_122),
]


@pytest.mark.parametrize(("name", "shape", "classes", "options", "count"), COUNTS)
def test_parameter_counts_are_the_published_ones(name, shape, classes, options, count):
    assert build(name, shape, classes, **options).parameter_count() == count


def test_width_0_is_the_published_width_and_names_say_what_differs():
    assert build("ConvNet", (3, 32, 32), 10, width=0) == build("ConvNet", (3, 32, 32), 10)
    assert build("LeNet", (3, 32, 32), 10, width=0).name == "LeNet"
    assert build("ConvNet-Tiny", (3, 32, 32), 10, width=0).name == "ConvNet-W16"
    assert build("ConvNet", (3, 32, 32), 10, width=32, norm="batch").name == "ConvNet-W32-batch"
    assert (
        build("ResNet18-IN", (3, 32, 32), 10).name == "ResNet18-IN"
        and build("ResNet14", (3, 32, 32), 10).name == "ResNet14"
    )


def test_the_vocabulary_names_the_zoo():
    assert tuple(ZOO) == tuple(parameters.NETWORKS)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 16, 16), (1, 28, 28), (3, 32, 32), (3, 64, 64)], ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_every_network_takes_every_size(name, shape):
    a = build(name, shape, 7)
    state = {n: torch.empty(2, *w.shape, device="meta") for n, w in a.weights().items()}
    x = torch.empty(3, 2 * shape[0], *shape[1:], device="meta")
    assert a.logits(state, x, {}).shape == (3, 2, 7)
    assert a.features(state, x, {}).shape[:2] == (3, 2)


def test_penultimate_features_of_the_published_convnet():
    nets = networks.create(build("ConvNet", (3, 32, 32), 10), [0])
    x = torch.zeros(2, 3, 32, 32)
    assert nets.features(x).shape == (1, 2, 2048)
    head = nets.features(x) @ nets.state["head.weight"].mT + nets.state["head.bias"][:, None]
    assert torch.allclose(head, nets.logits(x), atol=1e-6)


@pytest.mark.parametrize("name", ["ConvNet", "LeNet", "MLP", "AlexCifarNet", "AlexNet", "VGG11", "ResNet14"])
def test_k_networks_are_k_single_networks(name):
    nets = networks.create(build(name, (3, 32, 32), 10), [1, 2, 3], dtype=torch.float64)
    x = torch.randn(3, 4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = nets.logits(x)
    for k, one in enumerate(nets):
        assert torch.allclose(one.logits(x[k])[0], together[k], rtol=1e-10, atol=1e-12)
    assert torch.allclose(nets.logits(x[0]), nets.logits(x[:1].expand(3, -1, -1, -1, -1)))


def test_seeded_initialisation_is_pytorchs_and_a_networks_own():
    a = build("ConvNet", (1, 8, 8), 10, width=64)
    both, second = networks.create(a, [1, 2]), networks.create(a, [2])
    assert all(torch.equal(both.state[n][1:], second.state[n]) for n in both.state)
    before = torch.random.get_rng_state()
    networks.create(a, [5])
    assert torch.equal(before, torch.random.get_rng_state())
    ours = networks.create(a, list(range(20))).state
    for n, t in plain.convnet(1, 8, 10, 64).state_dict().items():
        weight = a.weights()[n]
        if weight.role in ("scale", "shift"):
            assert torch.equal(ours[n][0], t)
        else:  # uniform, with the bound of PyTorch's layer
            bound = weight.fan_in**-0.5
            assert float(t.abs().max()) <= bound * (1 + 1e-6)
            assert float(ours[n].abs().max()) == pytest.approx(bound, rel=0.02)
            assert float(ours[n].std()) == pytest.approx(bound / 3**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("how", "std"),
    [
        ("xavier_normal", (2 / (27 + 128 * 9)) ** 0.5),
        ("xavier_uniform", (2 / (27 + 128 * 9)) ** 0.5),
        ("kaiming_normal", (2 / (128 * 9)) ** 0.5),
        ("kaiming_uniform", (2 / 27) ** 0.5),
        ("kaiming_in", (1 / 27) ** 0.5),
        ("normal", 1.0),
    ],
)
def test_initialisations_have_their_spread(how, std):
    state = networks.create(build("ConvNet", (3, 8, 8), 10), [0, 1], how).state
    assert float(state["conv0.weight"].std()) == pytest.approx(std, rel=0.05)
    assert float(state["conv0.bias"].abs().max()) == 0


def test_kaiming_convolutions_leave_linear_layers_alone():
    a = build("ResNet14", (3, 32, 32), 10)
    ours, every = (networks.create(a, [0, 1], how).state for how in ("", "kaiming_normal"))
    assert float(ours["stem.weight"].std()) == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.1)
    assert float(ours["head.weight"].abs().max()) == pytest.approx(64**-0.5, rel=0.02)  # PyTorch's bound
    assert 0 < float(ours["head.bias"].abs().max()) <= 64**-0.5
    assert float(every["head.weight"].std()) == pytest.approx((2 / 10) ** 0.5, rel=0.1)


def test_orthogonal_initialisation_is_orthogonal():
    w = networks.create(build("MLP", (1, 8, 8), 10), [0, 1], "orthogonal").state["fc1.weight"]
    assert torch.allclose(w @ w.mT, torch.eye(128).expand(2, -1, -1), atol=1e-5)


@pytest.mark.parametrize("compute", [Compute(), Compute(compiled=True)], ids=["plain", "compiled"])
def test_evaluation_in_pieces_equals_one_pass(compute, monkeypatch):
    nets = networks.create(build("ConvNet", (1, 8, 8), 10, width=4), [0, 1, 2], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(23, 1, 8, 8, generator=g, dtype=torch.float64), torch.randint(0, 10, (23,), generator=g)
    monkeypatch.setattr(networks, "images_per_pass", lambda *_: 5)
    monkeypatch.setattr(networks, "networks_together", lambda *_: 2)
    found = nets.evaluate(x, y, compute)
    logits = nets.logits(x)
    assert torch.equal(found.predictions, logits.argmax(2))
    assert torch.allclose(found.accuracy, (logits.argmax(2) == y).double().mean(1))
    assert torch.allclose(found.loss, nets.loss(x, y))
    soft = nets.evaluate(x, torch.eye(10, dtype=torch.float64)[y], compute)
    assert torch.allclose(soft.loss, found.loss) and torch.equal(soft.accuracy, found.accuracy)


def test_logits_are_differentiable_in_images_and_parameters():
    nets = networks.create(build("ConvNet", (1, 8, 8), 3, width=2, activation="gelu"), [0, 1], dtype=torch.float64)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = nets.state["conv1.weight"].clone().requires_grad_()

    def loss(x, weight):
        return networks.Networks(nets.architecture, nets.state | {"conv1.weight": weight}).loss(x, torch.tensor([0, 2]))

    assert torch.autograd.gradcheck(loss, (x, weight))
    assert torch.autograd.gradgradcheck(loss, (x, weight))


BAD = [
    (lambda: build("ConvNet5", (1, 8, 8), 10), "unknown network 'ConvNet5'"),
    (lambda: build("ConvNet", (1, 8, 9), 10), "8 x 9"),
    (lambda: build("ConvNet", (1, 8, 8), 10, width=-1), "width is -1"),
    (lambda: build("ConvNet", (1, 8, 8), 10, norm="batchnorm"), "unknown ConvNet norm 'batchnorm'"),
    (lambda: build("ConvNet", (1, 8, 8), 10, colour=1), "unknown option of ConvNet 'colour'"),
    (lambda: build("LeNet", (1, 8, 8), 10, width=3), "unknown option of LeNet 'width'"),
    (lambda: build("ConvNet", (1, 8, 8), 0), "classes is 0"),
    (lambda: networks.create(build("MLP", (1, 8, 8), 10), []), "at least 1 network"),
    (lambda: networks.create(build("MLP", (1, 8, 8), 10), [-1]), "seed is -1"),
    (lambda: networks.create(build("MLP", (1, 8, 8), 10), [0], "he"), "unknown initialisation 'he'"),
    (
        lambda: networks.create(build("MLP", (1, 8, 8), 10), [0]).evaluate(torch.zeros(2, 3, 8, 8), torch.zeros(2)),
        "takes",
    ),
    (
        lambda: networks.create(build("MLP", (1, 8, 8), 10), [0]).spread(torch.zeros(2, 3, 1, 8, 8)),
        r"or \(1, n, c, h, w\)",
    ),
    (lambda: networks.Networks(build("MLP", (1, 8, 8), 10), {}), "missing or not known"),
    (lambda: Compute("float16"), "unknown precision"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_compiled_needs_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ValueError, match="no C\\+\\+ compiler"):
        Compute(compiled=True)


@pytest.mark.parametrize("shape", [(3, 4, 10, 10), (2, 3, 7, 9)])
def test_maxima_are_those_of_pytorch_with_and_without_gradients(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu()  # with ties
    x[0, 0, 0, 0] = float("nan")
    wanted = F.max_pool2d(x, 2)
    with torch.no_grad():
        assert layers.max_pool(x).nan_to_num(-1).equal(wanted.nan_to_num(-1))
    found = layers.max_pool(x.requires_grad_())
    assert found.requires_grad and found.detach().nan_to_num(-1).equal(wanted.nan_to_num(-1))
