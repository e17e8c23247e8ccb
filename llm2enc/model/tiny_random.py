"""Tiny random models of any causal architecture: the same classes and layer types, every size cut down.

A family that nobody has studied is judged by its miniature: what a layer may read does not depend on its width. Sizes are
recognised by their names in the configuration, which transformers keeps alike across families; what is not recognised
stays, and the model is then larger, or cannot be built and says so.
"""

from typing import TYPE_CHECKING, Any

from llm2enc.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WIDTH, HEADS, HEAD_WIDTH, VOCABULARY, WINDOW = 32, 4, 8, 128, 3

# Sizes by name. A list holds one size per layer; None and False mean that the part does not exist, and stay.
SIZES: dict[str, int] = {
    **dict.fromkeys(
        "hidden_size n_embd d_model embedding_dim attention_hidden_size lru_width word_embed_proj_dim".split(), WIDTH
    ),
    **dict.fromkeys(
        "num_attention_heads n_head n_heads num_heads attention_heads num_attention_heads_per_layer "
        "swa_num_attention_heads".split(),
        HEADS,
    ),
    **dict.fromkeys(
        "head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim kv_channels dim_head swa_head_dim global_head_dim "
        "linear_key_head_dim linear_value_head_dim linear_head_dim mamba_head_dim mamba_headdim mamba_d_head "
        "attention_head_dim index_head_dim hidden_size_per_layer_input d_rel q_head_dim swa_v_head_dim".split(),
        HEAD_WIDTH,
    ),
    **dict.fromkeys(
        "intermediate_size ffn_dim n_inner ffn_hidden_size dff dim_ff moe_intermediate_size dense_intermediate_size "
        "shared_expert_intermediate_size shared_experts_intermediate_size shared_intermediate_size "
        "expert_ffn_hidden_size moe_shared_expert_intermediate_size intermediate_size_mlp "
        "intermediate_size_swa".split(),
        2 * WIDTH,
    ),
    **dict.fromkeys("kv_lora_rank q_lora_rank o_lora_rank laurel_rank router_hidden_size".split(), 16),
    **dict.fromkeys("vocab_size vocab_size_per_layer_input unpadded_vocab_size".split(), VOCABULARY),
    **dict.fromkeys(
        "num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num index_n_heads "
        "linear_num_key_heads linear_num_value_heads linear_num_heads".split(),
        4,
    ),
    **dict.fromkeys(
        "num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k n_group num_expert_group o_groups".split(),
        2,
    ),
    **dict.fromkeys("topk_group num_shared_experts n_shared_experts moe_num_shared_experts".split(), 1),
    **dict.fromkeys(
        "sliding_window window_size sliding_window_size attention_window_size local_attention".split(), WINDOW
    ),
    **dict.fromkeys(
        "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length".split(), 64
    ),
    "qk_head_dim": 2 * HEAD_WIDTH,
    "rotary_dim": HEAD_WIDTH // 2,
    "mamba_d_ssm": 2 * WIDTH,
    **dict.fromkeys("mamba_n_heads mamba_num_heads n_mamba_heads".split(), 8),
    **dict.fromkeys("mamba_d_state state_size ssm_state_size mamba_dt_rank time_step_rank".split(), 8),
    **dict.fromkeys("mamba_n_groups mamba_ngroups n_groups".split(), 1),
    **dict.fromkeys("mamba_chunk_size chunk_size".split(), 16),
}
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")
PERIODS = ("_period", "_interval", "_pattern", "_every_n_layers")  # which layer is of which kind, as a rule
QUERY_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "swa_num_key_value_heads", "num_query_groups")


def miniature(config: "PretrainedConfig", seed: int = 0, **overrides: Any) -> "PreTrainedModel":
    """A random causal LM of the configuration's class, small in every size, in evaluation mode.

    overrides  fields that are set last
    raises     ValueError, with the reason, if no attempt gives a model
    """
    import torch
    from transformers import AutoModelForCausalLM

    faults = []
    for rotary in (True, False):  # a rotary scaling with one factor per channel does not survive a new head width
        try:
            small = type(config)(**{**shrunk(config.to_dict(), rotary), **overrides})
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval()
                _enliven(model)
                return model
        except Exception as error:  # whatever a stranger's constructor raises is the reason that is reported
            faults.append(f"{type(error).__name__}: {error}"[:200])
    raise InputError(f"no small model of {config.model_type} could be built ({'; '.join(dict.fromkeys(faults))})")


def shrunk(fields: dict[str, Any], keep_rotary: bool = True) -> dict[str, Any]:
    """The fields of a small configuration with the same kinds of layers."""
    depth = next((fields[name] for name in DEPTHS if isinstance(fields.get(name), int)), 0)
    heads = next((fields[name] for name in QUERY_HEADS if isinstance(fields.get(name), int)), 0)
    layers = _kinds(fields, depth)
    small = {}
    for name, value in fields.items():
        if name in DEPTHS and isinstance(value, int):
            value = max(1, len(layers))
        elif name in KEY_VALUE_HEADS:
            value = HEADS if value in (None, heads) else 1 if value == 1 else 2
        elif name.endswith(PERIODS) and isinstance(value, int) and value > 2:
            value = 2
        elif name.endswith("_offset") and isinstance(value, int):
            value = min(value, 1)
        elif name == "head_dim" and value is None:
            value = HEAD_WIDTH
        elif name == "per_layer_config" and isinstance(value, dict):
            value = {str(new): shrunk(value.get(f"{old:02d}", {})) for new, old in enumerate(layers)}
            value = {layer: changes for layer, changes in value.items() if changes}
        elif isinstance(value, list) and len(value) == depth and depth > 1:
            value = [value[layer] for layer in layers]
        elif isinstance(value, dict) and (name.endswith("_config") and name != "quantization_config"):
            value = shrunk(value, keep_rotary)
        if isinstance(value, list) and name in SIZES:
            value = [min(SIZES[name], size) for size in value]
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool):
            value = min(SIZES[name], value)
        elif name.endswith("_token_id") and isinstance(value, int | list):
            value = TOKENS.get(name, 0)
        small[name] = value
    small.pop("quantization_config", None)
    if not keep_rotary and isinstance(fields.get("rope_parameters"), dict):
        small["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    return small


def _enliven(model: "PreTrainedModel") -> None:
    """Weights of a size at which every part matters: many families start a projection, gate or sink at zero."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter.size(-1) ** -0.5)
            else:
                parameter.add_(noise * 0.1)


def _kinds(fields: dict[str, Any], depth: int) -> list[int]:
    """Layer numbers among which every kind of layer occurs, in order; at least two where there are two."""
    lists = [value for value in fields.values() if isinstance(value, list) and len(value) == depth]
    plain = [value for value in lists if all(isinstance(item, str) for item in value)]
    seen: dict[tuple, int] = {}
    for layer in range(depth):
        seen.setdefault(tuple(value[layer] for value in plain), layer)
    chosen = set(seen.values()) | set(range(min(2, depth)))
    return sorted(chosen)[:8]
