"""What a source is recognised by: content, whatever it is called and whenever it was written."""

import hashlib
from pathlib import Path

from llm2enc.data import content_digest
from llm2enc.recipe import DocstringsData, FilesData


def files(*paths: Path) -> str:
    return content_digest(FilesData(kind="files", path=tuple(map(str, paths))))


def test_the_bytes_of_every_file_in_order(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("1.txt", "2.txt", "3.txt"))
    one.write_bytes(b"a river\n")
    two.write_bytes(b"the bridge\n")
    three.write_bytes(b"a river\nthe bridge\n")
    river, bridge = (hashlib.sha256(text).hexdigest() for text in (b"a river\n", b"the bridge\n"))
    assert files(one) == hashlib.sha256(river.encode()).hexdigest()
    assert files(one, two) == hashlib.sha256(f"{river}{bridge}".encode()).hexdigest()
    assert len({files(one, two), files(two, one), files(three), files(one), files(tmp_path / "*.txt")}) == 5
    assert files(tmp_path / "[12].txt") == files(one, two)


def test_of_a_beir_folder_what_is_trained_on(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/test.tsv"):
        (tmp_path / name).write_text(name)

    def digest() -> str:
        return content_digest(FilesData(kind="files", path=str(tmp_path)))

    before = digest()
    (tmp_path / "qrels/test.tsv").write_text("more judgements")
    assert digest() == before
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv"):
        (tmp_path / name).write_text("other")
        assert digest() != before
        (tmp_path / name).write_text(name)


def test_docstrings_are_what_is_installed() -> None:
    json, csv = (content_digest(DocstringsData(kind="docstrings", packages=(name,))) for name in ("json", "csv"))
    assert json != csv and json == content_digest(DocstringsData(kind="docstrings", packages=("json",)))
