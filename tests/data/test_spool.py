"""Texts on disk, read by their numbers."""

import numpy as np

from llm2enc.data import Spool


def test_texts_come_back_whatever_the_order_of_adding_and_reading() -> None:
    spool, texts = Spool(), ["a", "", "line\nbreak", "\u00e4\u2028", "end"]
    for number, text in enumerate(texts):
        spool.add(text)
        assert len(spool) == number + 1
        assert spool.take(np.array([number, 0])) == [text, "a"]
    assert spool.take(np.array([4, 2, 2, 1, 3])) == ["end", texts[2], texts[2], "", texts[3]]
    assert spool.take(np.zeros(0, dtype=np.int64)) == []
