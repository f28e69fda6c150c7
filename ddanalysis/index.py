"""One page for a folder of outputs: every table and figure with where it came from.

``python -m ddanalysis.index outputs/quick`` merges the manifests of that folder into ``manifest.json`` and writes
``index.html``, which needs nothing but the folder it lies in.
"""

import argparse
import csv
import json
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from ddanalysis.store import atomic

ROWS = 30
"""Rows of a table that the page prints; the file has them all."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6776; --paper: #fbfaf7; --card: #ffffff; --line: #e3e0d8;
  --accent: #8a3b12; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e1; --soft: #a2a6ad; --paper: #16181c; --card: #1e2126;
  --line: #33373e; --accent: #f0a36b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2.5rem 1.25rem 5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1, h2, h3 { font-family: Charter, "Iowan Old Style", Georgia, serif; font-weight: 600; line-height: 1.2; }
h1 { font-size: 2rem; margin: 0 0 .25rem; }
h2 { font-size: 1.45rem; margin: 3.5rem 0 .4rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 0 0 .35rem; color: var(--ink); }
.caption { color: var(--ink); font-size: .95rem; }
a { color: var(--accent); text-underline-offset: .15em; }
p { margin: .3rem 0; }
nav { margin-top: 1rem; display: flex; flex-wrap: wrap; gap: .35rem 1.1rem; }
.soft, figcaption, .links { color: var(--soft); font-size: .86rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.25rem;
  margin-top: 1.25rem; }
.card { margin: 0; padding: 1rem 1.1rem; background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  min-width: 0; }
.wide { margin-top: 1.25rem; }
.card img { display: block; width: 100%; max-height: 34rem; object-fit: contain; background: #fff; padding: .4rem;
  border-radius: .35rem; margin-bottom: .7rem; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .8rem .22rem 0; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td.n { text-align: right; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--soft); font-size: .86rem; }
code { font-size: .92em; }
"""

Manifest = dict[str, Any]


def build_index(folder: Path) -> Path:
    """Write ``manifest.json`` and ``index.html`` of an output folder and return the page's path.

    Raises ``ValueError`` if the folder holds no manifest or a damaged one.
    """
    folder = Path(folder)
    runs = read_manifests(folder)
    merged = {"profile": runs[0]["profile"], "runs": runs}
    with atomic(folder / "manifest.json") as file:
        file.write((json.dumps(merged, indent=1) + "\n").encode())
    with atomic(folder / "index.html") as file:
        file.write(_page(folder, runs).encode())
    return folder / "index.html"


def read_manifests(folder: Path) -> list[Manifest]:
    """The manifests of an output folder: by notebook, whole runs before the parts of a fanned-out one."""
    runs = []
    for path in Path(folder, "manifests").glob("*.json"):
        try:
            runs.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    if not runs:
        raise ValueError(f"{folder} holds no manifests: run a notebook that writes there first")
    return sorted(runs, key=lambda run: (run["notebook"], run["part"]))


# ---------------------------------------------------------------------------------------------------------------- page


def _page(folder: Path, runs: list[Manifest]) -> str:
    title = escape(f"ddanalysis · {runs[0]['profile']}")
    whole, parts = [run for run in runs if not run["part"]], [run for run in runs if run["part"]]
    work = f"{len(runs)} runs, {_duration(sum(run['wall_seconds'] for run in runs))} of work"
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    lines = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8">{viewport}<title>{title}</title>',
        f"<style>{STYLE}</style></head><body>",
        f'<header><h1>{title}</h1><p class="soft">What does a distilled dataset contain? Every table and figure of '
        f'this profile, with its provenance: {work}; settings and versions in <a href="manifest.json">'
        "manifest.json</a>.</p>",
        "<nav>" + "".join(f'<a href="#{escape(_stem(run))}">{_name(run)}</a>' for run in whole) + "</nav></header>",
        *(_section(folder, run) for run in whole),
        _parts(folder, parts),
        _unfinished(folder, runs),
        "</body></html>",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _section(folder: Path, run: Manifest) -> str:
    short = [table for table in run["tables"] if table["rows"] <= ROWS]
    long = [table for table in run["tables"] if table["rows"] > ROWS]
    figures = "".join(_figure(folder, run, figure) for figure in run["figures"])
    return "\n".join(
        [
            f'<section id="{escape(_stem(run))}"><h2>{_name(run)}</h2>',
            f'<p class="soft">{_provenance(run)}{_executed(folder, run)}</p>',
            _settings(run),
            f'<div class="cards">{figures}</div>' if figures else "",
            *(_table(folder, run, table) for table in short + long),
            "</section>",
        ]
    )


def _figure(folder: Path, run: Manifest, figure: dict[str, Any]) -> str:
    picture = next(file for file in figure["files"] if file.endswith(".png"))
    name = escape(figure["name"])
    shown = f'<img src="{escape(picture)}" alt="{name}" loading="lazy">' if (folder / picture).is_file() else ""
    caption = f'<p class="caption">{escape(figure["caption"])}</p>' if figure["caption"] else ""
    return (
        f'<figure class="card">{shown}<figcaption><h3>{name}</h3>{caption}<p>{_provenance(run)}</p>'
        f'<p class="links">{_links(folder, figure["files"])}</p></figcaption></figure>'
    )


