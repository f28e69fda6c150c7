"""Strict notebook parameters: an undeclared name, a wrong type or an impossible value stops a notebook at once.

Cell 2 of a notebook, tagged ``parameters``, holds annotated assignments and nothing else; papermill puts a cell with
the values of a run behind it, and warns at most when that cell misspells a name. Cell 3 therefore says, before every
other import::

    from ddanalysis.parameters import check_parameters

    parameters = check_parameters(globals())

One vocabulary serves all notebooks: a name means the same thing, and allows the same values, wherever it appears.
This module imports the standard library alone, so that the check costs milliseconds; the names of what the package
implements are repeated here, and a test holds them to the package.
"""

import ast
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

NETWORKS = (
    "ConvNet",
    "ConvNet-Tiny",
    "LeNet",
    "AlexCifarNet",
    "MLP",
    "MLP-small",
    "AlexNet",
    "VGG11",
    "ResNet14",
    "ResNet18",
    "ResNet34",
    "ResNet18-IN",
    "ResNet34-IN",
)
PROTOCOLS = ("full-batch-300", "dc-300", "dsa-1000")
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
)
MATCHING = ("nearest", "published")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bfloat16")

TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}

Rule = Callable[[str, Any], None]
"""A rule gets a name and a value; it raises :class:`ParameterError` for a value that is not allowed."""


class ParameterError(ValueError):
    """One sentence for every parameter that was refused, one a line."""


# --------------------------------------------------------------------------------------------------------------- rules


def _rule(holds: Callable[[Any], bool], needed: str) -> Rule:
    """The rule that ``holds`` is true of a value, else the sentence ends in ``needed``."""

    def rule(name: str, value: Any) -> None:
        if not holds(value):
            raise ParameterError(f"{name} is {value!r}: {needed}{_yaml_hint(value)}")

    return rule


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)


def _yaml_hint(value: Any) -> str:
    """How to write a number that YAML took for text: it wants a point in the mantissa, a sign in the exponent."""
    if isinstance(value, list):
        return next(filter(None, map(_yaml_hint, value)), "")
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


def method_settings(name: str, value: Any) -> None:
    """A dict of methods, each with a dict of that method's settings; what it leaves out has its published value."""
    if not isinstance(value, dict):
        raise ParameterError(f"{name} is {value!r}: it must be a dict of methods, each with a dict of settings")
    for method, given in value.items():
        choice(METHODS)(f"a method in {name}", method)
        if not isinstance(given, dict):
            raise ParameterError(f"{name}[{method!r}] is {given!r}: it must be a dict of settings")
        for key, setting in given.items():
            if key not in SETTINGS[method]:
                raise ParameterError(
                    f"{key!r} is no setting of {method} in {name}: allowed are {', '.join(SETTINGS[method]) or 'none'}"
                )
            SETTINGS[method][key](f"{name}[{method!r}][{key!r}]", setting)


_GRADIENT_MATCHING: dict[str, Rule] = {
    "iterations": whole(1),
    "rate": positive(),
    "momentum": below_one,
    "network_rate": positive(),
    "batch_real": whole(1),
    "batch_train": whole(1),
    "outer": whole(1),
    "inner": whole(0),
    "initialisation": choice(("real", "noise")),
    "distance": choice(("row-cosine", "mse", "cos")),
    "precision": choice(PRECISIONS),
    "compiled": flag,
}

