"""Makes the notebooks of the gallery from the scripts in ``examples``: ``python docs/gallery_notebooks.py``.

It runs them too. A docstring is the first cell, each class or function a cell, the body of ``main`` the last ones.
With ``--check`` it writes nothing, and fails if an output is of another type than the one in the file.
"""

import argparse
import ast
import os
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import nbclient
import nbformat

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = {
    "digits": "Images: a convolutional network",
    "regression": "Tabular regression",
    "kfold": "Cross-validation",
    "characters": "A sequence: the next character",
    "gan": "A GAN with two optimizers",
    "finetuning": "Fine-tuning with BaseFinetuning",
    "forecasting": "Forecasting: DeepAR of pytorch-forecasting",
    "population": "A population and its schedule",
    "ray_machine": "Ray on one machine",
    "lr_schedule_search": "An LR schedule as a hyperparameter",
    "optuna_search": "Optuna in one call",
}
CURVES = """import matplotlib.pyplot as plt

for row in result.rows:
    plt.plot(list(row.values), list(row.values.values()), marker=".", alpha=0.6)
best = result.rows[result.best_trial]
plt.plot(list(best.values), list(best.values.values()), color="black", linewidth=2, label=f"best: trial {best.number}")
plt.xlabel("budget")
plt.ylabel(str(tuner.monitor))
_ = plt.legend()"""
_MOST_LINES = 50  # of one output
COMMANDS = """%%bash
python train.py tune -c fit.yaml --space space.yaml --tuner HyperbandTuner --tuner.max_steps {steps} \\
    --tuner.monitor val_acc --tuner.mode max --tuner.name digits --tuner.root {root}
---
!cat {root}/digits/best.yaml
---
%%bash
python train.py fit -c {root}/digits/best.yaml --trainer.enable_progress_bar false --trainer.logger false \\
    --trainer.default_root_dir {root}/fit
---
%%bash
python -m lightning_hpo show {root}/digits"""