def _table(folder: Path, run: Manifest, table: dict[str, Any]) -> str:
    caption = f'<p class="caption">{escape(table["caption"])}</p>' if table["caption"] else ""
    rows = _rows(folder / next(file for file in table["files"] if file.endswith(".csv")))
    shown = f"first {ROWS} of {table['rows']} rows" if table["rows"] > ROWS else f"{table['rows']} rows"
    return (
        f'<div class="card wide"><h3>{escape(table["name"])}</h3>{caption}<p class="soft">{_provenance(run)}</p>'
        f"<details{'' if table['rows'] > ROWS else ' open'}><summary>{shown}</summary>{rows}</details>"
        f'<p class="links">{_links(folder, table["files"])}</p></div>'
    )


def _rows(path: Path) -> str:
    """The head of a CSV file as an HTML table, numbers to four digits."""
    if not path.is_file():
        return ""
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = islice(csv.reader(file), ROWS + 1)
    cells = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{cells}</tbody></table></div>'


def _cell(value: str) -> str:
    try:
        number = float(value)
    except ValueError:
        return f"<td>{escape(value)}</td>"
    return f'<td class="n">{value if value.lstrip("-").isdigit() else format(number, ".4g")}</td>'


# ---------------------------------------------------------------------------------------------------------- provenance


def _provenance(run: Manifest) -> str:
    """One line: notebook, data and pixel source, network, protocol, seeds, device and time."""
    data, parameters, machine = run["data"], run["parameters"], run["machine"]
    network = " ".join(str(parameters[name]) for name in ("network", "width") if name in parameters)
    protocols = parameters.get("protocols", parameters.get("protocol", ""))
    facts = [
        f"{run['notebook']}.ipynb",
        f"{data['name']} ({data['pixel_source']}; {data['n_train']} train, {data['n_test']} test)" if data else "",
        network,
        ", ".join(protocols) if isinstance(protocols, list) else protocols,
        ", ".join(f"{name} {_value(value)}" for name, value in run["seeds"].items()),
        f"{machine['device']}, {machine['threads']} thread{'s' if machine['threads'] != 1 else ''}",
        _duration(run["wall_seconds"]),
    ]
    return " · ".join(escape(fact) for fact in facts if fact)


def _settings(run: Manifest) -> str:
    """Everything else that a manifest knows, folded."""
    facts = {
        **run["parameters"],
        "processor": run["machine"]["processor"],
        "data fingerprint": run["data"]["fingerprint"] if run["data"] else "",
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version),
        "commit": run["commit"],
        "finished": run["finished"],
        **run["extra"],
    }
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(_value(value))}</td></tr>" for name, value in facts.items())
    return f'<details><summary>settings and versions</summary><div class="scroll"><table>{rows}</table></div></details>'


def _parts(folder: Path, runs: list[Manifest]) -> str:
    """The jobs of fanned-out notebooks: what they wrote is in the whole runs too, so links are enough."""
    if not runs:
        return ""
    rows = "".join(
        f"<tr><td>{_name(run)}</td><td>{_provenance(run)}</td><td>"
        f"{_links(folder, [file for item in run['tables'] + run['figures'] for file in item['files']])}"
        f"{_executed(folder, run)}</td></tr>"
        for run in runs
    )
    return f'<section><h2>Parts</h2><div class="scroll"><table>{rows}</table></div></section>'


def _unfinished(folder: Path, runs: list[Manifest]) -> str:
    """Executed notebooks that left no manifest: they failed, or are still running."""
    done = {f"{_stem(run)}.ipynb" for run in runs}
    left = [path.name for path in sorted((folder / "executed").glob("*.ipynb")) if path.name not in done]
    if not left:
        return ""
    links = "".join(f'<li><a href="executed/{escape(name)}">{escape(name)}</a></li>' for name in left)
    return f"<section><h2>Not finished</h2><ul>{links}</ul></section>"


def _links(folder: Path, files: list[str]) -> str:
    return " · ".join(
        f'<a href="{escape(file)}">{escape(Path(file).name)}</a>'
        if (folder / file).is_file()
        else f"{escape(file)} is missing"
        for file in files
    )


def _executed(folder: Path, run: Manifest) -> str:
    link = Path("executed", f"{_stem(run)}.ipynb")
    return f' · <a href="{escape(link.as_posix())}">executed notebook</a>' if (folder / link).is_file() else ""


def _stem(run: Manifest) -> str:
    """What the files of a run are named by: ``01_distill``, or ``01_distill.dm`` for a part of it."""
    return f"{run['notebook']}.{run['part']}" if run["part"] else run["notebook"]


def _name(run: Manifest) -> str:
    """The heading of a run: ``04 agreement`` for ``04_agreement``, a part behind it."""
    return escape(run["notebook"].replace("_", " ") + (f", {run['part']}" if run["part"] else ""))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write index.html and manifest.json of an output folder.")
    parser.add_argument("folder", type=Path, help="such as outputs/quick")
    build_index(parser.parse_args(arguments).folder)


if __name__ == "__main__":
    main()
