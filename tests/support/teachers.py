"""Tiny models of sentence-transformers: what a teacher is."""

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from tests.support.builders import make_tokenizer

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 320,
}


def write_bert(folder: Path, architecture: type = BertModel, seed: int = 0, **config) -> Path:
    """The directory of a tiny BERT with a tokenizer, as transformers writes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        architecture(BertConfig(max_position_embeddings=64, **SHAPE, **config)).save_pretrained(folder)
    make_tokenizer(pad_token="<pad>").save_pretrained(folder)
    return folder


def write_encoder(folder: Path, seed: int = 0) -> Path:
    """The directory of an encoder: mean pooling, prompts, texts of at most 24 tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    parts = [
        modules.Transformer(str(write_bert(folder / "bert", seed=seed))),
        modules.Pooling(SHAPE["hidden_size"], "mean"),
    ]
    model = SentenceTransformer(modules=parts, prompts={"query": "ask: ", "other": "other: "})
    model.max_seq_length = 24
    model.save(str(folder / "model"))
    return folder / "model"


def write_cross_encoder(folder: Path, labels: int = 1) -> Path:
    """The directory of a cross-encoder whose scores differ from pair to pair."""
    write_bert(folder, BertForSequenceClassification, num_labels=labels, initializer_range=0.5)
    return folder
