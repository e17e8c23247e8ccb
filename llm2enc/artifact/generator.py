"""The causal language model beside the encoder: what a model that was trained on dialogues writes with.

    model.safetensors, config.json, generation_config.json     with the language-model head, in the causal direction
    tokenizer.json, chat_template.jinja, ...                   the base model's tokenizer, and the marks of the training

A directory of its own, because config.json has one direction: every engine would read the encoder by it, or generate by it.
transformers' AutoModelForCausalLM opens it, and whatever else reads causal language models.
"""

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

from llm2enc.artifact.files import write_json
from llm2enc.storage import atomic_directory
from llm2enc.text import surrounding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llm2enc.model import Backbone
    from llm2enc.recipe import DialogueFormat


def write_generator(
    backbone: "Backbone", tokenizer: "PreTrainedTokenizerBase", folder: Path, form: "DialogueFormat"
) -> None:
    """Write a backbone with its language-model head as a causal language model. One process calls it.

    form  how dialogues were read in training: the tokenizer's chat template writes the same
    """
    config, spoken = backbone.model.config, copy.copy(tokenizer)
    former = {name: getattr(config, name) for name in ("architectures", "dtype")}
    spoken.chat_template = chat_template(form, surrounding(tokenizer)[0])
    with atomic_directory(folder) as partial:
        backbone.model.save_pretrained(partial)
        for name, value in former.items():  # saving sets both on the live model
            setattr(config, name, value)
        written = json.loads((partial / "config.json").read_text(encoding="utf-8"))
        for level in (written, written.get("text_config", {})):  # as it was before `Backbone` made it an encoder
            level.pop("is_causal", None)
            level["use_cache"] = True
        write_json(partial / "config.json", written)
        spoken.save_pretrained(partial)


def chat_template(form: "DialogueFormat", begins: bool) -> str:
    """The format of dialogues as a template in Jinja (transformers, "Chat templates").

    begins  whether BOS stands before a dialogue
    """
    user, assistant, between = (json.dumps(mark) for mark in (form.user, form.assistant, form.between))
    return (
        "{{- bos_token }}" * begins
        + "{%- set start = 1 if messages[0].role == 'system' else 0 %}"
        + "{%- for message in messages[start:] %}"
        + "{%- if message.role == 'user' %}"
        + f"{{{{- ({between} if not loop.first else '') ~ {user} }}}}"
        + "{%- if loop.first and start %}{{- messages[0].content ~ '\\n\\n' }}{%- endif %}"
        + "{{- message.content }}"
        + f"{{%- else %}}{{{{- {assistant} ~ message.content ~ eos_token }}}}{{%- endif %}}"
        + "{%- endfor %}"
        + f"{{%- if add_generation_prompt %}}{{{{- {assistant} }}}}{{%- endif %}}"
    )
