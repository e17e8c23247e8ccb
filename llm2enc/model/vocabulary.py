"""Tokens beyond the embedding: ids that a model has no row for, found before anything is read with them."""

import json
import logging
from typing import TYPE_CHECKING, Any

from llm2enc.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

_ROLES = ("bos_token", "eos_token", "unk_token", "cls_token", "sep_token")  # what templates and unknown characters need


def check_config(config: "PretrainedConfig", name: str) -> None:
    """InputError if config.json names an EOS or pad token that its own vocabulary does not have."""
    for key in ("eos_token_id", "pad_token_id"):
        said = getattr(config, key, None)
        for token in said if isinstance(said, list) else [said]:
            if isinstance(token, int) and token >= config.vocab_size:
                raise InputError(
                    f"config.json of {name} says {key} {token}, but vocab_size {config.vocab_size}: ids go from 0 to "
                    f"{config.vocab_size - 1}. Correct the one that is wrong"
                )


def with_rows(tokenizer: "PreTrainedTokenizerBase", config: "PretrainedConfig", name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer without special tokens that the embedding has no row for; text that spells one out is plain text.

    Many models come with such a token for padding, or for images. Nothing else may be beyond the embedding.

    raises  InputError for a token of the vocabulary, one that was added for texts, or one that has a role in templates
    """
    rows = getattr(config, "vocab_size", None)
    added = tokenizer.added_tokens_decoder
    # A vocabulary of a quarter of a million tokens takes a tenth of a second to list, so its sizes are asked first.
    if rows is None or max(tokenizer.vocab_size, 1 + max(added, default=0)) <= rows:
        return tokenizer
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if not beyond:
        return tokenizer
    roles = {getattr(tokenizer, role, None): role for role in _ROLES}
    spare = {str(token) for token in added.values() if token.special} - roles.keys()
    wrong = [
        f"{token} ({number}{roles.get(token, '') and ', ' + roles[token]})"
        for number, token in beyond
        if token not in spare
    ]
    if wrong:
        raise InputError(
            f"the tokenizer of {name} has {len(wrong)} tokens for which the embedding has no row (ids from {rows} on): "
            f"{', '.join(wrong[:3])}. Give the model rows for them, model.resize_token_embeddings(len(tokenizer)) and "
            "model.save_pretrained(DIR), or the tokenizer that the model was trained with"
        )
    names = [token for _, token in beyond]
    _log.info("%s: no row in the embedding for %s, which is read as plain text", name, ", ".join(names))
    return _without(tokenizer, set(names))


def _without(tokenizer: "PreTrainedTokenizerBase", names: set[str]) -> "PreTrainedTokenizerBase":
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    whole: Any = tokenizer.backend_tokenizer
    backend = json.loads(whole.to_str())
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["content"] not in names]
    roles = {role: token for role, token in tokenizer.special_tokens_map.items() if token not in names}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        model_max_length=tokenizer.model_max_length,
        **({"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}),
        **roles,
    )
