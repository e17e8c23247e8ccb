"""Files and directories that are whole or absent: atomic replacement, locks, and secrets kept out of what is written."""

from llm2enc.storage import secrets
from llm2enc.storage.atomic import (
    alive,
    check_name,
    check_room,
    leftovers,
    naming,
    part,
    read_unpacked,
    refusal,
    replace_bytes,
    replace_text,
    scratch,
    sweep,
    sync,
    sync_one,
)
from llm2enc.storage.directory import atomic_directory, recover
from llm2enc.storage.lock import held, owner
from llm2enc.storage.secrets import found, redacted

__all__ = [
    "alive",
    "atomic_directory",
    "check_name",
    "check_room",
    "found",
    "held",
    "leftovers",
    "naming",
    "owner",
    "part",
    "read_unpacked",
    "recover",
    "redacted",
    "refusal",
    "replace_bytes",
    "replace_text",
    "scratch",
    "secrets",
    "sweep",
    "sync",
    "sync_one",
]
