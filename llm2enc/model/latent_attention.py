"""Latent attention (NV-Embed, arXiv 2405.17428, section 3.1): every token's state attends to an array of trained latents.

This file needs nothing but torch and safetensors. It travels with every directory that has such a block, where
sentence-transformers runs it as a module between transformer and pooling (`trust_remote_code=True`).

    x = attention(queries = norm(states), keys and values = norm(latents)) + states
    y = feed_forward(norm(x)) + x                       feed_forward: to 4 D, gated by GELU (GEGLU), and back

Legend: D width of the states, M latents, H heads, each D wide.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class LatentAttention(nn.Module):
    """The block, and its reading and writing as a module of sentence-transformers."""

    def __init__(self, width: int, latents: int, heads: int):
        super().__init__()
        self.settings = {"width": width, "latents": latents, "heads": heads}
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.norm_states, self.norm_latents, self.norm_attended = (nn.LayerNorm(width) for _ in range(3))
        self.to_queries = nn.Linear(width, heads * width, bias=False)
        self.to_keys_and_values = nn.Linear(width, 2 * heads * width, bias=False)
        self.to_out = nn.Linear(heads * width, width, bias=False)
        self.widen = nn.Linear(width, 8 * width)  # 4 D, and their gates
        self.narrow = nn.Linear(4 * width, width)

    def attend(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., D), each state by itself."""
        heads, width = self.settings["heads"], self.settings["width"]
        flat = states.reshape(-1, width).to(self.latents.dtype)
        known = self.to_keys_and_values(self.norm_latents(self.latents)).view(-1, 2, heads, width)
        keys, values = known.permute(1, 2, 0, 3)  # (H, M, D) each
        queries = self.to_queries(self.norm_states(flat)).view(-1, heads, width).transpose(0, 1)  # (H, T, D)
        found = F.scaled_dot_product_attention(queries[None], keys[None], values[None])[0]
        attended = self.to_out(found.transpose(0, 1).reshape(-1, heads * width)) + flat
        values, gates = self.widen(self.norm_attended(attended)).chunk(2, dim=-1)
        return (self.narrow(values * F.gelu(gates)) + attended).view(states.shape)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """sentence-transformers' features with other token embeddings."""
        return {**features, "token_embeddings": self.attend(features["token_embeddings"])}

    def save(self, folder: str, *args, **kwargs) -> None:
        """Write config.json and model.safetensors into `folder`."""
        (Path(folder) / "config.json").write_text(json.dumps(self.settings, indent=1) + "\n")
        save_file(
            {name: tensor.contiguous() for name, tensor in self.state_dict().items()}, f"{folder}/model.safetensors"
        )

    @staticmethod
    def load(model_name_or_path: str, subfolder: str = "", **kwargs) -> "LatentAttention":
        """The block of a directory, or of a repository on the hub, as sentence-transformers asks for it."""
        place = Path(model_name_or_path) / subfolder
        if not place.is_dir():
            from huggingface_hub import snapshot_download

            known = {name: kwargs.get(name) for name in ("token", "revision", "local_files_only")}
            found = snapshot_download(
                model_name_or_path, cache_dir=kwargs.get("cache_folder"), allow_patterns=f"{subfolder}/*", **known
            )
            place = Path(found) / subfolder
        block = LatentAttention(**json.loads((place / "config.json").read_text()))
        block.load_state_dict(load_file(place / "model.safetensors"))
        return block
