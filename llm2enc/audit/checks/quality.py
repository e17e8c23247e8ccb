"""What is wrong with a text by itself: empty, damaged, markup, the same over and over."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from llm2enc.audit.chunks import Chunk
from llm2enc.audit.report import Finding, Severity, graded

_TAG = re.compile(
    r"</?(?:a|abbr|b|blockquote|body|br|code|div|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|li|meta|ol|p|pre|ref|"
    r"s|script|section|small|span|strong|style|sub|sup|table|tbody|td|th|title|tr|u|ul)\b[^<>]*>",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|[lr][sd]quo|hellip|[mn]dash|#\d{1,6}|#x[0-9a-fA-F]{1,5});")
_SURROGATE = re.compile("[\ud800-\udfff]")
# UTF-8 read as Latin-1 or Windows-1252: the lead byte of a two-, three- or four-byte character, then one that follows.
_MOJIBAKE = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2(?:\u20ac|\u0080)|\u00f0(?:\u0178|\u009f)")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff]")


def _has_markup(text: str) -> bool:
    return ("<" in text and _TAG.search(text) is not None) or ("&" in text and _ENTITY.search(text) is not None)


def _says_nothing(text: str) -> bool:
    """Five signs or more of one kind, ten or more of two, or ten words and more of which nine in ten repeat another."""
    most = 1 if len(text) < 10 else 2
    if len(text) >= 5 and len(set(text[:20]) - {" "}) <= most and len(set(text) - {" "}) <= most:
        return True
    words = text.split() if len(text) >= 20 else []
    return len(words) >= 10 and 10 * len(set(words)) <= len(words)


@dataclass(frozen=True)
class _Fault:
    found: Callable[[str], object]
    what: str
    remedy: str
    plain: bool
    """Whether printable ASCII can have it: most texts are that, and need no further look."""
    warning: float
    """Share of the texts from which it is a warning."""
    error: float = 2.0

    def severity(self, share: float) -> Severity:
        return graded(share, self.warning, self.error)


_FAULTS = {
    "empty-texts": _Fault(
        lambda text: not text.strip(), "no text, or white space only", "leave these rows out", plain=True, warning=0
    ),
    "lone-surrogates": _Fault(
        _SURROGATE.search,
        "half of a character (a lone surrogate), which no tokenizer takes: training stops there",
        "clean them with text.encode('utf-8', 'replace').decode()",
        plain=False,
        warning=0,
        error=0,
    ),
    "replacement-characters": _Fault(
        lambda text: "\ufffd" in text,
        "U+FFFD: characters were lost when the file was decoded",
        "read the original again in its own encoding",
        plain=False,
        warning=0.001,
    ),
    "mojibake": _Fault(
        _MOJIBAKE.search,
        "look like UTF-8 read as Latin-1 (an accented letter became two signs)",
        "repair with text.encode('cp1252').decode('utf-8') where that works",
        plain=False,
        warning=0.001,
    ),
    "control-characters": _Fault(
        _CONTROL.search,
        "control or invisible characters",
        "remove them unless they mean something",
        plain=False,
        warning=0.01,
    ),
    "html": _Fault(
        _has_markup, "HTML tags or entities", "take the markup out unless queries will have it too", True, warning=0.01
    ),
    "constant-texts": _Fault(
        _says_nothing, "one or two characters, or one word, over and over", "leave these rows out", True, warning=0.001
    ),
}


@dataclass
class TextFaults:
    """Counts of every fault by side, with the first rows that have it."""

    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    """(side, fault) -> texts."""
    examples: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    not_text: list[int] = field(default_factory=list)
    num_not_text: int = 0

    def add(self, chunk: Chunk) -> None:
        self.num_not_text += len(chunk.not_text)
        self.not_text = (self.not_text + chunk.not_text)[:2]
        for side, column in chunk.columns.items():
            self.totals[side] = self.totals.get(side, 0) + len(column.texts)
            for text, row in zip(column.texts, column.rows.tolist(), strict=True):
                plain = text.isascii() and text.isprintable()
                for name, fault in _FAULTS.items():
                    if (fault.plain or not plain) and fault.found(text):
                        self._count((side, name), row)

    def findings(self) -> list[Finding]:
        found = [self._finding(side, name) for side, name in self.counts]
        if self.num_not_text:
            rows = max(self.totals.values())
            what = f"{self.num_not_text:,} rows have a cell that is no text (a number, a missing value)"
            remedy = "write texts; leave a row without text out"
            found.append(Finding("not-text", "error", what, remedy, self.num_not_text, rows, tuple(self.not_text)))
        return found

    def _count(self, key: tuple[str, str], row: int) -> None:
        self.counts[key] = self.counts.get(key, 0) + 1
        examples = self.examples.setdefault(key, [])
        if len(examples) < 2 and row not in examples:
            examples.append(row)

    def _finding(self, side: str, name: str) -> Finding:
        fault, count, total = _FAULTS[name], self.counts[side, name], self.totals[side]
        what = f"{count:,} of {total:,} {plural(side)}: {fault.what}"
        rows = tuple(self.examples[side, name])
        return Finding(name, fault.severity(count / total), what, fault.remedy, count, total, rows)


def plural(side: str) -> str:
    return {"query": "queries", "other": "further positives"}.get(side, f"{side}s")
