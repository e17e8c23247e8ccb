"""A tiny Llama with random weights and a tokenizer trained on the spot: everything in memory, nothing from the network.

The builders are plain functions, so that the processes of tests/distributed can import them too.
"""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm2enc.encoding import Encoder
from llm2enc.model import Backbone
from llm2enc.recipe import FilesData, InputSpec, Part
from llm2enc.text import InputFormat

WORDS = (
    "a river runs through the old town and the bridge over it was built of stone when trade in salt made it rich "
    "every spring boats bring wool wine and letters while the mill turns slowly under tall trees near the market"
).split()

INPUT = InputSpec(
    query=(
        Part(special="bos"),
        Part(slot="instruction"),
        Part(literal=": ", when="instruction"),
        Part(slot="text", pool=True),
    ),
    document=(Part(special="bos"), Part(slot="text", pool=True)),
    max_tokens=64,
    prompts={"search": "Find the answer"},
)


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different texts of 2 to 12 words."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for number in range(count):
        length = int(torch.randint(2, 12, (), generator=generator))
        words = [WORDS[int(i)] for i in torch.randint(len(WORDS), (length,), generator=generator)]
        texts.append(" ".join([*words, str(number)]))
    return texts


def make_tokenizer(vocabulary: int = 320, **special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with <s> and </s>, and `_` as a token of its own."""
    names = {"bos_token": "<s>", "eos_token": "</s>", **special}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(names.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(50, seed=9), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_model(dtype: torch.dtype = torch.float32, **config) -> LlamaForCausalLM:
    """A Llama of 2 layers, 4 heads of 8 and 2 key-value heads; the same weights every time."""
    shape = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,  # at 0.02 attention is so flat that masks and dropout hardly matter
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return LlamaForCausalLM(LlamaConfig(**(shape | config))).to(dtype)


def make_backbone(dtype: torch.dtype = torch.float32, bidirectional: bool = True, **config) -> Backbone:
    return Backbone(make_model(dtype, **config), bidirectional)


def make_encoder(input: InputSpec = INPUT, pooling: str = "mean", **config) -> Encoder:
    """A bidirectional encoder in evaluation mode."""
    return Encoder(make_backbone(**config), InputFormat(input, make_tokenizer()), pooling).eval()


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every gradient, by name; the gradients themselves are removed."""
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    """Equal names, and tensors that differ by `tolerance` x their largest entry at most; bit-equal by default."""
    assert one.keys() == other.keys() and one
    for name, tensor in one.items():
        off = (tensor - other[name]).abs().max().item()
        assert off <= tolerance * other[name].abs().max().item(), f"{name} is off by {off}"


def texts_file(folder: Path, count: int = 24) -> FilesData:
    """A data source of texts."""
    path = folder / "texts.txt"
    path.write_text("\n".join(sentences(count)))
    return FilesData(kind="files", path=str(path), name="texts")


def pairs_file(folder: Path, count: int = 16) -> FilesData:
    """A data source of pairs: the positive repeats words of the query; 0, 1 or 2 hard negatives."""
    queries, others = sentences(count), sentences(2 * count, seed=1)
    rows = [
        {
            "query": query,
            "positive": " ".join(reversed(query.split())),
            "negatives": others[2 * number : 2 * number + number % 3],
        }
        for number, query in enumerate(queries)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FilesData(kind="files", path=str(path), name="pairs", instruction="Find it")


def scores_file(folder: Path, count: int = 24) -> FilesData:
    """A data source of scored pairs: two texts that share the more words the higher the score, a whole number below 3."""
    rows = []
    for number, text in enumerate(sentences(count)):
        words = text.split()
        other = " ".join([*words[: number % 3 * len(words) // 2], f"instead {number}"])
        rows.append({"sentence1": text, "sentence2": other, "score": float(number % 3)})
    path = folder / "scores.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FilesData(kind="files", path=str(path), name="scores")


def run_here(script: Path, here: Path, seconds: float) -> str:
    """What verify does in a process of its own, which takes seconds to import an engine: the very scripts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(script.parent))
        patch.setattr(sys, "argv", [str(script), str(here / "job.json"), str(here / "answer.npz")])
        runpy.run_path(str(script), run_name="__main__")
    return ""
