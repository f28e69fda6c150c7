"""The check cell: what it finds in a session's history, and every value it refuses."""

import json
import subprocess
import sys

import pytest

from ddanalysis import parameters, rules
from ddanalysis.parameters import ParameterError, check_parameters, check_yaml, declared_parameters

CELL = 'profile: str = "quick"\nwidth: int = 16  # of the ConvNet\nlearning_rate: float = 0.01\nmethods: list = ["dm"]'
CHECK = "from ddanalysis.parameters import check_parameters\n\nparameters = check_parameters(globals())"
DEFAULTS = {"profile": "quick", "width": 16, "learning_rate": 0.01, "methods": ["dm"]}


def session(*cells: str) -> dict:
    """The globals of a kernel in which ``cells`` ran; they are recorded in ``In`` before they run, as IPython does."""
    namespace: dict = {"In": [""]}
    for cell in cells:
        namespace["In"].append(cell)
        exec(cell, namespace)
    return namespace


def refusal(*cells: str) -> str:
    with pytest.raises(ParameterError) as error:
        session(*cells)
    return str(error.value)


def notebook(source: str = CELL, tags: tuple[str, ...] = ("parameters",)) -> dict:
    code = {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source.splitlines(keepends=True)}
    return {"cells": [{"cell_type": "markdown", "metadata": {}, "source": ["# Title"]}, code]}


# ------------------------------------------------------------------------------------------------------------ history


def test_defaults_pass_and_are_returned_in_declared_order() -> None:
    assert list(session(CELL, CHECK)["parameters"].items()) == list(DEFAULTS.items())


def test_injected_values_pass() -> None:
    found = session(CELL, "# Parameters\nwidth = 4\nmethods = ['random']", CHECK)["parameters"]
    assert found == DEFAULTS | {"width": 4, "methods": ["random"]}


def test_injected_unknown_name_is_refused_with_the_close_one() -> None:
    message = refusal(CELL, "# Parameters\nwidht = 4\nprofile = 'quick'", CHECK)
    assert message.startswith(
        "widht is no parameter of this notebook (did you mean width?): declared are profile, width"
    )
    assert "\n" not in message


def test_a_name_of_the_vocabulary_must_still_be_declared() -> None:
    assert "ipc is no parameter of this notebook" in refusal(CELL, "# Parameters\nipc = [1]", CHECK)


def test_all_cells_again_in_a_live_kernel() -> None:
    work = (
        "width_of_figure = 3\nbatch_size = 'mine'\nx = {}"  # names of the notebook's own, one of them in the vocabulary
    )
    namespace = session(CELL, "# Parameters\nwidth = 4", CHECK, work, CELL, "# Parameters\nwidth = 5", CHECK)
    assert namespace["parameters"]["width"] == 5


def test_the_check_cell_alone_again() -> None:
    namespace = session(CELL, CHECK, "x = 1", "for i in range(3):\n    pass", CHECK, CHECK)
    assert namespace["parameters"] == DEFAULTS


def test_the_check_cell_again_sees_a_changed_value() -> None:
    assert "width is -1" in refusal(CELL, CHECK, "width = -1", CHECK)


def test_the_latest_parameters_cell_counts() -> None:
    assert session(CELL, CHECK, 'profile: str = "smoke"', CHECK)["parameters"] == {"profile": "smoke"}


def test_cells_with_magics_are_passed_over() -> None:
    namespace = session(CELL)
    namespace["In"] += ["%matplotlib inline", "!ls"]
    assert check_parameters(namespace) == DEFAULTS


def test_a_cell_of_comments_is_no_parameters_cell() -> None:
    assert session(CELL, "# a comment", CHECK)["parameters"] == DEFAULTS


def test_without_a_parameters_cell() -> None:
    assert "no parameters cell has run" in refusal("width = 16", CHECK)


def test_outside_a_notebook() -> None:
    with pytest.raises(ParameterError, match="history of a notebook"):
        check_parameters({"width": 16})


def test_a_deleted_value() -> None:
    assert refusal(CELL, "del width", CHECK) == "width is declared and has no value: run the parameters cell again"


def test_all_problems_at_once_one_a_line() -> None:
    lines = refusal(CELL, "# Parameters\nwidth = -1\nlearning_rate = '1e-3'\nmethod = []", CHECK).splitlines()
    assert [line.split()[0] for line in lines] == ["method", "width", "learning_rate"]


def test_in_a_real_session() -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell(config=Config({"HistoryManager": {"hist_file": ":memory:"}}))
    run = [CELL, "%time 1", "# Parameters\nwidth = 4", CELL, "# Parameters\nwidth = 5", CHECK, "x = 1", CHECK]
    for cell in run:
        shell.run_cell(cell, store_history=True).raise_error()
    assert shell.user_ns["parameters"] == DEFAULTS | {"width": 5}
    shell.run_cell(CELL, store_history=True)
    shell.run_cell("# Parameters\nwidht = 4", store_history=True)
    with pytest.raises(ParameterError, match="widht is no parameter of this notebook"):
        shell.run_cell(CHECK, store_history=True, silent=False).raise_error()