SETTINGS: dict[str, dict[str, Rule]] = {
    "dc": _GRADIENT_MATCHING,
    "dsa": _GRADIENT_MATCHING | {"strategy": text},
    "dm": {
        "iterations": whole(1),
        "rate": positive(),
        "momentum": below_one,
        "batch_real": whole(1),
        "strategy": text,
        "initialisation": choice(("real", "noise")),
    },
    "mtt": {
        "iterations": whole(1),
        "steps": whole(1),
        "expert_epochs": whole(1),
        "latest_start": whole(1),
        "minibatch": whole(1),
        "rate": positive(),
        "rate_of_step_size": positive(),
        "step_size": positive(),
        "momentum": below_one,
        "experts": whole(1),
        "expert_rate": positive(),
        "expert_batch": whole(1),
        "strategy": text,
        "gradient": choice(("exact", "tesla")),
        "initialisation": choice(("real", "noise")),
        "at_once": whole(1),
    },
    "bptt": {
        "iterations": whole(1),
        "steps": whole(1),
        "inner_rate": positive(),
        "inner_momentum": below_one,
        "rate": positive(),
        "momentum": below_one,
        "clip": positive(),
        "batch_real": whole(1),
        "minibatch": whole(1),
        "strategy": text,
        "initialisation": choice(("xavier", "noise", "real")),
        "at_once": whole(1),
    },
    "rat": {
        "iterations": whole(1),
        "window": whole(1),
        "horizon": whole(1),
        "window_start": choice(("fixed", "sliding", "random")),
        "earliest": whole(0),
        "every_iteration": flag,
        "inner_rate": positive(),
        "rate": positive(),
        "clip": positive(),
        "batch_real": whole(1),
        "minibatch": whole(1),
        "learn_labels": flag,
        "strategy": text,
        "initialisation": choice(("unit_noise", "noise", "real")),
        "at_once": whole(1),
    },
    "random": {},
    "class_mean": {},
    "k_means": {},
    "herding": {"epochs": whole(0)},
}
"""The settings of every method."""

METHODS = tuple(SETTINGS)

VOCABULARY: dict[str, Rule] = {
    # where a run reads and writes
    "profile": word,
    "part": word_or_nothing,  # "" or the name of one job's share of a notebook
    "outputs": text,  # "" is outputs/<profile> of the project
    "data_root": text,  # "" is the loader's default
    "extra_sets": list_of(some_text, at_least=0),  # paths of distilled sets that others made
    # data and networks
    "dataset": one_of_or_path(DATASETS),
    "normalisation": text,  # "" is the default of the dataset
    "network": choice(NETWORKS),
    "width": whole(0),  # 0 is the published width
    # distilled sets
    "methods": list_of(choice(METHODS)),
    "ipc": list_of(whole(1)),
    "set_seeds": list_of(whole(0)),
    "distill": method_settings,
    # training and evaluation
    "protocol": choice(PROTOCOLS),
    "protocols": list_of(choice(PROTOCOLS)),
    "network_seeds": whole(1),  # networks a set
    "batch_size": whole(1),
    "learning_rate": positive(),
    "momentum": below_one,
    "seed": whole(0),
    # agreement
    "subset_pool": whole(1),
    "subset_fractions": two_fractions,
    "subset_epochs": whole(1),
    "early_stopping_pool": whole(1),
    "early_stopping_updates": whole(1),
    "accuracy_tolerance": positive(1),
    "matching": list_of(choice(MATCHING)),
    "bootstrap": whole(1),
    # early-training recognition
    "recognition_seeds": whole(1),
    "recognition_updates": whole(1),
    "level": positive(1),
    # the machine
    "device": choice(DEVICES),
    "threads": whole(1),
    "precision": choice(PRECISIONS),
    "compile": flag,
}


# --------------------------------------------------------------------------------------------------------------- cells


