"""Docstrings: cleaning by hand-made examples, the scanner against `ast`, and what the splits promise."""

import argparse
import ast
import collections
import inspect
import json.decoder
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from llm2enc.data import pair_view, read_docstrings
from llm2enc.data.docstrings.corpus import DEFAULT_PACKAGES, is_heldout, paragraph_view, sentence_view
from llm2enc.data.docstrings.prose import paragraphs, sentences
from llm2enc.data.docstrings.scan import scan_docstrings

GOOGLE = """Compute the mean of a list of numbers. It is exact for integers.

The result is a :class:`~fractions.Fraction` if every entry of ``values`` is an integer.

Args:
    values: the numbers whose mean is wanted by the caller
    weights (list of float): one weight for each number

Returns:
    the mean as a number of the same kind

Example::

    >>> mean([1, 2])
    1.5

Note:
    The numbers are read only once, so a generator works too.
"""
NUMPY = """Return the largest entry of an array.

Parameters
----------
a : array
    The array whose largest entry is wanted.

Returns
-------
entry : float
    The largest entry of the whole array.

Notes
-----
Entries that are not numbers win over all others.

.. note:: this block is left out of the prose entirely
"""
MODULE = '''\
"""Topic WORD is the matter of this module. The WORD body tells all about it in eight words."""
def again():
    """Cook the WORD soup slowly. You cook the WORD soup slowly here."""
'''


def test_google_sections_are_dropped() -> None:
    assert paragraphs(GOOGLE) == (
        "Compute the mean of a list of numbers. It is exact for integers.",
        "The result is a fractions.Fraction if every entry of values is an integer.",
        "The numbers are read only once, so a generator works too.",
    )


def test_numpy_sections_are_dropped() -> None:
    assert paragraphs(NUMPY) == (
        "Return the largest entry of an array.",
        "Entries that are not numbers win over all others.",
    )


@pytest.mark.parametrize(
    "text",
    [
        ">>> x = fold the two ends of it together",
        "| name | what the name means here |",
        "foo(a, b, c) -> the sum of all of them",
        "https://example.org/a/page",
        "```\nsome code that reads like prose\n```",
        ":param x: the value that is looked up here",
        "- one entry of a list of things",
    ],
)
def test_what_is_not_prose_is_dropped(text: str) -> None:
    assert paragraphs(text) == ()


def test_abbreviations_do_not_end_a_sentence() -> None:
    assert sentences("See e.g. The Book for more. It is good.") == ["See e.g. The Book for more.", "It is good."]


@pytest.mark.parametrize("module", [argparse, collections, inspect, json.decoder, np.lib._function_base_impl])
def test_scanner_finds_what_ast_finds(module: ModuleType) -> None:
    source = inspect.getsource(module)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    expected = Counter(
        (getattr(node, "name", ""), ast.get_docstring(node)) for node in nodes if ast.get_docstring(node)
    )
    assert Counter((name.split(".")[-1], text) for name, text in scan_docstrings(source)) == expected


def test_scanner_skips_code_in_docstrings() -> None:
    source = '''\
class Outer:  # a comment
    """First line.

    class Example:
        pass
    """

class Other(
    Outer,
):
    # between
    r"""A \\d pattern."""

    def method(self): return 1

    async def fetch(self) -> "int":
        'Short one.'
'''
    assert list(scan_docstrings(source)) == [
        ("Outer", "First line.\n\nclass Example:\n    pass"),
        ("Other", "A \\d pattern."),
        ("Other.fetch", "Short one."),
    ]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that fails when it is imported, with four modules of which some are held out."""
    root = tmp_path / "tinyprose"
    (root / "tests").mkdir(parents=True)
    shared = '"""Shared opening sentence of two modules. And a second sentence that both of them carry here."""\n'
    (root / "__init__.py").write_text('"""Nothing may import this package."""\nraise SystemExit\n')
    for number in range(40):
        (root / f"module_{_word(number)}.py").write_text(MODULE.replace("WORD", _word(number)))
    (root / "shared_a.py").write_text(shared)
    (root / "shared_b.py").write_text(shared)
    (root / "tests" / "test_it.py").write_text('"""This docstring of a test must not be found."""\n')
    (root / "broken.py").write_bytes(b'"""Latin \xe9 bytes that are not valid here."""')
    monkeypatch.syspath_prepend(str(tmp_path))
    return "tinyprose"


def _word(number: int) -> str:
    return "abcdefghij"[number // 10] + "klmnopqrst"[number % 10]


def test_views_of_a_package(package: str) -> None:
    train, heldout = read_docstrings((package,)), read_docstrings((package,), "heldout")
    assert package not in sys.modules
    assert heldout, "none of 42 modules is held out: the hash rule changed"
    assert {is_heldout(d.module) for d in train} == {False} and {is_heldout(d.module) for d in heldout} == {True}
    assert [(d.module, d.name) for d in train] == sorted((d.module, d.name) for d in train)
    one = next(d for d in train if d.module.startswith("tinyprose.module_") and not d.name)
    word = one.module[-2:]
    assert one.summary == f"Topic {word} is the matter of this module."
    assert one.body == f"The {word} body tells all about it in eight words."
    assert one.paragraphs == (f"{one.summary} {one.body}",)
    again = next(d for d in train if d.module == one.module and d.name == "again")
    assert again.body == ""  # it repeated the summary
    texts = paragraph_view(train)
    assert one.paragraphs[0] in texts and len(texts) == len(set(texts))
    assert one.summary in sentence_view(train)
    assert (one.summary, one.body) in pair_view(train)
    assert all(query != again.summary for query, _ in pair_view(train))
    assert not any("test must not" in text for text in texts)
    shared = [d for d in train if d.summary.startswith("Shared")]
    assert len(shared) <= 1  # the copy is gone


def test_heldout_shares_no_text_with_train() -> None:
    names = ("email", "json", "http", "logging", "unittest", "xml", "numpy")
    train, heldout = read_docstrings(names), read_docstrings(names, "heldout")
    assert len(train) > 100 and heldout
    assert not set(sentence_view(train)) & set(sentence_view(heldout))
    assert not set(paragraph_view(train)) & set(paragraph_view(heldout))
    assert not {text for pair in pair_view(train) for text in pair} & {
        text for pair in pair_view(heldout) for text in pair
    }
    for query, document in pair_view(train) + pair_view(heldout):
        assert query.rstrip(".").casefold() not in document.casefold()
        assert 8 <= len(document.split()) <= 150


def test_missing_package_is_an_error_only_if_named() -> None:
    with pytest.raises(ValueError, match=r"no installed package 'no_such_thing'; give top-level import names"):
        read_docstrings(("no_such_thing",))
    with pytest.raises(ValueError, match=r"no installed package 'os\.path'"):
        read_docstrings(("os.path",))
    assert {"json", "torch", "transformers", "numpy"} <= set(DEFAULT_PACKAGES)
