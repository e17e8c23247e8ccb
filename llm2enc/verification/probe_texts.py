"""What is read to compare two programs: texts of many kinds, alone and in batches of one shape."""

from dataclasses import dataclass

from llm2enc.text import PROBES

LONG = "a text beyond the limit"
MOST_TOKENS = 2048
# What the check at the end of a conversion may cost: parameters of the model times characters of the texts. Two cores take
# some seconds for it in each engine, and a model of eight million parameters reads all texts.
WORK = 5e10
FIRST = (
    "a plain sentence",
    "one letter",
    "space at the ends",
    "Chinese",
    "German",
    "emoji",
)  # then those in PROBES' order


@dataclass(frozen=True)
class Run:
    """One pass over texts: a prompt, where batches are padded, and which texts share one."""

    prompt: str
    mode: str  # alone, batch (as the engine pads), left, right
    batches: list[list[int]]

    @property
    def side(self) -> str:
        return self.mode if self.mode in ("left", "right") else ""

    @property
    def order(self) -> list[int]:
        """The texts, as their rows stand in the answer."""
        return [index for batch in self.batches for index in batch]


def texts(max_tokens: int) -> dict[str, str]:
    """The texts by kind. The longest is of plain words: the limit may fall inside a character of others, which programs
    cut differently."""
    return PROBES | {LONG: "A river runs through the old town. " * (max_tokens // 4 + 8)}


def fewer(given: dict[str, str], parameters: int) -> dict[str, str]:
    """Those of the texts that a model of so many parameters reads within WORK, but two at least."""
    room = WORK / parameters
    kept: list[str] = []
    for kind in dict.fromkeys((*FIRST, *given)):
        if len(given[kind]) <= room or len(kept) < 2:
            kept.append(kind)
            room -= len(given[kind])
    return {kind: text for kind, text in given.items() if kind in kept}


def runs(prompts: list[str], modes: tuple[str, ...], kinds: list[str], max_tokens: int) -> list[Run]:
    """Every prompt in every mode, for texts of these kinds. LONG, which takes longest, is read with the first prompt only,
    and never by a model of more than MOST_TOKENS: eager attention would take gigabytes. Its ids are still compared.
    """
    short = [index for index, kind in enumerate(kinds) if kind != LONG]
    found = []
    for number, prompt in enumerate(prompts):
        long = [kinds.index(LONG)] if LONG in kinds and number == 0 and max_tokens <= MOST_TOKENS else []
        alone = [[index] for index in short + long]
        # A short text beside the longest is nearly all padding.
        together = [short, [0, *long, 2]] if long else [short]
        found += [Run(prompt, mode, alone if mode == "alone" else together) for mode in modes]
    return found
