"""sentence-transformers with the same architecture, weights and texts.

A miniature of the family is saved as our directory and opened by sentence-transformers; then its decoder is replaced by
the large one, which so never touches a disk. Template, pooling and normalising are those of the directory.
"""

from pathlib import Path
from typing import Any

import torch

from llm2enc.recipe import LoraSpec
from tools.gpu import machine, shapes

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Peer:
    """A SentenceTransformer around `model`'s decoder, bidirectional."""

    def __init__(self, folder: Path, values: dict[str, Any], model, device: str, max_tokens: int):
        from sentence_transformers import SentenceTransformer

        small = shapes.write_model(folder / "small", shapes.TINY | {"model_type": values["model_type"]})
        shapes.encoder_of(shapes.random_model(small, "cpu", torch.float32), max_tokens).save(folder / "directory")
        self.encoder = SentenceTransformer(str(folder / "directory"), device=device)
        self.transformer = self.encoder[0]
        self.device = device
        decoder = model.base_model
        decoder.config.use_cache = False
        decoder.config.is_causal = False
        for module in decoder.modules():
            if isinstance(getattr(module, "is_causal", None), bool):
                module.is_causal = False
        name = next(name for name, child in self.transformer.named_children() if isinstance(child, type(decoder)))
        setattr(self.transformer, name, decoder)
        self.decoder = decoder

    def attend_by(self, attention: str) -> bool:
        """Choose `sdpa` or `flash_attention_2`; whether inputs are unpadded then."""
        if attention != "sdpa":
            machine.need_flash()
        self.decoder.set_attn_implementation(attention)
        self.transformer.unpad_inputs = None  # looks again whether it can
        return bool(getattr(self.transformer, "can_flatten_inputs", False))

    def encode(self, texts: list[str], batch_size: int):
        return self.encoder.encode(texts, batch_size=batch_size, show_progress_bar=False)

    def add_lora(self, shape: LoraSpec) -> list[torch.nn.Parameter]:
        """A fresh adapter; returns its weights, which alone train."""
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(r=shape.r, lora_alpha=shape.alpha, lora_dropout=shape.dropout, target_modules=LINEAR)
        inject_adapter_in_model(config, self.decoder)
        self.encoder.train()
        trained = [parameter for name, parameter in self.decoder.named_parameters() if "lora_" in name]
        self.decoder.requires_grad_(False)
        for parameter in trained:  # as in llm2enc: float32, whatever the frozen weights are
            parameter.data = parameter.data.float()
            parameter.requires_grad_()
        return trained

    def loss(self, temperature: float, mini_batch: int):
        """Its loss with gradient caching."""
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

        return CachedMultipleNegativesRankingLoss(self.encoder, scale=1 / temperature, mini_batch_size=mini_batch)

    def features(self, columns: list[list[str]]) -> list[dict[str, torch.Tensor]]:
        """Tokenized columns of a batch, on the device."""
        return [
            {key: value.to(self.device) if isinstance(value, torch.Tensor) else value for key, value in found.items()}
            for found in map(self.encoder.preprocess, columns)
        ]
