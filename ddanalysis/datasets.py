"""The pixels of every dataset as they are stored: named ones, an ``.npz`` file, or a folder of images by class.

Nothing is normalised here; :mod:`ddanalysis.data` does that. Whatever the file, the result has one checked layout.
"""

import pickle
import string
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddanalysis import checks
from ddanalysis.image_files import Files, by_class, class_names, decode

DIGITS = tuple(string.digits)
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm".split()
)
KUZUSHIJI10 = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
KUZUSHIJI49 = (
    *"a i u e o ka ki ku ke ko sa shi su se so ta chi tsu te to na ni nu ne no ha hi fu he ho ma mi mu me mo ya yu yo "
    "ra ri ru re ro wa wi we wo n".split(),
    "iteration mark",
)

# name: (class in torchvision.datasets, what it leaves in the root, (c, h, w), class names)
TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw", (1, 28, 28), DIGITS),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw", (1, 28, 28), FASHION),
    "kmnist": ("KMNIST", "KMNIST/raw", (1, 28, 28), KUZUSHIJI10),
    "emnist_letters": ("EMNIST", "EMNIST/raw", (1, 28, 28), tuple(string.ascii_lowercase)),
    "usps": ("USPS", "usps.bz2", (1, 16, 16), DIGITS),
    "svhn": ("SVHN", "train_32x32.mat", (3, 32, 32), DIGITS),
    "cifar10": ("CIFAR10", "cifar-10-batches-py", (3, 32, 32), CIFAR10),
    "cifar100": ("CIFAR100", "cifar-100-python", (3, 32, 32), CIFAR100),
}
PACKED = ("cifar10", "cifar100", "fashion_mnist", "usps")  # also read from <root>/<name>.npz
SIZES = {"voc": 32, "cub200": 32, "tiny_imagenet": 64}  # image folders: the side of their images in pixels, by default
NAMES = ("digits", "mnist_rgb", "usps28", *TORCHVISION, "kuzushiji49", "kuzushiji49_published", *SIZES)

OFFICIAL = "official pixels"
LOSSY = "lossy jpeg copy"
KEYS = ("x_train", "y_train", "x_test", "y_test")
Arrays = dict[str, np.ndarray]
Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Pixels:
    """A dataset as stored: x (n, c, h, w), uint8 or float32 in [0, 1], 1 = white, and y (n,) int64."""

    name: str
    train_x: Tensor
    train_y: Tensor  # of every class at least one
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    source: str


def check_request(dataset: str, size: int | None) -> None:
    """``dataset`` is a known name or an existing path, and ``size`` is given for an image folder only."""
    path = Path(dataset).expanduser()
    if dataset not in NAMES and not path.exists():
        if path.suffix == ".npz" or "/" in dataset:
            raise FileNotFoundError(f"no file or folder {path}")
        own = "or the path of an .npz file or of a folder with train/ and test/"
        raise ValueError(f"unknown dataset {dataset!r}: allowed are {', '.join(NAMES)}, {own}")
    if size is not None:
        checks.whole("size", size)
        if dataset not in SIZES and (dataset in NAMES or path.is_file()):
            folders = f"{', '.join(SIZES)} and your own folder"
            raise ValueError(f"size={size} is given for {dataset}: only image folders are resized ({folders})")


def read(dataset: str, root: Path, *, size: int | None = None, download: bool = False) -> Pixels:
    """The pixels of a named dataset under ``root``, or of the ``.npz`` file or folder that ``dataset`` is the path of.

    ``size`` is the side, in pixels, that image folders are resized to. Raises ``FileNotFoundError`` where the data are
    not, saying where they were looked for, and ``ValueError`` for an unknown name and for damaged or unsuitable data.
    """
    check_request(dataset, size)
    if dataset not in NAMES:
        path = Path(dataset).expanduser()
        return _npz(path, path.stem, "user's file") if path.is_file() else _own_folder(path, size)
    if dataset == "digits":
        return _digits()
    if not root.is_dir() and not (download and dataset in (*TORCHVISION, "mnist_rgb", "usps28")):
        raise FileNotFoundError(f"no folder {root} to load {dataset} from: give root=, or set DDANALYSIS_DATA")
    if dataset == "usps28":
        return _usps28(root, download)
    if dataset == "mnist_rgb":
        return _mnist_rgb(root, download)
    if dataset in TORCHVISION:
        return _standard(dataset, root, download)
    if dataset in ("kuzushiji49", "kuzushiji49_published"):
        return _kuzushiji49(dataset, root)
    folders = {"voc": _voc, "cub200": _cub200, "tiny_imagenet": _tiny_imagenet}
    return folders[dataset](root, size or SIZES[dataset])


