"""What an engine's answer comes to beside ours, on numbers written by hand."""

import numpy as np

from llm2enc.verification.diagnosis import Comparison, Reference, compare, remedy, where
from llm2enc.verification.probe_texts import Run
from llm2enc.verification.subprocesses import Answer


def test_vectors_that_are_no_numbers_are_not_taken_for_texts_left_out() -> None:
    """As a graph in float16 gives them whose states are too large."""
    ones = np.eye(2, dtype=np.float32)
    reference = Reference(None, {"short": "a", "long": "b"}, {"query": ones}, {"query": [[1], [2]]})
    planned = [Run("query", "alone", [[0], [1]])]

    def asked(second: float, ids: list[int] | None) -> Comparison:
        vectors = np.stack([ones[0], np.full(2, second, np.float32)])
        return compare(reference, Answer(ids={"query": [[1], ids]}, vectors={0: vectors}), planned, "float16")

    left_out = asked(np.nan, None)
    assert left_out.agrees and left_out.left_out == ["long"] and left_out.cosine == 1
    for number in (np.nan, np.inf, 0):
        found = asked(number, [2])
        assert not found.agrees and found.broken == ["long"] and found.cosine == 1
        assert "float32" in remedy(found, Answer(), planned, "onnx", "onnx/model_fp16.onnx")
        assert "NaN" in where(found, planned, Answer())
    nothing = compare(reference, Answer(ids={"query": [None, None]}, vectors={0: ones}), planned, "float32")
    assert not nothing.agrees and nothing.cosine is None