def main() -> None:
    """Run the notebooks named as arguments, or all of them; write them, or compare their outputs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="name")
    parser.add_argument("--check", action="store_true", help="compare with the files in place of writing them")
    arguments = parser.parse_args()
    known, wrong = [*SCRIPTS, "cli"], []
    if unknown := set(arguments.names).difference(known):
        parser.error(f"there are no notebooks {sorted(unknown)}; there are {', '.join(known)}")
    for name in arguments.names or known:
        begun = time.monotonic()
        if not arguments.check:
            nbformat.write(run(name), EXAMPLES / "notebooks" / f"{name}.ipynb")
        elif found := differences(name):
            wrong.append(f"{name}: {found}")
        print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
    sys.exit("\n".join(wrong))


def run(name: str, **budget: int) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of a run.

    Args:
        name: of a script without its ending, or "cli".
        budget: values of the script's options, such as ``max_steps``, in place of their defaults.
    """
    where = EXAMPLES / "cli" if name == "cli" else EXAMPLES
    # Lines in place of the live view, whose drawing does not belong into a file; and this Python in the shell.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    with tempfile.TemporaryDirectory() as folder:
        notebook = nbformat.v4.new_notebook(
            cells=cells(name, Path(folder), **budget),
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        client = nbclient.NotebookClient(notebook, timeout=3000, resources={"metadata": {"path": str(where)}})
        client.execute(env={**os.environ, "CI": "1", "PATH": path})
    tidy(notebook, name, Path(folder))
    return notebook


def cells(name: str, root: Path = Path("runs"), **budget: int) -> list[nbformat.NotebookNode]:
    """Return the cells of a notebook, not yet run; arguments are those of ``run``."""
    return [*(command_line(root, **budget) if name == "cli" else from_script(name, root, **budget))]


def differences(name: str, **budget: int) -> str:
    """Run a notebook; say which outputs are missing, or of another type than in its file. An error in a cell is one."""
    try:
        now = run(name, **budget)
    except nbclient.exceptions.CellExecutionError as error:
        return str(error)
    before = nbformat.read(EXAMPLES / "notebooks" / f"{name}.ipynb", 4)
    pairs = zip(map(shown, before.cells), map(shown, now.cells), strict=True)
    return "; ".join(f"cell {n} had {old} and has {new}" for n, (old, new) in enumerate(pairs) if old != new)


def shown(cell: nbformat.NotebookNode) -> list[str]:
    """Return the types of a cell's outputs."""
    return [" ".join(output.get("data", {"text": None})) for output in cell.get("outputs", ())]


def from_script(name: str, root: Path, **budget: int) -> Iterator[nbformat.NotebookNode]:
    """Cells of a script."""
    text = (EXAMPLES / f"{name}.py").read_text()
    tree = ast.parse(text)
    lines = text.splitlines()
    yield nbformat.v4.new_markdown_cell(
        f"# {SCRIPTS[name]}\n\n{ast.get_docstring(tree)}\n\nThe script is `examples/{name}.py`."
    )

    def code(*nodes: ast.stmt) -> nbformat.NotebookNode:
        first = min(node.lineno for node in (nodes[0], *getattr(nodes[0], "decorator_list", [])))
        return nbformat.v4.new_code_cell("\n".join(lines[first - 1 : nodes[-1].end_lineno]))

    head: list[ast.stmt] = []  # imports and constants that are in no cell yet
    main_source = ""
    for node in tree.body[1:]:
        if isinstance(node, ast.If) or getattr(node, "name", "") == "main":
            inner: list[ast.stmt] = getattr(node, "body", [])
            main_source = main_source or textwrap.dedent("\n".join(lines[inner[0].lineno - 1 : node.end_lineno]))
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            if head:
                yield code(*head)
            yield code(node)
            head = []
        elif ast.unparse(node) != "import argparse":
            head.append(node)
    if head:
        yield code(*head)
    for source in from_main(main_source, root, **budget):
        yield nbformat.v4.new_code_cell(source)


def from_main(body: str, root: Path, **budget: int) -> Iterator[str]:
    """Sources of cells from the body of ``main``, with values in place of the parsed options."""
    options = dict(re.findall(r'add_argument\("--([\w-]+)", type=int, default=(\d+)', body), root=f'"{root}"')
    body = re.sub(r"(?m)^parser.*\n|^arguments = .*\n", "", body)
    for option, default in options.items():
        argument = option.replace("-", "_")
        for parsed in ("arguments", "parser.parse_args()"):
            body = body.replace(f"{parsed}.{argument}", str(budget.get(argument, default)))
    body = re.sub(r"(?m)^result = ", "tuner = ", body, count=1)
    body = re.sub(r"(?m)^\)\.fit\((.*)\)$", r")\nresult = tuner.fit(\1)", body, count=1)
    yield body.strip()
    if "result = " in body:
        yield from (CURVES, "result")


def command_line(root: Path, max_steps: int = 90) -> Iterator[nbformat.NotebookNode]:
    """Cells of the project in ``examples/cli``."""
    title = "# A LightningCLI project\n\n`train.py` of `examples/cli` has one line."
    yield nbformat.v4.new_markdown_cell(title)
    for file in ("train.py", "fit.yaml", "space.yaml"):
        yield nbformat.v4.new_code_cell(f"!cat {file}")
    for command in COMMANDS.format(root=root, steps=max_steps).split("\n---\n"):
        yield nbformat.v4.new_code_cell(command)


def tidy(notebook: nbformat.NotebookNode, name: str, root: Path) -> None:
    """Keep what a reader needs: no paths of this machine, no warnings, no colours, the ends of long texts."""
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"{name}-{number}", {}
        cell.source = cell.source.replace(str(root), "runs")
        if cell.cell_type == "code":
            given = [output for output in cell.outputs if output.get("name") != "stderr"]
            printed = "".join(output.text for output in given if output.output_type == "stream")
            cell.outputs = [output for output in given if output.output_type != "stream"]
            for output in cell.outputs:
                shown = ("image/png",) if "image/png" in output.data else ("text/html", "text/plain")
                output.data = {kind: output.data[kind] for kind in shown if kind in output.data}
                for kind in output.data.keys() - {"image/png"}:
                    output.data[kind] = plain(output.data[kind], root)
            if printed:
                cell.outputs.insert(0, nbformat.v4.new_output("stream", name="stdout", text=plain(printed, root)))


def plain(text: str, root: Path) -> str:
    """Return a text without what is of this machine."""
    text = re.sub(r"\x1b\[[\d;]*m", "", text).replace(str(root), "runs").replace(f"{EXAMPLES.parent}/", "")
    lines = re.sub(r"/[\w./-]*/site-packages/", "", text).splitlines(keepends=True)
    lines = [line for line in lines if "Tip: For seamless" not in line]  # Lightning's advertisements
    return "".join(lines if len(lines) <= _MOST_LINES else [*lines[:25], "...\n", *lines[-20:]])


if __name__ == "__main__":
    main()
