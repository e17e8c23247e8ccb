"""Which language a text is in, by py3langid: offline, 115 languages, a model of 4.5 MB inside its wheel."""

from collections import Counter
from functools import cache
from typing import Any

import numpy as np

from llm2enc.audit.checks.quality import plural
from llm2enc.audit.chunks import Chunk
from llm2enc.audit.report import Finding

_UNKNOWN = ("und", "zxx")  # ISO 639-2: undetermined; no linguistic content, such as numbers and code
_CONFIDENCE = 0.6
# Share of another language that is named. Of 28 corpora of one language (STS Benchmark and Tatoeba, whole sentences and
# their first three words), the detector puts at most 1.3 % of the texts that it determines into another one.
_MINOR = 0.015


@cache
def _detector() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    detector = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_CONFIDENCE)
    # The rest are varieties that short texts are mistaken for: Wu and Cantonese for Chinese, Extremaduran for Spanish.
    detector.set_languages([name for name in detector.labels if len(name) == 2 or name == "zxx"])
    return detector


def language_of(text: str) -> str:
    """The ISO 639-1 code of the text's language; `zxx` for what is no language, `und` where the detector is not sure."""
    return _detector().classify(text[:300])[0]


def detect(sample: Chunk) -> dict[str, list[str]]:
    """By side, the language of each text."""
    return {side: list(map(language_of, column.texts)) for side, column in sample.columns.items() if column.texts}


def shares(languages: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """By side, the share of each language, the largest first."""
    return {
        side: {name: count / len(names) for name, count in Counter(names).most_common()}
        for side, names in languages.items()
    }


def findings(numbers: list[int], sample: Chunk, languages: dict[str, list[str]]) -> list[Finding]:
    """Few texts in another language than the rest, and sides in different languages."""
    found = []
    main: dict[str, str] = {}
    for side, names in languages.items():
        known = np.array(names)
        sure = ~np.isin(known, _UNKNOWN)
        if sure.sum() < 50 or side == "negative":
            continue
        main[side] = Counter(known[sure].tolist()).most_common(1)[0][0]
        other = sure & (known != main[side])
        if _MINOR < other.sum() / sure.sum() <= 0.2:
            which = ", ".join(f"{name} {n:,}" for name, n in Counter(known[other].tolist()).most_common(4))
            what = (
                f"{other.sum():,} of {sure.sum():,} sampled {plural(side)} look like another language than "
                f"{main[side]}: {which}"
            )
            examples = tuple(numbers[int(sample.columns[side].rows[i])] for i in np.flatnonzero(other)[:2])
            remedy = "leave them out, or add more of these languages if the encoder is to know them"
            found.append(Finding("minor-language", "note", what, remedy, int(other.sum()), int(sure.sum()), examples))
    if len(set(main.values())) > 1:
        what = ", ".join(f"{plural(side)} are mostly {language}" for side, language in main.items())
        found.append(Finding("two-languages", "note", what, "right for a cross-lingual set, and only there"))
    return found
