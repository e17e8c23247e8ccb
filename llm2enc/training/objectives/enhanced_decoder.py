"""RetroMAE's decoder (arXiv 2205.12035, section 3.2): one layer that names each token from a vector and a few others.

    row of token i      query   the vector, at position i
    columns             keys    the vector | the clean text's tokens, at positions 0 | 1 ... L

Legend: R texts, L tokens of the longest, D width, H heads.

As in the original: one fresh layer of attention and a perceptron of four times the width, masks of its own for every row,
the backbone's embeddings and language-model head. Ours, because the backbone is a decoder: normalisation before each part
and behind the last (RMSNorm), rotary positions in place of learnt ones, no biases, no dropout.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64  # width of a head, as BERT's
_BASE = 10_000.0  # of the rotary angles (RoFormer, arXiv 2104.09864)


class EnhancedDecoder(nn.Module):
    """The layer; its weights are those of a seed, on every machine."""

    def __init__(self, width: int, seed: int):
        super().__init__()
        self.heads = max(1, width // HEAD)
        inner = self.heads * HEAD
        self.query_norm, self.key_norm, self.hidden_norm, self.final_norm = (nn.RMSNorm(width, 1e-6) for _ in range(4))
        self.query, self.key, self.value = (nn.utils.skip_init(nn.Linear, width, inner, bias=False) for _ in range(3))
        self.output = nn.utils.skip_init(nn.Linear, inner, width, bias=False)
        self.up = nn.utils.skip_init(nn.Linear, width, 4 * width, bias=False)
        self.down = nn.utils.skip_init(nn.Linear, 4 * width, width, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.query, self.key, self.value, self.output, self.up, self.down):
            weight: Tensor = layer.weight  # pyright: ignore[reportAssignmentType]: skip_init returns what it is given
            nn.init.normal_(weight, std=0.02, generator=None if weight.is_meta else generator)

    def forward(self, vectors: Tensor, embeddings: Tensor, visible: Tensor) -> Tensor:
        """States (R, L, D) from which the head names the tokens.

        vectors     (R, D)
        embeddings  (R, L, D) of the clean tokens; what stands behind a shorter text is never visible
        visible     (R, L, 1 + L) bool, which columns each row sees; the first one always
        """
        length = embeddings.size(1)
        # Of the residual stream, whatever the backbone is stored in.
        dtype: torch.dtype = self.output.weight.dtype  # pyright: ignore[reportAssignmentType]
        stream = vectors[:, None].to(dtype).expand_as(embeddings)
        columns = self.key_norm(torch.cat([stream[:, :1], embeddings.to(dtype)], dim=1))
        asked = _rotated(self._split(self.query(self.query_norm(stream))), 1)
        keys, values = _rotated(self._split(self.key(columns)), 0), self._split(self.value(columns))
        found = F.scaled_dot_product_attention(asked, keys, values, attn_mask=visible[:, None])
        states = stream + self.output(found.transpose(1, 2).reshape(len(vectors), length, -1))
        return self.final_norm(states + self.down(F.gelu(self.up(self.hidden_norm(states)))))

    def _split(self, states: Tensor) -> Tensor:
        """(R, L, H x 64) -> (R, H, L, 64)."""
        return states.unflatten(-1, (self.heads, HEAD)).transpose(1, 2)


def _rotated(states: Tensor, first: int) -> Tensor:
    """Rotary positions `first`, `first` + 1, ... along the next to last dimension, in float32."""
    half = states.size(-1) // 2
    rates = _BASE ** (-torch.arange(half, dtype=torch.float32, device=states.device) / half)
    angles = torch.arange(first, first + states.size(-2), device=states.device)[:, None] * rates
    one, other = states.float().split(half, dim=-1)
    turned = torch.cat([one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()], dim=-1)
    return turned.to(states.dtype)
