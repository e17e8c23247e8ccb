"""Texts of many kinds, which bring out what two programs or two tokenizers do differently."""

PROBES = {
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
