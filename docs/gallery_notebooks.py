"""Makes the notebooks of the gallery from the scripts in ``examples``: ``python docs/gallery_notebooks.py``.

It runs them too. A docstring is the first cell, each class or function a cell, the body of ``main`` the last ones.
"""

import ast
import os
import re
import sys
import tempfile
import textwrap
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
COMMANDS = """!python train.py tune -c fit.yaml --space space.yaml --tuner HyperbandTuner --tuner.max_steps 90 \\
    --tuner.monitor val_acc --tuner.mode max --tuner.name digits --tuner.root {root}
---
!cat {root}/digits/best.yaml
---
!python train.py fit -c {root}/digits/best.yaml --trainer.enable_progress_bar false --trainer.logger false \\
    --trainer.default_root_dir {root}/fit
---
!python -m lightning_hpo show {root}/digits"""


def main() -> None:
    """Write and run the notebooks named as arguments, or all of them."""
    names = sys.argv[1:] or [*SCRIPTS, "cli"]
    os.environ["CI"] = "1"  # lines in place of the live view, whose drawing does not belong into a file
    for name in names:
        root = Path(tempfile.mkdtemp())
        cells = [*(command_line(root) if name == "cli" else from_script(name, root))]
        notebook = nbformat.v4.new_notebook(
            cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        )
        where = EXAMPLES / "cli" if name == "cli" else EXAMPLES
        nbclient.NotebookClient(notebook, timeout=3000, resources={"metadata": {"path": str(where)}}).execute()
        tidy(notebook, name, root)
        nbformat.write(notebook, EXAMPLES / "notebooks" / f"{name}.ipynb")
        print(name, "is written")


def from_script(name: str, root: Path) -> Iterator[nbformat.NotebookNode]:
    """Cells of a script."""
    text = (EXAMPLES / f"{name}.py").read_text()
    tree = ast.parse(text)
    code, lines = nbformat.v4.new_code_cell, text.splitlines()
    yield nbformat.v4.new_markdown_cell(
        f"# {SCRIPTS[name]}\n\n{ast.get_docstring(tree)}\n\nThe script is `examples/{name}.py`."
    )
    head: list[str] = []
    main_source = ""
    for node in tree.body[1:]:
        first = min([node.lineno, *(part.lineno for part in getattr(node, "decorator_list", []))])
        source = "\n".join(lines[first - 1 : node.end_lineno])
        if isinstance(node, ast.If) or getattr(node, "name", "") == "main":
            inner: list[ast.stmt] = getattr(node, "body", [])
            main_source = main_source or textwrap.dedent("\n".join(lines[inner[0].lineno - 1 : node.end_lineno]))
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield code("\n".join([*head, "\n", source] if head else [source]).strip())
            head = []
        elif source != "import argparse":
            head.append(source)
    if head:
        yield code("\n".join(head))
    options = dict(
        re.findall(r'add_argument\("--([\w-]+)", type=int, default=(\d+)', main_source), root=repr(str(root))
    )
    body = re.sub(r"(?m)^parser.*\n|^arguments = .*\n", "", main_source)
    for option, value in options.items():
        for parsed in ("arguments", "parser.parse_args()"):
            body = body.replace(f"{parsed}.{option.replace('-', '_')}", value)
    body = re.sub(r"(?m)^result = ", "tuner = ", body, count=1)
    body = re.sub(r"(?m)^\)\.fit\((.*)\)$", r")\nresult = tuner.fit(\1)", body, count=1)
    yield code(body.strip())
    if "result = " in body:
        yield code(CURVES)
        yield code("result")


def command_line(root: Path) -> Iterator[nbformat.NotebookNode]:
    """Cells of the project in ``examples/cli``."""
    title = "# A LightningCLI project\n\n`train.py` of `examples/cli` has one line."
    yield nbformat.v4.new_markdown_cell(title)
    for file in ("train.py", "fit.yaml", "space.yaml"):
        yield nbformat.v4.new_code_cell(f"!cat {file}")
    for command in COMMANDS.format(root=root).split("\n---\n"):
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
