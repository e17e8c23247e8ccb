"""How the packaged model was made: tokenizer, configuration, and the clm stage from scratch.

    python -m tools.build_pocket --data FOLDER -o runs/pocket-clm [--set stages.clm.steps=100]

FOLDER holds the open prose that the weights may carry: wiki, wikinews, books and squad_contexts as `*.train.txt.gz`, one
paragraph per line, and `wiki.valid.txt.gz`. Run again after an interruption, it goes on where it was.
"""

import argparse
import gzip
import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from llm2enc.encoding import Encoder
from llm2enc.model import evaluating, load_backbone, load_tokenizer
from llm2enc.recipe import Recipe, load_recipe
from llm2enc.text import InputFormat
from llm2enc.training import OBJECTIVES, train

SOURCES = {"wiki": 1.0, "wikinews": 0.5, "books": 0.5, "squad_contexts": 1.0}  # share of each source per epoch
VOCABULARY = 10240
# Seven million parameters, sixteen-bit weights below 16 MB. Wide and shallow: the vector is what users get, and a
# training step on two cores has to stay cheap. Every size is a multiple of 32, which GGUF's quantised blocks need.
SHAPE = {
    "hidden_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "intermediate_size": 832,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    seed_model = arguments.out / "0-untrained"
    if not (seed_model / "config.json").is_file():
        write_untrained(arguments.data, seed_model)
    recipe = load_recipe(recipe_data(seed_model, arguments.data), arguments.overrides)
    input_format = InputFormat(recipe.input, load_tokenizer(recipe.model))
    encoder = Encoder(load_backbone(recipe.model, recipe.seed), input_format, recipe.pooling)
    stage = recipe.stages[0]
    train(encoder, stage, arguments.out / "1-clm", recipe.seed)
    write_packaged(encoder, arguments.out / "model", recipe, arguments.data)


def recipe_data(model: Path, data: Path) -> dict:
    """The pre-training recipe."""
    files = [
        {"kind": "files", "path": str(data / f"{name}.train.txt.gz"), "weight": weight, "name": name}
        for name, weight in SOURCES.items()
    ]
    whole = [{"special": "bos"}, {"slot": "text", "pool": True}]
    return {
        "name": "pocket-clm",
        "model": {"name": str(model), "attention": "causal", "dtype": "float32", "weights": "random"},
        "input": {"query": whole, "document": whole},
        "pooling": "mean",
        "stages": [
            {
                "objective": "clm", "data": files, "trainable": "full", "precision": "bfloat16",
                "block_tokens": 256, "batch_size": 16, "steps": 10_000, "lr": 2e-3, "schedule": "cosine",
                "warmup_steps": 200, "weight_decay": 0.1, "adam_betas": [0.9, 0.95],
                "micro_batch_tokens": 4096, "logit_rows": 1024, "save_every": 100,
            }
        ],
    }  # fmt: skip


def write_untrained(data: Path, folder: Path) -> None:
    """Tokenizer and config.json."""
    from transformers import LlamaConfig

    tokenizer = train_tokenizer(paragraphs(data))
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        **SHAPE,
        vocab_size=VOCABULARY,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)


def paragraphs(data: Path, each: int = 40_000) -> Iterator[str]:
    """The first paragraphs of every source."""
    for name in SOURCES:
        with gzip.open(data / f"{name}.train.txt.gz", "rt", encoding="utf-8") as file:
            yield from islice((line.rstrip("\n") for line in file), each)


def train_tokenizer(texts: Iterator[str]):
    """Byte-level BPE in GPT-2's form, which every engine knows; `<s>` opens a text, as Llama's tokenizer does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=2048
    )


def write_packaged(encoder: Encoder, folder: Path, recipe: Recipe, data: Path) -> None:
    """The model as it goes into the package: bfloat16 weights, tokenizer, and how good it is."""
    shutil.rmtree(folder, ignore_errors=True)
    loss = validation_loss(encoder, recipe, data / "wiki.valid.txt.gz")
    encoder.backbone.model.to(torch.bfloat16).save_pretrained(folder)
    encoder.input_format.tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(settings.read_text()).items() if k not in ("is_local", "local_files_only")}
    settings.write_text(json.dumps(kept, indent=2) + "\n")  # without where it was loaded from
    stage = recipe.stages[0]
    trained_on = stage.steps * stage.batch_size * stage.block_tokens
    numbers = {"validation_loss": loss, "perplexity": float(np.exp(loss)), "training_tokens": trained_on}
    (folder / "training.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(json.dumps(numbers))


def validation_loss(encoder: Encoder, recipe: Recipe, path: Path) -> float:
    """Mean next-token loss in nats per token on held-out Wikipedia, 256-token blocks."""
    data = [{"kind": "files", "path": str(path)}]
    stage = recipe.stages[0].model_copy(update={"data": load_recipe_data(data), "batch_size": 16})
    objective = OBJECTIVES["clm"]
    rows = objective.batches(stage, encoder.input_format, 0, 0)
    total, count = 0.0, 0
    with evaluating(encoder):
        for _ in range(20):
            batch = objective.collate(next(rows), stage, encoder.input_format, 0)
            states = encoder.backbone.hidden(batch.tokens.to(encoder.device), causal=True)
            targets = batch.targets.to(encoder.device)
            wanted = targets != -100
            logits = encoder.backbone.logits(states[wanted]).float()
            total += torch.nn.functional.cross_entropy(logits, targets[wanted], reduction="sum").item()
            count += int(wanted.sum())
    return total / count


def load_recipe_data(data: list[dict]):
    from pydantic import TypeAdapter

    from llm2enc.recipe import DataSpec

    return TypeAdapter(tuple[DataSpec, ...]).validate_json(json.dumps(data))


if __name__ == "__main__":
    main()
