"""Docstrings of a source text without parsing its code.

`ast.parse` of the packages that llm2enc uses takes about 40 s, nearly all of it for function bodies that nobody reads.
A docstring stands right behind a header, so headers are found by their shape and only the string literal itself goes
through `ast.literal_eval`. tests/test_docstrings.py holds this to what `ast.get_docstring` finds.
"""

import ast
import inspect
import re
import warnings
from collections.abc import Iterator

_DEFINITION = re.compile(r"^([ \t]*)(?:class|def|async +def)[ \t]+(\w+)", re.MULTILINE)
# A header ends with the first line that ends in a colon; only comments may stand between it and the docstring.
_HEADER_REST = re.compile(
    r'(?:[^\n]*[^\n:\s][ \t]*\n)*?[^\n]*:[ \t]*(?:#[^\n]*)?\n(?:[ \t]*(?:#[^\n]*)?\n)*[ \t]+([rRuU]?)("{3}|\'{3}|"|\')'
)
_MODULE_START = re.compile(r'\ufeff?(?:[ \t]*(?:#[^\n]*)?\n)*([rRuU]?)("{3}|\'{3}|"|\')')


def scan_docstrings(source: str) -> Iterator[tuple[str, str]]:
    """(qualified name, cleaned docstring) of the module and all its classes and functions, in the file's order.

    A definition that follows a function inside an `if` is named as if it stood in that function: only headers are read.
    """
    opening = _MODULE_START.match(source)
    position = 0
    if opening:
        text, position = _literal(source, opening)
        yield from _named("", text)
    enclosing: list[tuple[int, str]] = []  # (indent, name), outermost first
    definitions = list(_DEFINITION.finditer(source))
    ends = [definition.start() for definition in definitions[1:]] + [len(source)]
    for definition, end in zip(definitions, ends, strict=False):
        if definition.start() < position:
            continue  # example code inside the docstring that was just read
        indent = len(definition[1].expandtabs())
        while enclosing and enclosing[-1][0] >= indent:
            enclosing.pop()
        enclosing.append((indent, definition[2]))
        opening = _HEADER_REST.match(source, definition.end())
        if opening is None or opening.end() > end:
            continue
        text, position = _literal(source, opening)
        yield from _named(".".join(name for _, name in enclosing), text)


def _literal(source: str, opening: re.Match[str]) -> tuple[str | None, int]:
    """(value of the string literal that `opening` ends in front of, position behind it); None if it is no literal."""
    prefix, quote = opening.groups()
    closing = source.find(quote, opening.end())
    if closing < 0:
        return None, len(source)
    text, end = source[opening.end() : closing], closing + len(quote)
    if "\\" not in text:
        return text, end
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escape sequences
            return ast.literal_eval(prefix + quote + text + quote), end
    except (SyntaxError, ValueError):
        return None, end


def _named(name: str, text: str | None) -> Iterator[tuple[str, str]]:
    cleaned = inspect.cleandoc(text) if text else ""
    if cleaned:
        yield name, cleaned
