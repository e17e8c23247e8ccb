"""Every notebook runs from the first cell to the last in a fresh kernel, and what it stores is what it produces.

python tests/test_notebooks.py [NAME ...]    run notebooks and store their outputs, after a change of their cells
"""

import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
LIMIT = 600  # seconds a cell may take on a busy machine; alone, a whole notebook takes one to two minutes
IMAGE, NOTEBOOK = 120_000, 600_000  # bytes at most of a figure and of a file
MACHINE = ("/work", "/root", "/tmp/", "/home/", "/Users/", "\\Users\\")
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.])")


def read(name: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def execute(notebook: NotebookNode, work: Path) -> NotebookNode:
    """A copy with the outputs of a fresh kernel of this interpreter, which works in `work`, offline and without a GPU."""
    done = nbformat.from_dict(notebook)
    env = {
        # What a test run finds on a user's machine must not decide how it ends, nor may it change anything there.
        "LLM2ENC_CACHE": str(work / "cache"),
        "HF_DATASETS_CACHE": str(work / "datasets"),
        "IPYTHONDIR": str(work / "ipython"),
        "MPLCONFIGDIR": str(work / "matplotlib"),
        "TMPDIR": str(work),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",  # the notebooks run beside each other
    }
    # Without folders to search, `python3` is the ipykernel of this environment.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(
        done, km=manager, timeout=LIMIT, record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(work)}},
    )  # fmt: skip
    client.execute(env=os.environ | env, cleanup_kc=True)
    done.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return done


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: NotebookNode) -> list[str]:
    """What the cell puts out, piece by piece: a stream by its name, an object by its formats."""
    return [output.name if output.output_type == "stream" else " ".join(sorted(output.data)) for output in cell.outputs]


def texts(notebook: NotebookNode) -> list[str]:
    """Everything in the outputs that can be read."""
    found = []
    for output in (output for cell in code(notebook) for output in cell.outputs):
        found += [output.text] if output.output_type == "stream" else []
        found += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return found


def images(cell: NotebookNode) -> list[str]:
    """Its figures, in base64."""
    return [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]


# One on less data; as they are they take minutes, and what they call has tests of its own.
SHORT = (NAMES[0], "documents=150", "documents=10")
WHOLE = [pytest.param(name, "", "", marks=pytest.mark.full, id=name) for name in NAMES]


@pytest.mark.parametrize(("name", "cell", "short"), [SHORT, *WHOLE])
def test_a_notebook_runs_and_produces_what_it_stores(name: str, cell: str, short: str, tmp_path: Path):
    stored, given = read(name), read(name)
    for one in code(given):
        one.source = one.source.replace(cell, short)
    assert bool(cell) == (given != stored)
    done = execute(given, tmp_path)  # CellExecutionError if any cell fails
    for before, after in zip(code(stored), code(done), strict=True):
        assert "stderr" not in kinds(after), f"{after.id}: {after.outputs}"
        assert kinds(after) == kinds(before), f"{after.id}: run `python tests/test_notebooks.py {name}`"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_a_figure_on_its_first_screen(name: str):
    first, *_ = [cell for cell in code(read(name)) if cell.outputs]
    assert images(first) and first.execution_count <= 2


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_one_run_of_the_cells_in_order(name: str):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_is_small_and_tells_nothing_of_the_machine(name: str):
    notebook = read(name)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < NOTEBOOK
    for cell in code(notebook):
        assert not cell.metadata and all(len(image) * 3 / 4 < IMAGE for image in images(cell)), cell.id
    for text in texts(notebook):
        assert not [path for path in MACHINE if path in text], text
        assert not re.search(r"\bWarning\b|\d+%\|", text), text


@pytest.mark.parametrize("name", NAMES)
def test_prose_has_no_number_that_the_notebook_does_not_compute(name: str):
    notebook = read(name)
    start = notebook.cells.index(code(notebook)[0])
    shown = " ".join(texts(notebook))
    for cell in notebook.cells[start:]:
        if cell.cell_type == "markdown":
            assert not [number for number in DECIMAL.findall(cell.source) if number not in shown], cell.source


def store(names: list[str]) -> None:
    for name in names:
        with TemporaryDirectory() as work:
            done = execute(read(name), Path(work))
        for cell in code(done):
            cell.metadata = {}
        (FOLDER / f"{name}.ipynb").write_text(nbformat.writes(done, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    store(sys.argv[1:] or NAMES)
