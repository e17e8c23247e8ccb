"""What is read with a text in training: ids of rows, in-context examples, titles; and encoding reads the same."""

from collections import Counter

import pytest
import torch

from llm2enc.data import Pair, RowBatch
from llm2enc.encoding import Encoder
from llm2enc.recipe import ContrastiveStage, ExampleSpec, FilesData, InputSpec, Part
from llm2enc.text import InputFormat, Passage
from llm2enc.training.objectives import contrastive
from tests.support.builders import make_encoder, make_tokenizer

TOKENIZER = make_tokenizer()
DATA = (FilesData(kind="files", path="unused.txt"),)
BOS, TEXT = Part(special="bos"), Part(slot="text", pool=True)
ICL = InputSpec(
    query=(
        BOS,
        Part(slot="examples"),
        Part(slot="instruction"),
        Part(literal=": "),
        TEXT,
        Part(literal=" = "),
    ),
    document=(BOS, Part(literal="title: "), Part(slot="title", empty="none"), Part(literal=" | "), TEXT),
    example=ExampleSpec(end=" ; ", max_tokens=16, reserve=24),
    max_tokens=128,
)
LABELS = [
    Pair("I lost my card", "lost card", ("top up",), "Classify", ""),
    Pair("where is my card", "lost card", ("exchange rate",), "Classify", ""),
    Pair("add money", "top up", ("lost card",), "Classify", ""),
]


def collated(pairs: list[Pair], input: InputSpec, step: int = 0, unique_ids: bool = False, seed: int = 3, **fields):
    common = {"data": DATA, "steps": 1, "batch_size": len(pairs), "lr": 1e-3, "rng_shards": 16}
    stage = ContrastiveStage(objective="contrastive", **(common | fields))
    rows = RowBatch(step, pairs, "here", True, unique_ids)
    return contrastive.collate(rows, stage, InputFormat(input, TOKENIZER), seed)


def read(batch) -> list[str]:
    """What the model reads of every text."""
    return [TOKENIZER.decode(ids) for ids in batch.tokens.ids.split(batch.tokens.lengths.tolist())]


# --------------------------------------------------------------------------------------------------------- ids of rows

PLAIN = InputSpec(query=(BOS, TEXT), document=(BOS, TEXT), max_tokens=24)


def test_the_texts_of_a_row_end_in_a_number_that_no_other_row_of_the_run_has() -> None:
    assert read(collated(LABELS, PLAIN, step=4, unique_ids=True)) == [
        *("<s>I lost my card 12", "<s>lost card 12", "<s>top up 12"),
        *("<s>where is my card 13", "<s>lost card 13", "<s>exchange rate 13"),
        *("<s>add money 14", "<s>top up 14", "<s>lost card 14"),
    ]
    plain = read(collated(LABELS, PLAIN, step=4))
    assert plain[:3] == ["<s>I lost my card", "<s>lost card", "<s>top up"]
    encoder = make_encoder(PLAIN)
    assert TOKENIZER.decode(encoder.pack(["lost card"]).ids) == "<s>lost card"  # only training tells rows apart


