"""The encoder: texts in, vectors out, in memory or to a file."""

from llm2enc.encoding.encoder import Encoder, LoadType
from llm2enc.encoding.models import LoadedModel, find_encoder, open_encoder
from llm2enc.encoding.options import EncodeOptions
from llm2enc.encoding.partial_file import PartialFile
from llm2enc.encoding.quantization import calibrate, layout
from llm2enc.encoding.to_file import encode_file, encoder_facts, machine_facts, text_digest

__all__ = [
    "EncodeOptions",
    "Encoder",
    "LoadType",
    "LoadedModel",
    "PartialFile",
    "calibrate",
    "encode_file",
    "encoder_facts",
    "find_encoder",
    "layout",
    "machine_facts",
    "open_encoder",
    "text_digest",
]
