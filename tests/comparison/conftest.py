"""A causal language model on disk, and texts of a user's own."""

import json
from pathlib import Path

import pytest

from tests.support.builders import make_model, make_tokenizer, sentences


def save_model(folder: Path, model=None) -> Path:
    """A causal language model as the hub would give it: its tokenizer puts <s> before a text and </s> behind it."""
    from tokenizers.processors import TemplateProcessing

    (model or make_model()).save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("causal"), make_model(max_position_embeddings=1024))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two columns, nothing else: what a user has."""
    rows = [{"q": text, "a": " ".join(reversed(text.split()))} for text in sentences(20)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
