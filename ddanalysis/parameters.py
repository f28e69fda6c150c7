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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ddanalysis.method_settings import SETTINGS
from ddanalysis.rules import (
    DATASETS,
    NETWORKS,
    PRECISIONS,
    ParameterError,
    Rule,
    below_one,
    choice,
    dict_of,
    flag,
    list_of,
    one_of_or_path,
    positive,
    settings,
    some_text,
    text,
    two_fractions,
    whole,
    word,
    word_or_nothing,
    yaml_hint,
)

PROTOCOLS = (
    "full-batch-300",
    "dc-300",
    "dsa-1000",
    "dc-1000",
    "mtt-1000",
    "bptt-300",
    "rat-1000",
    "clom-1000",
    "clom-1000-dsa",
    "own-steps",
)
WHITENINGS = ("kornia", "per-image", "frepo")
MATCHING = ("nearest", "published")
MIXING_MODES = ("fixed updates", "fixed epochs", "replacement")
DEVICES = ("auto", "cpu", "cuda")

METHODS = tuple(SETTINGS)
TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


def method_settings(name: str, value: Any) -> None:
    """A dict of methods, each with a dict of that method's settings; what it leaves out has its published value.

    Besides its own settings a method may have "ipc", the numbers of images a class in place of the notebook's.
    """
    if not isinstance(value, dict):
        raise ParameterError(f"{name} is {value!r}: it must be a dict of methods, each with a dict of settings")
    for method, given in value.items():
        choice(METHODS)(f"a method in {name}", method)
        if not isinstance(given, dict):
            raise ParameterError(f"{name}[{method!r}] is {given!r}: it must be a dict of settings")
        rules = {"ipc": list_of(whole(1))} | SETTINGS[method]
        for key, setting in given.items():
            if key not in rules:
                raise ParameterError(f"{key!r} is no setting of {method} in {name}: allowed are {', '.join(rules)}")
            rules[key](f"{name}[{method!r}][{key!r}]", setting)


def profile_methods(params: Path, profile: str) -> dict[str, dict[str, Any]]:
    """How a profile runs its methods: what ``<params>/<profile>/methods.yaml`` holds, nothing where there is none.

    Raises :class:`ParameterError` for a file that is no dict of methods with their settings.
    """
    import yaml

    path = params / profile / "methods.yaml"
    if not path.is_file():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ParameterError(f"{path} is no YAML: {error}") from error
    method_settings(str(path), found)
    return found


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
    "image_size": whole(0),  # the side of images kept in folders; 0 is the default of the dataset
    "whitening": choice(("", *WHITENINGS)),  # "" is none
    "network": choice(NETWORKS),
    "networks": list_of(choice(NETWORKS), at_least=0),  # that learn from sets distilled with another
    "width": whole(0),  # 0 is the published width
    "depth": whole(0),  # 0 is the published depth
    # distilled sets
    "methods": list_of(choice(METHODS)),
    "ipc": list_of(whole(1)),
    "keep_every": whole(0),  # iterations; 0 keeps the start alone
    "set_seeds": list_of(whole(0)),
    "distill": method_settings,
    # training and evaluation
    "protocol": choice(PROTOCOLS),
    "protocols": list_of(choice(PROTOCOLS)),
    "network_seeds": whole(1),  # networks a set
    "transfer_seeds": whole(1),  # networks a set, of other architectures
    "batch_size": whole(1),
    "learning_rate": positive(),
    "momentum": below_one,
    "seed": whole(0),
    "real_epochs": whole(1),  # of networks trained on all real data
    # networks that have learned the real data
    "references": list_of(choice(NETWORKS)),
    "reference_seeds": whole(1),
    "reference_epochs": dict_of(choice(NETWORKS), whole(1)),
    "reference_accuracy": dict_of(choice(NETWORKS), positive(1)),
    "reference_files": dict_of(choice(NETWORKS), some_text),
    "resnet_width": whole(0),  # of the first stage; 0 is the published width
    # mixing
    "mixing_modes": list_of(choice(MIXING_MODES)),
    "real_per_class": list_of(whole(0)),
    "mixing_updates": whole(1),
    # the Hessian
    "hessian_seeds": whole(1),
    "hessian_updates": whole(0),
    "hessian_every": whole(1),
    "hessian_images": whole(0),  # 0 is all
    "real_probes": whole(1),
    "set_probes": whole(2),
    "probe_block": whole(1),  # images that share a probe
    "spectra_at": list_of(whole(0)),
    "spectrum_images": whole(1),
    "top_eigenvalues": whole(1),
    "pyhessian_probes": whole(2),
    # semantics
    "semantics_top": whole(2),
    "permutations": whole(1),
    "vision_language_model": text,  # "" is none
    # influence
    "influence_seeds": whole(1),  # initialisations
    "influence_updates": whole(1),
    "influence_top": whole(1),  # test images shown beside each distilled image
    # sets made step by step, and labels
    "learner": choice(NETWORKS),
    "studies": dict_of(word, settings),
    "baseline": settings,  # {} is none
    "experiments": list_of(some_text, at_least=0),  # names of published ones
    "test_networks": whole(1),
    "repetitions": whole(1),
    "searchers": whole(1),
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
            f"{name} is {value!r} ({type(value).__name__}): it is declared as {annotation}{yaml_hint(value)}"
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