def _pixels(
    name: str, where: Path | str, arrays: Arrays, source: str, classes: tuple[str, ...] = (), shape: Shape | None = None
) -> Pixels:
    """``Pixels`` out of the four arrays in any layout; ``where`` is the origin that an error names."""
    train_x, test_x = (_layout(f"{key} of {where}", arrays[key]) for key in ("x_train", "x_test"))
    ours, theirs = tuple(train_x.shape[1:]), tuple(test_x.shape[1:])
    if ours != theirs:
        raise ValueError(f"{where}: training images are {ours}, test images {theirs} (c, h, w): they must be alike")
    if shape is not None and ours != shape:
        raise ValueError(f"{where}: images are {ours} (c, h, w): those of {name} are {shape}")
    train_y = _labels(f"y_train of {where}", arrays["y_train"], len(train_x))
    test_y = _labels(f"y_test of {where}", arrays["y_test"], len(test_x))
    highest = max(int(train_y.max()), int(test_y.max()))
    if not classes and highest >= len(train_y):
        raise ValueError(
            f"{where}: class id {highest} with {len(train_y)} training images: ids run from 0 without gaps"
        )
    classes = classes or tuple(str(c) for c in range(highest + 1))
    checks.labels(f"y_train of {where}", train_y, len(train_x), len(classes))
    checks.labels(f"y_test of {where}", test_y, len(test_x), len(classes))
    for c, count in enumerate(torch.bincount(train_y, minlength=len(classes)).tolist()):
        if count == 0:
            raise ValueError(f"{where}: class {c} ({classes[c]}) of {len(classes)} has no training images")
    return Pixels(name, train_x, train_y, test_x, test_y, classes, source)


def _layout(what: str, x: np.ndarray) -> Tensor:
    """Images NHW, NHWC or NCHW as (n, c, h, w), c 1 or 3; uint8 is kept, floats in [0, 1] become float32."""
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise ValueError(f"{what} has shape {x.shape}: images (n, h, w), (n, h, w, c) or (n, c, h, w) are needed")
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise ValueError(f"{what} is of type {x.dtype}: uint8, or floats in [0, 1], are needed")
    pixels = torch.from_numpy(x if x.dtype == np.uint8 else x.astype(np.float32))
    if pixels.is_floating_point() and not (float(pixels.min()) >= 0 and float(pixels.max()) <= 1):
        low, high = float(pixels.min()), float(pixels.max())
        raise ValueError(f"{what} holds NaN or floats outside [0, 1] (lowest {low:g}, highest {high:g})")
    if x.ndim == 3:
        return pixels[:, None]
    first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
    if first and last:
        raise ValueError(f"{what} has shape {x.shape}: its channels could be axis 1 or axis 3")
    if not first and not last:
        raise ValueError(f"{what} has shape {x.shape}: neither axis 1 nor axis 3 is 1 or 3 channels")
    return pixels if first else pixels.permute(0, 3, 1, 2)


def _labels(what: str, y: np.ndarray, n: int) -> Tensor:
    """Class ids as int64."""
    if y.dtype.kind not in "iu":
        raise ValueError(f"{what} is of type {y.dtype}: class ids must be integers")
    if y.shape != (n,):
        raise ValueError(f"{what} has shape {y.shape}: one class id for each of the {n} images is needed, ({n},)")
    if int(y.min()) < 0:
        raise ValueError(f"{what} holds {int(y.min())}: class ids start at 0")
    return torch.from_numpy(y.astype(np.int64))


def _find(root: Path, name: str, places: tuple[str, ...], how: str) -> Path:
    """The first of ``places`` under ``root`` that exists."""
    for place in places:
        if (root / place).exists():
            return root / place
    looked = " and ".join(str(root / place) for place in places)
    raise FileNotFoundError(f"no {name} in {root}: looked for {looked}; {how}")