# ------------------------------------------------------------------------------------------------------- declarations


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("depth_of_thought: int = 1", "depth_of_thought is not in the vocabulary"),
        ("widht: int = 1", "did you mean width?"),
        ("width: float | None = 1", "width is declared as float | None: allowed are str, int, float, bool, list, dict"),
        ("width: int = 1.0", "width is 1.0 (float): it is declared as int"),
        ("width: int = True", "width is True (bool): it is declared as int"),
        ("width: int = '8'", "width is '8' (str): it is declared as int; YAML reads 8 as text; write 8"),
        ("width: int = None", "width is None (NoneType): it is declared as int"),
        ("learning_rate: float = True", "learning_rate is True (bool): it is declared as float"),
        (
            "learning_rate: float = '1e-3'",
            "learning_rate is '1e-3' (str): it is declared as float; YAML reads 1e-3 as text; write 0.001 or 1.0e-3",
        ),
        ("learning_rate: float = '2.5E3'", "YAML reads 2.5E3 as text; write 2500 or 2.5e+3"),
        ("compile: bool = 1", "compile is 1 (int): it is declared as bool"),
        ("methods: list = 'dm'", "methods is 'dm' (str): it is declared as list"),
    ],
)
def test_declaration_and_type(cell: str, message: str) -> None:
    assert message in refusal(cell, CHECK)


def test_a_whole_number_is_good_for_a_float() -> None:
    assert session("learning_rate: float = 1", CHECK)["parameters"] == {"learning_rate": 1}


GOOD = {
    "profile": ["quick", "my-run_2"],
    "part": ["", "dm"],
    "dataset": ["digits", "cifar10", "./mine.npz", "mine.npz", "/data/my images"],
    "network": ["ConvNet", "ResNet18-IN"],
    "width": [1, 128],
    "methods": [["dm"], ["dm", "random", "class_mean", "k_means", "herding"]],
    "ipc": [[1], [1, 10, 50]],
    "set_seeds": [[0], [0, 1]],
    "distill": [{}, {"dm": {}}, {"dm": {"iterations": 10, "rate": 1.0, "strategy": "color_crop"}, "random": {}}],
    "protocols": [["full-batch-300"], ["dc-300", "dsa-1000"]],
    "subset_fractions": [[0.02, 0.3], [0.5, 1]],
    "accuracy_tolerance": [0.01, 1],
    "matching": [["nearest"], ["nearest", "published"]],
    "momentum": [0, 0.9],
    "extra_sets": [[], ["sets/mine.pt"]],
    "device": ["auto", "cpu", "cuda"],
    "precision": ["float32", "bfloat16"],
    "compile": [True, False],
    "seed": [0, 7],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_allowed_values(name: str, value: object) -> None:
    assert session(f"{name}: {type(value).__name__} = {value!r}", CHECK)["parameters"] == {name: value}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("profile", "", "profile is '': it must be a word"),
        ("profile", "../x", "profile is '../x': it must be a word"),
        ("part", "a b", "part is 'a b': it must be a word"),
        ("dataset", "minst", "dataset is 'minst': allowed are digits, mnist,"),
        ("network", "convnet", "network is 'convnet': allowed are ConvNet,"),
        ("width", -1, "width is -1: it must be a whole number of at least 0"),
        ("methods", [], "methods is []: it must be a list of at least 1"),
        ("methods", ["dm", "dmm"], "methods[1] is 'dmm': allowed are dc, dsa, dm, mtt, bptt, rat, clom_dc"),
        ("methods", ["dm", "dm"], "it holds 'dm' twice"),
        ("methods", [["dm"]], "methods[0] is ['dm']: allowed are"),
        ("ipc", [1, 0], "ipc[1] is 0: it must be a whole number of at least 1"),
        ("ipc", [True], "ipc[0] is True"),
        ("ipc", [1.0], "ipc[0] is 1.0"),
        ("set_seeds", [-1], "set_seeds[0] is -1: it must be a whole number of at least 0"),
        ("network_seeds", 0, "network_seeds is 0"),
        ("distill", {"dmm": {}}, "a method in distill is 'dmm': allowed are dc, dsa, dm"),
        ("distill", {"dm": [1]}, "distill['dm'] is [1]: it must be a dict"),
        ("distill", ["dm"], "distill is ['dm']: it must be a dict of methods"),
        ("distill", {"dm": {"rates": 1}}, "'rates' is no setting of dm in distill: allowed are ipc, iterations, rate,"),
        ("distill", {"random": {"rate": 1}}, "'rate' is no setting of random in distill: allowed are ipc"),
        ("distill", {"dm": {"iterations": 0}}, "distill['dm']['iterations'] is 0: it must be a whole number"),
        ("distill", {"dm": {"rate": "1e-2"}}, "distill['dm']['rate'] is '1e-2'"),
        ("distill", {"dm": {"rate": "1e-2"}}, "YAML reads 1e-2 as text; write 0.01 or 1.0e-2"),
        ("protocol", "dc300", "protocol is 'dc300': allowed are full-batch-300, dc-300, dsa-1000"),
        ("protocols", ["x"], "protocols[0] is 'x'"),
        ("subset_fractions", [0.3, 0.02], "0 < low < high <= 1"),
        ("subset_fractions", [0.0, 0.5], "0 < low < high <= 1"),
        ("subset_fractions", [0.5, 1.5], "0 < low < high <= 1"),
        ("subset_fractions", [0.1], "0 < low < high <= 1"),
        ("subset_fractions", ["1e-2", 0.3], "YAML reads 1e-2 as text; write 0.01 or 1.0e-2"),
        ("accuracy_tolerance", 0.0, "it must be a number above 0 and at most 1"),
        ("learning_rate", 0.0, "learning_rate is 0.0: it must be a number above 0"),
        ("learning_rate", float("nan"), "learning_rate is nan: it must be a number above 0"),
        ("learning_rate", float("inf"), "learning_rate is inf"),
        ("momentum", 1.0, "momentum is 1.0: it must be a number of at least 0 and below 1"),
        ("matching", ["bucket"], "matching[0] is 'bucket': allowed are nearest, published"),
        ("device", "gpu", "device is 'gpu': allowed are auto, cpu, cuda"),
        ("precision", "float16", "precision is 'float16': allowed are float32, bfloat16"),
        ("threads", 0, "threads is 0"),
        ("seed", -1, "seed is -1"),
        ("extra_sets", [""], "extra_sets[0] is '': it must be text that is not empty"),
    ],
)
def test_refused_values(name: str, value: object, message: str) -> None:
    namespace = session(f"{name}: {type(value).__name__} = None")
    with pytest.raises(ParameterError) as error:
        check_parameters(namespace | {name: value})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- files


