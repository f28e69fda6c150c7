"""Every parameter file fits its notebook, and the notebooks of a profile agree with each other."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ddanalysis.parameters import check_yaml, declared_parameters

ROOT = Path(__file__).parents[1]
FILES = [
    path for path in sorted(ROOT.glob("params/*/*.yaml")) if path.parent.name != "snakemake" and path.stem != "methods"
]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
PROFILES = sorted({path.parent.name for path in FILES})
SHARED = (
    "dataset",
    "data_root",
    "normalisation",
    "whitening",
    "network",
    "width",
    "depth",
    "distill",
    "threads",
    "device",
    "precision",
)
OWN_NORMALISATION = ("09_soft_labels", "10_label_distillation")
"""Their papers normalise otherwise than the others', and they share no sets with them."""
CHECK = "from ddanalysis.parameters import check_parameters\n\nparameters = check_parameters(globals())"


class Strict(yaml.SafeLoader):
    """YAML that refuses a name given twice, of which papermill would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"given twice: {', '.join(sorted(twice))}")
        return super().construct_mapping(node, deep)


def values(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), Strict) or {}


def defaults(notebook: Path) -> dict[str, Any]:
    declared = declared_parameters(json.loads(notebook.read_text(encoding="utf-8")))
    return {name: default for name, (_, default) in declared.items()}


def effective(path: Path) -> dict[str, Any]:
    return defaults(ROOT / "notebooks" / f"{path.stem}.ipynb") | values(path)


def label(path: Path) -> str:
    return "/".join(path.parts[-2:])


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_file_fits_its_notebook(path: Path) -> None:
    notebook = ROOT / "notebooks" / f"{path.stem}.ipynb"
    assert notebook.is_file(), f"{label(path)} has no notebook of its name"
    assert check_yaml(notebook, values(path)) == []
    assert effective(path)["profile"] == path.parent.name


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=label)
def test_the_defaults_of_a_notebook_are_the_quick_profile(notebook: Path) -> None:
    given = values(ROOT / "params" / "quick" / f"{notebook.stem}.yaml")
    assert {name: defaults(notebook)[name] for name in given} == given


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=label)
def test_a_notebook_begins_with_title_parameters_and_check(notebook: Path) -> None:
    title, parameters, check = json.loads(notebook.read_text(encoding="utf-8"))["cells"][:3]
    assert title["cell_type"] == "markdown" and "".join(title["source"]).startswith("# ")
    assert parameters["metadata"].get("tags") == ["parameters"]
    assert "".join(check["source"]) == CHECK


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=label)
def test_a_notebook_is_stored_without_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_notebooks_of_a_profile_agree(profile: str) -> None:
    found: dict[str, dict[str, str]] = {}
    for path in FILES:
        if path.parent.name == profile:
            for name in SHARED:
                if name in effective(path) and not (name == "normalisation" and path.stem in OWN_NORMALISATION):
                    found.setdefault(name, {})[path.stem] = json.dumps(effective(path)[name], sort_keys=True)
    assert {name: by for name, by in found.items() if len(set(by.values())) > 1} == {}


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("width: 4\ndistill: {dm: {rate: 1.0, rate: 2.0}}\n")
    with pytest.raises(ValueError, match="given twice: rate"):
        values(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "profile", [name for name in PROFILES if (ROOT / "params" / name / "12_published_mistakes.yaml").is_file()]
)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("02_pretrained_recognition", "12_published_mistakes"),
        ("04_agreement", "12_published_mistakes"),
        ("07_influence", "08_semantics"),
    ],
)
def test_a_notebook_asks_for_what_the_one_before_it_leaves(profile: str, first: str, second: str) -> None:
    one, other = (effective(ROOT / "params" / profile / f"{name}.yaml") for name in (first, second))
    common, parts = (set(one) & set(other)) - {"seed"}, {"methods", "ipc", "set_seeds"}
    assert parts < common and len(common) > 10
    assert {name for name in common - parts if one[name] != other[name]} == set()
    assert {name for name in parts if not set(other[name]) <= set(one[name])} == set()


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem in ("09_soft_labels", "10_label_distillation")], ids=label
)
def test_studies_are_possible(path: Path) -> None:
    from ddanalysis.analysis import label_studies, soft_label_studies

    methods, studies = ROOT / "params" / path.parent.name / "methods.yaml", effective(path)["studies"]
    if path.stem == "09_soft_labels":
        known = values(methods) if methods.is_file() else {}
        recipes = {name: own for name, own in known.items() if name in ("dd", "sldd")}
        assert len(soft_label_studies.variants(studies, 10, recipes)) >= len(studies)
    else:
        assert sum(len(label_studies.cases(name, own, 10)) for name, own in studies.items()) >= len(studies)
