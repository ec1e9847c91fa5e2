"""Runs examples/metrics.ipynb on a short run of its own and looks at what it shows: the losses of the last steps, a plot,
quantiles of the entropies, and the report in a frame. Needs `pip install -r scripts/notebook-requirements.txt`.

    python scripts/run_notebook.py WEFT FOLDER

WEFT is the program; FOLDER is made, with the run and the notebook as a page (metrics.html).
"""

import html
import json
import os
import pathlib
import shutil
import subprocess
import sys

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter

NOTEBOOK = pathlib.Path(__file__).resolve().parent.parent / "examples/metrics.ipynb"
STEPS = 24
SHORT = [f"train.max_steps={STEPS}", "train.eval_every=8", "data.train_rows=768", "data.held_out_rows=16", "eval.limit=4"]


def check(holds, what):
    if not holds:
        sys.exit(f"failed: {what}")


def shown(cell):
    """What a cell shows, by kind: text/plain, text/html, image/png."""
    outputs = [output for output in cell.outputs if output.output_type != "stream"]
    told = [output.text for output in cell.outputs if output.output_type == "stream"]
    check(not told, f"a cell prints {told}")
    return {kind: data for output in outputs for kind, data in output.data.items()}


def main(weft, folder):
    weft, folder = pathlib.Path(weft).resolve(), pathlib.Path(folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    check(all(not cell.outputs and cell.execution_count is None for cell in code), "the notebook is kept without outputs")
    settings = [part for setting in SHORT for part in ("--set", setting)]
    subprocess.run([weft, "train", "--quiet", *settings], cwd=folder, check=True, stdout=subprocess.DEVNULL)

    os.environ.pop("WEFT_RUN", None)  # the notebook finds runs/quickstart by itself
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    table, plot, quantiles, report = map(shown, code)
    last = [json.loads(line) for line in open(folder / "runs/quickstart/metrics.jsonl")]
    last = [line for line in last if "nll" in line][-1]
    check(last["step"] == STEPS and f"{last['nll']:.6f}" in table["text/plain"], "the table ends with the last step's nll")
    check("image/png" in plot, "the losses are plotted")
    check("95 %" in quantiles["text/plain"], "the entropies have quantiles")
    page = (folder / "runs/quickstart/report.html").read_text(encoding="utf-8")
    check(f'srcdoc="{html.escape(page)}"' in report["text/html"], "the report is shown whole")
    (folder / "metrics.html").write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    print(f"the notebook ran; {folder / 'metrics.html'} shows it")


if __name__ == "__main__":
    main(*sys.argv[1:])
