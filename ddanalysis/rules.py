"""Rules for values: what a parameter of a notebook, or a setting of a method, may be.

This module imports the standard library alone, as :mod:`ddanalysis.parameters` does; the names of what the package
implements are repeated here, and a test holds them to the package.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

NETWORKS = (
    "ConvNet",
    "ConvNet-Tiny",
    "LeNet",
    "AlexCifarNet",
    "MLP",
    "MLP-small",
    "AlexNet",
    "AlexNet-ImageNet",
    "VGG11",
    "ResNet14",
    "ResNet18",
    "ResNet34",
    "ResNet18-IN",
    "ResNet34-IN",
)
DATASETS = (
    "digits",
    "mnist",
    "fashion_mnist",
    "kmnist",
    "emnist_letters",
    "usps",
    "svhn",
    "cifar10",
    "cifar100",
    "voc",
    "tiny_imagenet",
    "cub200",
    "kuzushiji49",
    "kuzushiji49_published",
    "mnist_rgb",
    "usps28",
)
PRECISIONS = ("float32", "bfloat16")
WEIGHTS = (
    "default",
    "xavier_normal",
    "xavier_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "orthogonal",
    "kaiming_convolutions",
    "kaiming_in",
    "normal",
)
"""How networks begin."""
_DISTANCES = ("names", "means-mse", "means-nrmse", "means-ssim")
LABEL_STARTS = (
    *("one-hot", "smoothed", "orthogonal", "zeros", "ones", "normal", "uniform", "binary", "file"),
    *_DISTANCES,
    *(f"{name}-inverted" for name in _DISTANCES),
    "given",
)
"""How labels that are learned begin."""

Rule = Callable[[str, Any], None]
"""A rule gets a name and a value; it raises :class:`ParameterError` for a value that is not allowed."""


class ParameterError(ValueError):
    """One sentence for every parameter that was refused, one a line."""


def _rule(holds: Callable[[Any], bool], needed: str) -> Rule:
    """The rule that ``holds`` is true of a value, else the sentence ends in ``needed``."""

    def rule(name: str, value: Any) -> None:
        if not holds(value):
            raise ParameterError(f"{name} is {value!r}: {needed}{yaml_hint(value)}")

    return rule


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)


def yaml_hint(value: Any) -> str:
    """How to write a number that YAML took for text: it wants a point in the mantissa, a sign in the exponent."""
    if isinstance(value, list):
        return next(filter(None, map(yaml_hint, value)), "")
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        return ""
    if not math.isfinite(number):
        return ""
    mantissa, _, exponent = value.strip().lower().partition("e")
    plain = f"{number:.15f}".rstrip("0").rstrip(".")
    spelt = f" or {mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+d}" if exponent else ""
    return f"; YAML reads {value} as text; write {plain}{spelt}"


def whole(lowest: int) -> Rule:
    """A whole number of at least ``lowest``; a bool is none."""
    return _rule(lambda v: _is_whole(v) and v >= lowest, f"it must be a whole number of at least {lowest}")


def positive(highest: float = math.inf) -> Rule:
    """A finite number in (0, ``highest``]."""
    bound = "" if highest == math.inf else f" and at most {highest:g}"
    return _rule(lambda v: _is_number(v) and 0 < v <= highest, f"it must be a number above 0{bound}")


def choice(allowed: Sequence[str]) -> Rule:
    """One of the names in ``allowed``."""
    return _rule(lambda v: isinstance(v, str) and v in allowed, f"allowed are {', '.join(allowed)}")


def choice_or_path(allowed: Sequence[str]) -> Rule:
    """One of the names in ``allowed``, or the path of a distilled set: text with a ``/`` in it."""
    return _rule(
        lambda v: isinstance(v, str) and (v in allowed or "/" in v),
        f"allowed are {', '.join(allowed)}, or the path of a distilled set (with a / in it)",
    )


def numbers_from(lowest: float) -> Rule:
    """A number of at least ``lowest``, or a list of such."""

    def fine(v: Any) -> bool:
        return _is_number(v) and v >= lowest

    return _rule(
        lambda v: fine(v) or (isinstance(v, list) and v != [] and all(map(fine, v))),
        f"it must be a number of at least {lowest:g}, or a list of such",
    )


def one_of_or_path(allowed: Sequence[str]) -> Rule:
    """One of the names in ``allowed``, or a path: text with a ``/`` in it or ending in ``.npz``."""
    return _rule(
        lambda v: isinstance(v, str) and (v in allowed or "/" in v or v.endswith(".npz")),
        f"allowed are {', '.join(allowed)}, or the path of an .npz file or a folder (with a / in it)",
    )


below_one = _rule(lambda v: _is_number(v) and 0 <= v < 1, "it must be a number of at least 0 and below 1")
two_fractions = _rule(
    lambda v: isinstance(v, list) and len(v) == 2 and all(map(_is_number, v)) and 0 < v[0] < v[1] <= 1,
    "it must be a list of two numbers, 0 < low < high <= 1",
)
number = _rule(_is_number, "it must be a number")
settings = _rule(lambda v: isinstance(v, dict) and all(isinstance(key, str) for key in v), "it must be a dict of names")
text = _rule(lambda v: isinstance(v, str), "it must be text")
some_text = _rule(lambda v: isinstance(v, str) and v != "", "it must be text that is not empty")
flag = _rule(lambda v: isinstance(v, bool), "it must be true or false")
_WORD = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
word = _rule(
    lambda v: isinstance(v, str) and v != "" and set(v) <= _WORD,
    "it must be a word of letters, digits, _ and -, since a folder is named so",
)


def word_or_nothing(name: str, value: Any) -> None:
    """A word that can name a folder, or "" for none."""
    if value != "":
        word(name, value)


def dict_of(key: Rule, value: Rule) -> Rule:
    """A dict whose keys pass one rule, and whose values another."""

    def each(name: str, given: Any) -> None:
        if not isinstance(given, dict):
            raise ParameterError(f"{name} is {given!r}: it must be a dict")
        for own, item in given.items():
            key(f"a key of {name}", own)
            value(f"{name}[{own!r}]", item)

    return each


def list_of(rule: Rule, at_least: int = 1) -> Rule:
    """A list of at least ``at_least`` values that each pass ``rule``, none of them twice."""

    def each(name: str, value: Any) -> None:
        if not isinstance(value, list) or len(value) < at_least:
            raise ParameterError(f"{name} is {value!r}: it must be a list of at least {at_least}")
        for position, item in enumerate(value):
            rule(f"{name}[{position}]", item)
            if item in value[:position]:
                raise ParameterError(f"{name} is {value!r}: it holds {item!r} twice, and once is allowed")

    return each