def _annotations(source: str) -> dict[str, tuple[str, ast.expr]] | None:
    """Name -> (annotation, value) of a cell of annotated assignments; None for any other cell."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):
        return None
    found = {}
    for statement in statements:
        if (
            not isinstance(statement, ast.AnnAssign)
            or not isinstance(statement.target, ast.Name)
            or statement.value is None
        ):
            return None
        found[statement.target.id] = (ast.unparse(statement.annotation), statement.value)
    return found or None


def _assigned(source: str) -> list[str]:
    """The names that papermill's cell assigns."""
    targets = [target for node in ast.parse(source).body if isinstance(node, ast.Assign) for target in node.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _history(cells: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Name -> annotation of the latest parameters cell that ran, and the names papermill gave right behind it."""
    for position in range(len(cells) - 1, -1, -1):
        found = _annotations(cells[position])
        if found is not None:
            behind = cells[position + 1] if position + 1 < len(cells) else ""
            given = _assigned(behind) if behind.startswith("# Parameters") else []
            return {name: annotation for name, (annotation, _) in found.items()}, given
    raise ParameterError("no parameters cell has run: run the cell of annotated assignments before this one")


def _check_value(name: str, annotation: str, value: Any) -> None:
    if annotation not in TYPES:
        raise ParameterError(f"{name} is declared as {annotation}: allowed are {', '.join(TYPES)}")
    if name not in VOCABULARY:
        raise ParameterError(
            f"{name} is not in the vocabulary{_suggest(name, VOCABULARY)}: ddanalysis.parameters.VOCABULARY is it"
        )
    accepted = (int, float) if annotation == "float" else TYPES[annotation]
    if not isinstance(value, accepted) or (isinstance(value, bool) and annotation != "bool"):
        raise ParameterError(
            f"{name} is {value!r} ({type(value).__name__}): it is declared as {annotation}{_yaml_hint(value)}"
        )
    VOCABULARY[name](name, value)


def _suggest(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _problems(declared: dict[str, str], given: Sequence[str], values: dict[str, Any]) -> list[str]:
    """One sentence for every undeclared name in ``given`` and every declared name without an allowed value."""
    found = [
        f"{name} is no parameter of this notebook{_suggest(name, declared)}: declared are {', '.join(declared)}"
        for name in given
        if name not in declared
    ]
    for name, annotation in declared.items():
        try:
            if name not in values:
                raise ParameterError(f"{name} is declared and has no value: run the parameters cell again")
            _check_value(name, annotation, values[name])
        except ParameterError as error:
            found.append(str(error))
    return found


def check_parameters(namespace: dict[str, Any]) -> dict[str, Any]:
    """Check the parameters of the notebook whose ``globals()`` are given; return them, name -> value, as declared.

    What was declared is read from the session's own history: the latest cell of annotated assignments, and the cell
    that papermill put right behind it. Other names in the namespace are left alone, so that all cells, or this one, can
    run again in a live kernel.

    Raises :class:`ParameterError` (a ``ValueError``) with one line a problem; also outside a notebook.
    """
    if "In" not in namespace:
        raise ParameterError(
            "check_parameters reads the history of a notebook: call it in one, as check_parameters(globals())"
        )
    declared, given = _history(namespace["In"])
    problems = _problems(declared, given, namespace)
    if problems:
        raise ParameterError("\n".join(problems))
    return {name: namespace[name] for name in declared}


# --------------------------------------------------------------------------------------------------------------- files


def declared_parameters(notebook: dict[str, Any]) -> dict[str, tuple[type, Any]]:
    """Name -> (type, default) of the cell tagged ``parameters`` of a notebook's JSON.

    Raises :class:`ParameterError` unless there is one such cell of annotated assignments of literals.
    """
    tagged = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ParameterError(f"{len(tagged)} cells are tagged parameters: one is needed")
    found = _annotations("".join(tagged[0]["source"]))
    if found is None:
        raise ParameterError(
            "the parameters cell holds more than annotated assignments: only `name: type = value` is allowed"
        )
    declared = {}
    for name, (annotation, value) in found.items():
        if annotation not in TYPES:
            raise ParameterError(f"{name} is declared as {annotation}: allowed are {', '.join(TYPES)}")
        try:
            declared[name] = (TYPES[annotation], ast.literal_eval(value))
        except ValueError:
            raise ParameterError(f"the default of {name} is {ast.unparse(value)}: it must be a literal") from None
    return declared


def check_yaml(notebook: Path, values: dict[str, Any]) -> list[str]:
    """What would stop ``notebook`` (a path) if papermill gave it ``values``; empty if nothing would."""
    import json

    declared = declared_parameters(json.loads(Path(notebook).read_text(encoding="utf-8")))
    merged = {name: default for name, (_, default) in declared.items()} | values
    return _problems({name: kind.__name__ for name, (kind, _) in declared.items()}, list(values), merged)
