"""The card: its table of engines can be put in, put in again, and taken out."""

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from llm2enc.artifact import with_engines
from llm2enc.artifact.card import ENGINES_BEGIN, ENGINES_END, engines_section
from llm2enc.recipe import InputSpec, Part
from tests.artifact.test_directory import ECHO, facts_of, make_encoder

ROWS = [
    {
        "engine": "sentence-transformers 6.2",
        "cosine": 0.9999999,
        "difference": 1.2e-7,
        "verdict": "agrees",
        "remedy": "",
    },
    {"engine": "TEI", "cosine": None, "difference": None, "verdict": "refuses", "remedy": "use a | b\nor c"},
]
CARD = "---\ntags: []\n---\n\n# Name\n\n## Use\n\nthis\n\n## Limits\n\n- one\n"


def test_a_row_is_a_line_of_the_table() -> None:
    lines = engines_section(ROWS).splitlines()
    assert lines[0] == ENGINES_BEGIN and lines[-1] == ENGINES_END
    assert "| sentence-transformers 6.2 | agrees | 1.000000 | 1.2e-07 |  |" in lines
    assert r"| TEI | refuses |  |  | use a \| b or c |" in lines


@pytest.mark.parametrize("card", [CARD, "", "# Name\n\nno limits"])
def test_the_table_is_put_in_once_and_replaced_after_that(card: str) -> None:
    first = with_engines(card, ROWS)
    assert with_engines(first, ROWS) == first and first.count(ENGINES_BEGIN) == first.count("## Engines") == 1
    other = with_engines(first, ROWS[:1])
    assert other == with_engines(card, ROWS[:1]) and "TEI" not in other
    assert with_engines(first, []).strip() == card.strip()


def test_the_table_stands_before_the_limits_and_the_rest_stays() -> None:
    before, after = with_engines(CARD, ROWS).split(engines_section(ROWS))
    assert before == CARD.partition("## Limits")[0] and after == "\n\n## Limits\n\n- one\n"


def test_a_hand_written_part_behind_the_table_survives() -> None:
    mine = with_engines(CARD, ROWS) + "\n## Mine\n\nwords\n"
    assert with_engines(mine, ROWS[:1]).endswith("- one\n\n## Mine\n\nwords\n")


def test_the_card_of_a_native_directory_says_how_to_open_it(tmp_path: Path) -> None:
    make_encoder().save(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "sentence-transformers gives the same vectors, without code of llm2enc:" in text
    assert "vLLM, text-embeddings-inference and llama.cpp are in the README of llm2enc" in text


@pytest.mark.parametrize("normalize", [True, False])
def test_the_card_says_how_to_cut_vectors_in_sentence_transformers(normalize: bool, tmp_path: Path) -> None:
    """It cuts behind its Normalize module, and cuts 16 of 32 numbers to a length of less than 1."""
    encoder, texts = make_encoder(), ["the old bridge", "market day", "a river runs through the town"]
    encoder.normalize = normalize
    encoder.save(tmp_path / "out")
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    said = "truncate_dim=k, normalize_embeddings=True" in (tmp_path / "out" / "README.md").read_text()
    assert said == normalize
    found = model.encode(texts, truncate_dim=16, normalize_embeddings=normalize)
    np.testing.assert_allclose(found, encoder.encode(texts, truncate_dim=16), atol=1e-6)
    if normalize:
        assert (np.linalg.norm(model.encode(texts, truncate_dim=16), axis=1) < 0.95).all()


def test_the_card_of_echo_mean_names_what_it_needs(tmp_path: Path) -> None:
    query = (Part(special="bos"), Part(slot="instruction"), *ECHO[1:])
    spec = InputSpec(query=query, document=ECHO, max_tokens=80, tokenize="pieces", prompts={"query": "Find"})
    make_encoder(spec=spec, bidirectional=False).save(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert not facts_of(tmp_path / "out")["native"]
    assert "use llm2enc.Encoder.load for this directory" in text and "pools both copies" in text
    assert "It lacks the prompts query." in text