def _arrays(path: Path, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> Arrays:
    """The arrays ``keys`` of an npz file, and those of ``optional`` that it has; nothing is ever unpickled."""
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("no zip archive, or cut short")
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file]
            if not missing:
                return {key: file[key] for key in (*keys, *optional) if key in file}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
        if "allow_pickle" in str(error):
            raise ValueError(f"{path} holds pickled Python objects, which are never loaded") from error
        raise ValueError(f"{path} is damaged or no npz file: {error}") from error
    raise ValueError(f"{path} lacks {', '.join(missing)}: {', '.join(keys)} are needed")


def _npz(path: Path, name: str, unstated: str, classes: tuple[str, ...] = (), shape: Shape | None = None) -> Pixels:
    """An npz file; its optional entries are ``source`` (where the pixels come from) and ``classes`` (their names)."""
    arrays = _arrays(path, KEYS, ("source", "classes"))
    if not classes and "classes" in arrays:
        classes = tuple(str(word) for word in arrays["classes"].ravel())
    source = str(arrays.get("source", unstated))
    return _pixels(f"{name}-jpeg" if source == LOSSY else name, path, arrays, source, classes, shape)


def _digits() -> Pixels:
    """The 1,797 digits that come with scikit-learn (8 x 8, 17 grey levels), split once and for all, by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8) / 16
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=360, stratify=y, random_state=0)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return _pixels("digits", "digits", arrays, "bundled with scikit-learn", DIGITS, (1, 8, 8))


def _standard(name: str, root: Path, download: bool) -> Pixels:
    """A dataset torchvision knows: its official files if they are there, else ``<name>.npz``, else a download."""
    _, place, shape, classes = TORCHVISION[name]
    packed = root / f"{name}.npz"
    if not (root / place).exists() and name in PACKED and packed.exists():
        return _npz(packed, name, f"{packed.name}, source not stated", classes, shape)
    if not download:
        places = (place, packed.name) if name in PACKED else (place,)
        _find(root, name, places, "put it there, or load with download=True")
    return _pixels(name, root / place, _torchvision(name, root, download), OFFICIAL, classes, shape)


def _torchvision(name: str, root: Path, download: bool) -> Arrays:
    """Both halves as torchvision reads them: USPS cut to uint8, EMNIST transposed; letters counted from 0."""
    from torchvision import datasets as official

    kind, place, *_ = TORCHVISION[name]
    arrays: Arrays = {}
    for split in ("train", "test"):
        options: dict[str, Any] = {"split": split} if kind == "SVHN" else {"train": split == "train"}
        if kind == "EMNIST":
            options["split"] = "letters"
        try:
            half = getattr(official, kind)(root, download=download, **options)
        except (RuntimeError, ValueError, AssertionError, OSError, EOFError, KeyError, pickle.UnpicklingError) as error:
            wrong = f"{name} in {root / place} is incomplete or damaged, or could not be fetched"
            raise ValueError(f"{wrong} ({error}): put it there anew, or load with download=True") from error
        arrays[f"x_{split}"] = np.asarray(half.data)
        labels = np.asarray(half.labels if kind == "SVHN" else half.targets)
        arrays[f"y_{split}"] = labels - 1 if kind == "EMNIST" else labels
    return arrays


def _mnist_rgb(root: Path, download: bool) -> Pixels:
    """MNIST with its grey value in all three channels, 28 x 28 (Wang et al. 2018, for SVHN to MNIST)."""
    grey = _standard("mnist", root, download)
    train_x, test_x = (x.expand(-1, 3, -1, -1) for x in (grey.train_x, grey.test_x))
    return replace(grey, name="mnist_rgb", train_x=train_x, test_x=test_x)


def _usps28(root: Path, download: bool) -> Pixels:
    """USPS as large as MNIST, 28 x 28: its digits, which fill their 16 x 16 pixels, in 22 x 22 with a margin of 3.

    For the copy of Wang et al. 2018, which nobody can fetch any more: this side is the one whose mean comes nearest to
    the .1597 of theirs.
    """
    small = _standard("usps", root, download)

    def framed(x: Tensor) -> Tensor:
        grey = x.float() / 255 if x.dtype == torch.uint8 else x
        return F.pad(F.interpolate(grey, (22, 22), mode="bilinear", align_corners=False), (3, 3, 3, 3))

    source = f"{small.source}, scaled to 28 x 28"
    return replace(small, name="usps28", train_x=framed(small.train_x), test_x=framed(small.test_x), source=source)


def _kuzushiji49(name: str, root: Path) -> Pixels:
    """Kuzushiji-49 (28 x 28, 49 classes) from its four npz files.

    "kuzushiji49_published" turns each grey value v into (256 - v) mod 256, as the code of Bohdal et al. 2020 (label
    distillation) did by passing 0..255 through a conversion meant for [0, 1]: its numbers are of those pictures.
    """
    arrays: Arrays = {}
    for split in ("train", "test"):
        for key, kind in ((f"x_{split}", "imgs"), (f"y_{split}", "labels")):
            path = _find(root, name, (f"k49-{split}-{kind}.npz",), "put the four k49-*.npz files there")
            arrays[key] = _arrays(path, ("arr_0",))["arr_0"]
    pixels = _pixels(name, root, arrays, OFFICIAL, KUZUSHIJI49, (1, 28, 28))
    if name == "kuzushiji49":
        return pixels
    if {pixels.train_x.dtype, pixels.test_x.dtype} != {torch.uint8}:
        raise ValueError(f"{root}: the images of {name} must be uint8")
    train_x, test_x = (0 - x for x in (pixels.train_x, pixels.test_x))  # uint8 wraps round at 256
    source = "official pixels v turned into (256 - v) mod 256"
    return replace(pixels, train_x=train_x, test_x=test_x, source=source)


def _own_folder(folder: Path, size: int | None) -> Pixels:
    """A folder with train/ and test/, each of images by class; grey if all images are."""
    classes = class_names(folder / "train")
    arrays = decode(folder, by_class(folder / "train", classes), by_class(folder / "test", classes), size)
    source = "user's folder" + (f", resized to {size} x {size}" if size else "")
    return _pixels(folder.resolve().name, folder, arrays, source, classes)


def _voc(root: Path, size: int) -> Pixels:
    """PASCAL VOC, sorted by the user into ``voc/train`` and ``voc/test`` with one folder of images a class.

    Its images carry several labels and the analyses need one: which class an image stands for is the user's choice.
    """
    folder = _find(root, "voc", ("voc",), "make voc/train and voc/test, each with one folder of images a class")
    classes = class_names(folder / "train")
    arrays = decode(folder, by_class(folder / "train", classes), by_class(folder / "test", classes), size, "RGB")
    return _pixels("voc", folder, arrays, f"user's folder, resized to {size} x {size}", classes)


def _cub200(root: Path, size: int) -> Pixels:
    """CUB-200-2011 with its own split (5,994 / 5,794 images), squashed to ``size`` x ``size``."""
    folder = _find(root, "cub200", ("CUB_200_2011",), "unpack CUB_200_2011.tgz there")
    tables = []
    for name in ("images", "image_class_labels", "train_test_split", "classes"):
        path = _find(folder, "table of cub200", (f"{name}.txt",), "unpack CUB_200_2011.tgz anew")
        tables.append(dict(line.split(maxsplit=1) for line in path.read_text().splitlines()))
    images, labels, split, names = tables
    halves: dict[str, Files] = {"0": [], "1": []}
    for key, file in images.items():
        if key not in labels or split.get(key) not in halves:
            raise ValueError(f"{folder}: image {key} ({file}) has no class, or is neither train (1) nor test (0)")
        halves[split[key]].append((folder / "images" / file, int(labels[key]) - 1))
    arrays = decode(folder, halves["1"], halves["0"], size, "RGB")
    return _pixels("cub200", folder, arrays, f"official images, resized to {size} x {size}", tuple(names.values()))


def _tiny_imagenet(root: Path, size: int) -> Pixels:
    """Tiny ImageNet; its test set is the labelled ``val`` (as published or sorted by class), else a sorted ``test``."""
    folder = _find(root, "tiny_imagenet", ("tiny-imagenet-200",), "unpack tiny-imagenet-200.zip there")
    classes = class_names(folder / "train")
    held = folder / "val" if (folder / "val").is_dir() else folder / "test"
    annotations, images = held / "val_annotations.txt", held / "images"
    if annotations.is_file() and images.is_dir() and any(images.iterdir()):
        test = []
        for file, name in (line.split("\t")[:2] for line in annotations.read_text().splitlines()):
            checks.one_of(f"class of {file} in {annotations}", name, classes)
            test.append((images / file, classes.index(name)))
    else:
        test = by_class(held, classes)
    arrays = decode(folder, by_class(folder / "train", classes), test, size, "RGB")
    source = OFFICIAL if size == 64 else f"official images, resized to {size} x {size}"
    return _pixels("tiny_imagenet", folder, arrays, source, classes)
