"""Prose: what is left of a docstring when code, tables, parameter lists and markup are taken out.

Docstrings come in three dialects (Google, NumPy, Sphinx). Everything that is not running text in any of them is
dropped by the shape of its lines; the rest is joined into paragraphs.
"""

import re

_DROPPED_SECTIONS = (
    "args|arguments|params|parameters|other parameters|keyword arguments|keyword args|kwargs|returns?|yields?|raises|"
    "warns|receives|attributes?|methods|members|properties|fields|examples?|usage|shape|shapes|inputs?|outputs?|"
    "references?|see also|todo|example usage|usage examples?|input shapes?|output shapes?|dynamo"
)
_ITEM = re.compile(
    rf"(?:{_DROPPED_SECTIONS})\b[^.:]{{0,24}}::?$"  # Google section
    r"|(?:args|arguments|parameters|params|returns?|yields?|raises|examples?)::? "  # the same on one line
    r"|\*{0,2}\w+ ?\(.*\).*:$"  # Google parameter
    r"|:[a-z][^:`]*:(?!`)|@[a-z]+\b|\.\. |\.\.$|__ "  # Sphinx field or directive
    r"|(?:[-*+•#]|\(?[0-9a-z][.)])\s",  # list entry
    re.IGNORECASE,
)
_NAMED_SECTION = re.compile(rf"(?:{_DROPPED_SECTIONS})$", re.IGNORECASE)
_KEPT_HEADING = re.compile(r"(?:notes?|warnings?|important|tips?|caution|description)\s*::?$", re.IGNORECASE)
_UNDERLINE = re.compile(r"([=\-~^#*+])\1{2,}$")
_FENCE = re.compile(r"```|~~~|</?[a-zA-Z]+[^>]*>$")
_NOT_PROSE_LINE = re.compile(r"(?:>>>|\.\.\. |In \[|\$ |% |[|+]|\W*https?://\S+\W*$|!\[)|.*(?:\|.*\||\s{4,}\S|\t)")

_MARKUP = (
    (re.compile(r"\[([^\]]*)\]\(\s*[^)\s]*\s*\)"), r"\1"),  # [text](address)
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}"), r"\1"),  # `text <address>`_
    (re.compile(r":[a-zA-Z:+-]+:`[~!]?([^`<]*?)(?:\s*<[^`>]*>)?`"), r"\1"),  # :role:`~name`
    (re.compile(r"\[`[~!]?([^`\]]*)`\]"), r"\1"),  # [`~name`]
    (re.compile(r"\[\d+\]_"), ""),  # citation
    (re.compile(r"`{1,2}([^`]*)`{1,2}_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])"), r"\1"),
)
_MARKUP_CHARACTERS = frozenset("`*[")
_SPACE_BEFORE = re.compile(r" ([.,;:!?)])(?=\s|$)")
_WORD = re.compile(r"[(\"']*[A-Za-z]+(?:['’/-][A-Za-z]+)*[)\"']*[.,;:!?]*[)\"']*$")
_NOT_PROSE = re.compile(r"[{}\\|<>=]{1}.*[{}\\|<>=]|->|\$|%\(|__\w+__.*__\w+__|\w\(\w*,.*\)|\[source\]")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|al|fig|eq|eqs|sec|no|vol|pp?|dr|mr|mrs|st|approx|resp|[A-Z]))\.$"
)


def num_words(text: str) -> int:
    """Words of a text, split at whitespace."""
    return len(text.split())


def paragraphs(docstring: str) -> tuple[str, ...]:
    """Prose paragraphs of a cleaned docstring (`inspect.cleandoc`), one line each, of at least three words."""
    joined = (_plain(" ".join(lines)) for lines in _blocks(docstring))
    return tuple(text for text in joined if _is_prose(text))


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph; a full stop of an abbreviation or initial does not end one."""
    found: list[str] = []
    for piece in _SENTENCE_END.split(paragraph):
        if found and _ABBREVIATION.search(found[-1]):
            found[-1] += " " + piece
        else:
            found.append(piece)
    return [sentence.strip() for sentence in found if sentence.strip()]


def _blocks(docstring: str) -> list[list[str]]:
    """Groups of neighbouring lines that are neither code nor list nor section content."""
    blocks: list[list[str]] = [[]]
    lines = docstring.splitlines()
    fenced = False
    named_section = False  # inside a NumPy section that is dropped; ends at the next underlined heading
    dropped_above: int | None = None  # lines indented deeper than this belong to a dropped item
    for number, line in enumerate(lines):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        following = lines[number + 1].strip() if number + 1 < len(lines) else ""
        if _FENCE.match(text):
            fenced = text.startswith(("```", "~~~")) and not fenced and text.count("```") != 2
            blocks.append([])
        elif fenced or not text or _UNDERLINE.match(text):
            blocks.append([])
        elif _UNDERLINE.match(following):
            named_section = bool(_NAMED_SECTION.match(text))
            dropped_above = None
            blocks.append([])
        elif named_section or (dropped_above is not None and indent > dropped_above):
            continue
        elif _ITEM.match(text):
            dropped_above = indent
            blocks.append([])
        elif _KEPT_HEADING.match(text):
            dropped_above = None
            blocks.append([])
        elif _NOT_PROSE_LINE.match(text):
            # The line spoils its paragraph: half a table or half an equation is no prose either.
            dropped_above = None
            blocks[-1:] = [[], []]
        else:
            # After `::` the deeper lines are code.
            dropped_above = indent if text.endswith("::") else None
            if blocks[-1] and indent != len(blocks[-1][-1]) - len(blocks[-1][-1].lstrip()):
                blocks.append([])
            blocks[-1].append(line)
    return [block for block in blocks if block]


def _plain(text: str) -> str:
    """The text without inline markup, in one line."""
    if not _MARKUP_CHARACTERS.isdisjoint(text):
        for pattern, replacement in _MARKUP:
            text = pattern.sub(replacement, text)
    return _SPACE_BEFORE.sub(r"\1", " ".join(text.replace("::", ":").split()))


def _is_prose(text: str) -> bool:
    words = text.split()
    if len(words) < 3 or not (text[0].isalpha() or text[0] in "\"'(") or _NOT_PROSE.search(text):
        return False
    # Running text is nearly all words; signatures, listings and shapes are not.
    return sum(_WORD.match(word) is not None for word in words) >= 0.75 * len(words)
