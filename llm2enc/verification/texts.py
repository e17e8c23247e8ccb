"""What is read to compare two programs: texts of many kinds, alone and in batches of one shape."""

from dataclasses import dataclass

TEXTS = {
    "one letter": "a",
    "one word": "river",
    "a plain sentence": "The river runs through the old town.",
    "a question": "Where does the river run, and who built the bridge?",
    "a paragraph": (
        "Trade in salt made the town rich. Every spring boats brought wool, wine and letters up the river; the mill "
        "turned slowly under tall trees, and the market by the bridge stayed open until the lamps were lit. Nobody "
        "remembers who laid the first stone, but everybody knows the name of the man who paid for it."
    ),
    "German": "Ein etwas längerer Satz mit Umlauten: Die Brücke über den Fluss ist älter als die Straße.",
    "French": "Le pont traverse la rivière, à côté du vieux marché où l’on vendait du sel.",
    "Vietnamese": "Con sông chảy qua khu phố cổ vào mùa xuân.",
    "Russian": "Река течёт через старый город мимо мельницы.",
    "Greek": "Το ποτάμι περνά μέσα από την παλιά πόλη.",
    "Arabic": "يمر النهر عبر المدينة القديمة.",
    "Hebrew": "הנהר זורם דרך העיר העתיקה.",
    "Hindi": "नदी पुराने शहर से होकर बहती है।",
    "Thai": "แม่น้ำไหลผ่านเมืองเก่า",
    "Chinese": "河流穿过古城，桥是用石头建的。",
    "Japanese": "川は古い町を流れている。カタカナ、漢字、ひらがな。",
    "Korean": "강은 오래된 마을을 지나 흐른다.",
    "emoji": "boats 🚣‍♀️ on the river 🌊🦜 at night 👨‍👩‍👧‍👦",
    "code": "def area(radius: float) -> float:\n    return 3.14 * radius ** 2\n",
    "JSON": '{"name": "bridge", "built": 1342, "arches": [1, 2, 3], "stone": true}',
    "lines": "first line\n\nsecond line\tafter a tab\r\nthird line",
    "numbers and signs": "3,141.59 % -- (a+b)^2 = a²+2ab+b² <https://example.org/?q=1&r=2>",
    "space at the ends": "  the river  ",
    "a final newline": "the river\n",
}
LONG = "a text beyond the limit"
MOST_TOKENS = 2048


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
    return TEXTS | {LONG: "A river runs through the old town. " * (max_tokens // 4 + 8)}


def runs(prompts: list[str], modes: tuple[str, ...], count: int, max_tokens: int) -> list[Run]:
    """Every prompt in every mode, for `count` texts. The last of them, which takes longest, is read with the first prompt
    only, and never by a model of more than MOST_TOKENS: eager attention would take gigabytes. Its ids are still compared.
    """
    *short, long = range(count)
    found = []
    for number, prompt in enumerate(prompts):
        reads_long = number == 0 and max_tokens <= MOST_TOKENS
        alone = [[index] for index in ([*short, long] if reads_long else short)]
        # A short text beside the longest is nearly all padding.
        together = [short, [0, long, 2]] if reads_long else [short]
        found += [Run(prompt, mode, alone if mode == "alone" else together) for mode in modes]
    return found
