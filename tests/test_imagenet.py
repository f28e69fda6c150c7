"""Networks that know another dataset: ImageNet's AlexNet for VOC, SVHN's LeNets for MNIST, all made up."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy.io import savemat
from test_data import idx
from torchvision.datasets import SVHN
from torchvision.models import AlexNet

from ddanalysis import data, imagenet
from ddanalysis.analysis import soft_labels
from ddanalysis.architectures import build
from ddanalysis.report import Run

HIDDEN = 16
PARAMS = Path(__file__).parents[1] / "params"


def narrow():
    """torchvision's network with few hidden units."""
    torch.manual_seed(0)
    theirs = AlexNet(dropout=0.0)
    for i, (f_in, f_out) in {1: (9216, HIDDEN), 4: (HIDDEN, HIDDEN), 6: (HIDDEN, 1000)}.items():
        theirs.classifier[i] = torch.nn.Linear(f_in, f_out)
    return theirs


def keep(folder, monkeypatch, state):
    """A file of weights under the name that its digits give it."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "weights")
    digits = hashlib.sha256((folder / "weights").read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(imagenet, "FILE", f"alexnet-owt-{digits}.pth")
    return (folder / "weights").rename(folder / imagenet.FILE)


@pytest.mark.parametrize("size", [224, 96])
def test_it_is_torchvisions_network_but_for_the_last_layer(tmp_path, monkeypatch, size):
    theirs = narrow().eval()
    keep(tmp_path, monkeypatch, theirs.state_dict())
    ours = imagenet.network(build("AlexNet-ImageNet", (3, size, size), 7, hidden=HIDDEN), tmp_path)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    theirs.classifier[6] = torch.nn.Identity()
    with torch.no_grad():
        assert torch.allclose(ours.features(x)[0], theirs(x), atol=1e-5) and float(theirs(x).std()) > 0.01
        assert torch.equal(ours.logits(x), torch.ones(1, 2, 7))


def test_weights_are_looked_for_in_the_data_folder_and_in_pytorchs_own(tmp_path, monkeypatch):
    a = build("AlexNet-ImageNet", (3, 64, 64), 7, hidden=HIDDEN)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(
        FileNotFoundError, match=r"no weights of ImageNet: looked for .*get_state_dict\(\) fetches them"
    ):
        imagenet.network(a, tmp_path)
    (tmp_path / "hub").mkdir()
    path = keep(tmp_path / "hub" / "checkpoints", monkeypatch, narrow().state_dict())
    assert imagenet.find(tmp_path) == imagenet.find(None) == path
    with pytest.raises(ValueError, match="AlexNet-ImageNet is needed, and the architecture is LeNet"):
        imagenet.network(build("LeNet", (3, 32, 32), 7), None)
    with pytest.raises(ValueError, match="fc0.weight is"):
        imagenet.network(build("AlexNet-ImageNet", (3, 64, 64), 7, hidden=2 * HIDDEN), None)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged: its sha256 begins with"):
        imagenet.network(a, None)
    keep(path.parent, monkeypatch, print)  # a stranger's pickle, which is not run
    with pytest.raises(ValueError, match="holds no weights"):
        imagenet.network(a, None)


def voc(root, classes=("aeroplane", "bird", "cat")):
    dice = np.random.default_rng(0)
    for k, name in enumerate(classes):
        for half, count in (("train", 8), ("test", 4)):
            folder = root / "voc" / half / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = dice.integers(0, 120, (40, 40, 3)) + 120 * (np.arange(3) == k)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


def digits(root, monkeypatch):
    """Made-up MNIST and SVHN as torchvision keeps them, of one grey a class, other greys in the two."""
    dice, y = np.random.default_rng(1), np.arange(60) % 10
    for half in ("train", "t10k"):
        x = dice.integers(0, 60, (60, 28, 28)) + 19 * y[:, None, None]
        idx(root / "MNIST" / "raw" / f"{half}-images-idx3-ubyte", x)
        idx(root / "MNIST" / "raw" / f"{half}-labels-idx1-ubyte", y)
    sums = {}
    for half in ("train", "test"):
        x = dice.integers(0, 60, (32, 32, 3, 60)) + 19 * ((y + 5) % 10)
        path = root / f"{half}_32x32.mat"
        savemat(path, {"X": x.astype(np.uint8), "y": np.where(y == 0, 10, y)[:, None]})
        sums[half] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", sums)


def asked(profile, **fewer):
    """The parameters of a profile, with ``fewer`` in its studies."""
    given = yaml.safe_load((PARAMS / profile / "09_soft_labels.yaml").read_text(encoding="utf-8"))
    return given, {name: own | fewer for name, own in given["studies"].items()}


def run_of(folder, profile):
    return Run("09_soft_labels", profile=profile, parameters={}, device="cpu", outputs=str(folder / "outputs"))


def test_images_of_voc_for_the_network_of_imagenet(tmp_path, monkeypatch):
    voc(tmp_path)
    keep(tmp_path, monkeypatch, narrow().state_dict())
    given, studies = asked("imagenet", iterations=4, decay_every=4, rate=0.1, step_size=0.02)
    images = data.load(given["dataset"], root=tmp_path, normalisation=given["normalisation"], size=64)
    a = build(given["learner"], images.shape, images.n_classes, hidden=HIDDEN)
    run = run_of(tmp_path, "imagenet")
    found = soft_labels.soft_labels(run, images, a, studies, given["set_seeds"], given["test_networks"])
    (row,) = found.table.to_dict("records")
    assert (row["mode"], row["initialisation"], row["images"], row["network_seed"]) == ("adaptation", "imagenet", 3, 0)
    assert row["loss_before"] == pytest.approx(np.log(3)) and row["network"] == "AlexNet-ImageNet-16"
    losses = found.history[found.history["component"] == "loss"]["value"]
    assert losses.iloc[-1] < losses.iloc[0]
    baseline = {"ipc": 1, "settings": given["baseline"]["settings"], "names": ["random real", "average real"]}
    real = soft_labels.baselines(run, images, a, [0, 1], given["test_networks"], rates=[0.01, 0.05], **baseline)
    assert real["mode"].tolist() == 2 * ["random real"] + 2 * ["average real"] and real["accuracy"].between(0, 1).all()
    published = build(given["learner"], images.shape, images.n_classes)
    theirs = soft_labels.published_accuracies(images, published, studies)
    assert theirs[theirs["method"] == "dd"][["network", "mode", "initialisation", "published"]].to_numpy().tolist() == [
        [given["learner"], "adaptation", "imagenet", 0.7075]
    ]


def test_a_network_or_weights_that_are_not_there_are_missed_before_any_work(tmp_path, monkeypatch):
    voc(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    images = data.load("voc", root=tmp_path)
    studies = {"first": {"networks": "fixed", "steps": 1}} | asked("imagenet")[1]
    run = run_of(tmp_path, "imagenet")
    with pytest.raises(FileNotFoundError, match="no weights of ImageNet"):
        soft_labels.soft_labels(run, images, build("AlexNet-ImageNet", images.shape, 3), studies, [0])
    with pytest.raises(ValueError, match="AlexNet-ImageNet is needed"):
        soft_labels.soft_labels(run, images, build("LeNet", images.shape, 3), studies, [0])


def test_images_of_mnist_for_networks_of_svhn(tmp_path, monkeypatch):
    digits(tmp_path, monkeypatch)
    few = {"iterations": 2, "batch_real": 30, "pretrained": 4, "pretrained_epochs": 2, "at_once": 2}
    given, studies = asked("svhn", **few)
    images = data.load(given["dataset"], root=tmp_path)
    a = build(given["learner"], images.shape, 10)
    found = soft_labels.soft_labels(run_of(tmp_path, "svhn"), images, a, studies, given["set_seeds"], 3)
    assert found.table["mode"].tolist() == 3 * ["adaptation"] and found.table["images"].tolist() == 3 * [100]
    assert found.table["accuracy_before"].between(0, 1).all() and images.shape == (3, 28, 28)
    theirs = soft_labels.published_accuracies(images, a, studies)
    ours = theirs[(theirs["method"] == "dd") & (theirs["initialisation"] == "pretrained")]
    assert 0.852 in ours["published"].tolist()
