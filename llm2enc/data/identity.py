"""What a source holds, as a short string: whether an interrupted run goes on with the data that it was begun with."""

import glob
import hashlib
from pathlib import Path

import datasets

from llm2enc.data import beir
from llm2enc.data.docstrings.corpus import read_docstrings
from llm2enc.data.files import matches
from llm2enc.data.tables import reading
from llm2enc.recipe import DataSpec, DocstringsData, FilesData, HubData
from llm2enc.storage import sha256_of


def content_digest(spec: DataSpec) -> str:
    """SHA-256 of what a source is read from: the bytes of its files in order, the commit on the hub, the docstrings.

    Neither names nor time stamps count. DataError if the source cannot be had.
    """
    found = hashlib.sha256()
    if isinstance(spec, DocstringsData):
        found.update(repr(read_docstrings(spec.packages, spec.split)).encode())
    elif isinstance(spec, HubData):
        with reading(spec):
            builder = datasets.load_dataset_builder(spec.path, spec.config, revision=spec.revision)
        found.update(str(builder.hash).encode())
    else:
        with reading(spec):
            for file in _files(spec):
                found.update(sha256_of([file]).encode())
    return found.hexdigest()


def _files(spec: FilesData) -> list[Path]:
    if beir.is_beir(spec.path):
        return beir.files(Path(str(spec.path)), spec.split)
    paths = [spec.path] if isinstance(spec.path, str) else spec.path
    return [Path(glob.glob(file)[0]) for path in paths for file in matches(path)]