def test_declared_parameters() -> None:
    assert declared_parameters(notebook()) == {
        "profile": (str, "quick"),
        "width": (int, 16),
        "learning_rate": (float, 0.01),
        "methods": (list, ["dm"]),
    }


@pytest.mark.parametrize(
    ("source", "tags", "message"),
    [
        (CELL, (), "0 cells are tagged parameters"),
        ("import torch\n" + CELL, ("parameters",), "more than annotated assignments"),
        ("width: int", ("parameters",), "more than annotated assignments"),
        ("width = 1", ("parameters",), "more than annotated assignments"),
        ("width: int = min(1, 2)", ("parameters",), "the default of width is min(1, 2): it must be a literal"),
        ("width: Any = 1", ("parameters",), "width is declared as Any"),
    ],
)
def test_declarations_that_are_refused(source: str, tags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        declared_parameters(notebook(source, tags))
    assert message in str(error.value)


def test_check_yaml(tmp_path) -> None:
    path = tmp_path / "04_agreement.ipynb"
    path.write_text(json.dumps(notebook()))
    assert check_yaml(path, {"width": 4, "learning_rate": 1}) == []
    assert check_yaml(path, {"width": "4", "widht": 4}) == [
        "widht is no parameter of this notebook (did you mean width?): declared are "
        "profile, width, learning_rate, methods",
        "width is '4' (str): it is declared as int; YAML reads 4 as text; write 4",
    ]


# ------------------------------------------------------------------------------------------------- cost and agreement


def test_the_check_costs_little_and_imports_nothing_heavy() -> None:
    program = (
        "import sys, time; start = time.perf_counter()\n"
        f"exec({CHECK!r}.replace('globals()', 'namespace'), dict(namespace=dict(In=['', 'width: int = 1'], width=1)))\n"
        "seconds = time.perf_counter() - start\n"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'yaml'} & set(sys.modules)\n"
        "print(seconds, sorted(heavy))"
    )
    seconds = []
    for _ in range(3):
        printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        assert printed.split(maxsplit=1)[1].strip() == "[]"
        seconds.append(float(printed.split()[0]))
    assert min(seconds) < 0.2


def test_the_names_are_what_the_package_implements() -> None:
    from ddanalysis.analysis.agreement import MATCHING
    from ddanalysis.analysis.mixing import MODES
    from ddanalysis.architectures import ZOO
    from ddanalysis.datasets import NAMES
    from ddanalysis.distill import METHODS
    from ddanalysis.distill.label_starts import STARTS
    from ddanalysis.evaluation import PROTOCOLS
    from ddanalysis.networks import INITIALISATIONS
    from ddanalysis.whitening import KINDS

    assert sorted(parameters.DATASETS) == sorted(NAMES)
    assert sorted(parameters.NETWORKS) == sorted(ZOO)
    assert sorted(parameters.PROTOCOLS) == sorted(PROTOCOLS)
    assert parameters.WHITENINGS == KINDS
    assert sorted(parameters.MATCHING) == sorted(MATCHING)
    assert parameters.MIXING_MODES == MODES
    assert sorted(parameters.METHODS) == sorted(METHODS)
    assert rules.WEIGHTS == INITIALISATIONS and rules.LABEL_STARTS == (*STARTS, "given")
    for name, method in METHODS.items():
        assert sorted(parameters.SETTINGS[name]) == sorted(method.settings({}))


def test_every_rule_refuses_something() -> None:
    for name, rule in parameters.VOCABULARY.items():
        with pytest.raises(ParameterError, match=f"^{name}"):
            rule(name, object())