def test_equal_labels_of_other_rows_are_negatives_with_ids_and_masked_without() -> None:
    masks = {"loss": {"masks": {"duplicates": True}}}
    # Columns: lost, top | lost, exchange | top, lost. Without ids a label's every copy is masked.
    same = collated(LABELS, PLAIN, **masks).layout.excluded.int().tolist()
    assert same == [[1, 0, 1, 0, 0, 1], [1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 0]]
    own = collated(LABELS, PLAIN, unique_ids=True, **masks)
    assert own.layout.excluded.int().tolist() == [[1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert own.duplicates == 0 and collated(LABELS, PLAIN).duplicates == 1
    assert collated(LABELS, PLAIN, unique_ids=True).duplicates == 0


def test_an_id_survives_where_its_text_is_cut() -> None:
    long = [Pair("river " * 100, "river " * 100, (), "", ""), *LABELS[1:]]
    batch = collated(long, PLAIN, step=5, unique_ids=True)
    assert all(
        text.endswith(f" {number}") for text, number in zip(read(batch), [15] * 2 + [16] * 3 + [17] * 3, strict=True)
    )
    assert batch.tokens.truncated.tolist() == [True, True, *[False] * 6]
    assert batch.tokens.lengths.max() == 24


# ------------------------------------------------------------------------------------------------------------ examples

ROWS = [Pair(f"q{row}", f"p{row}", (), "Find", "") for row in range(6)]


def shown(text: str) -> list[int]:
    """The rows that stand before a query as examples."""
    *examples, query = text.removeprefix("<s>").split(" ; ")
    assert query.startswith("Find: q") and query.endswith(" = ")
    for example in examples:
        row = int(example[-1])
        assert example == f"Find: q{row} = p{row}"
    return [int(example[-1]) for example in examples]


def test_examples_are_other_rows_their_number_uniform_and_every_draw_is_of_seed_step_and_row() -> None:
    counts, seen = Counter(), Counter()
    for step in range(60):
        texts = read(collated(ROWS, ICL, step, in_context_examples=3))
        assert texts[1::2] == [f"<s>title: none | p{row}" for row in range(6)]
        for row, text in enumerate(texts[::2]):
            found = shown(text)
            assert row not in found and len(set(found)) == len(found)
            counts[len(found)] += 1
            seen.update((row, other) for other in found)
    assert all(70 <= counts[k] <= 110 for k in range(4))  # 360 draws: 90 each, give or take 8
    assert len(seen) == 30 and 6 <= min(seen.values()) <= max(seen.values()) <= 30  # 540: 18 each, give or take 4
    again = [read(collated(ROWS, ICL, 7, in_context_examples=3, seed=seed)) for seed in (3, 3, 4)]
    assert again[0] == again[1] != again[2]
    fewer = read(collated(ROWS[:2], ICL, 7, in_context_examples=3))
    assert set(map(len, map(shown, fewer[::2]))) <= {0, 1}


def test_processes_read_the_parts_of_what_one_process_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = collated(ROWS, ICL, 5, in_context_examples=3, unique_ids=True)
    parts = []
    for rank in range(3):
        monkeypatch.setattr("llm2enc.distributed.collectives.world_size", lambda: 3)
        monkeypatch.setattr("llm2enc.distributed.collectives.rank", lambda rank=rank: rank)
        parts.append(collated(ROWS, ICL, 5, in_context_examples=3, unique_ids=True))
    assert [len(part.tokens) for part in parts] == [4, 4, 4]
    for name in ("ids", "lengths", "pool"):
        assert torch.equal(torch.cat([getattr(part.tokens, name) for part in parts]), getattr(whole.tokens, name))


def test_encoding_with_the_same_examples_reads_what_training_read() -> None:
    encoder: Encoder = make_encoder(ICL)
    lengths = set()
    for step in range(8):
        batch = collated(ROWS[:2], ICL, step, in_context_examples=1)
        rows = batch.tokens.ids.split(batch.tokens.lengths.tolist())
        given = [("q1", "p1")] if shown(read(batch)[0]) else []
        packed = encoder.pack(["q0"], instruction="Find", examples=given)
        assert packed.ids.tolist() == rows[0].tolist()
        assert torch.equal(packed.pool, batch.tokens.pool[: len(packed.ids)])
        lengths.add(len(packed.ids))
    assert len(lengths) == 2
    with_one, without = (encoder.encode("q0", instruction="Find", examples=some) for some in ([("q1", "p1")], []))
    assert abs(with_one - without).max() > 1e-3
    keys = {encoder.cache_key(instruction="Find", examples=some) for some in ([("q1", "p1")], [("q1", "p2")], [])}
    assert len(keys) == 3
    with pytest.raises(ValueError, match=r"no \{slot: examples\}"):
        encoder.encode("a document", examples=[("q1", "p1")])


def test_examples_beyond_the_limit_are_left_out_in_training_and_documents_know_their_titles() -> None:
    rows = [Pair(f"q{row}", Passage("Town", f"p{row}"), (), "Find", "") for row in range(6)]
    tight = ICL.model_copy(update={"max_tokens": 52})  # 28 for examples
    most, free = (
        max(
            len(shown_titled(text))
            for step in range(4)
            for text in read(collated(rows, input, step, in_context_examples=5))[::2]
        )
        for input in (tight, ICL)
    )
    assert (most, free) == (1, 5)
    assert read(collated(rows, ICL, 1))[1] == "<s>title: Town | p0"


def shown_titled(text: str) -> list[str]:
    *examples, _ = text.removeprefix("<s>").split(" ; ")
    assert all(" = Town p" in example for example in examples)  # an example holds the document as one text
    return examples
