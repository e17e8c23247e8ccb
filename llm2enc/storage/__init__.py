"""Files and directories that are whole or absent: atomic replacement, locks, and secrets kept out of what is written."""

from llm2enc.storage import secrets
from llm2enc.storage.atomic import (
    add_path_to_oserror,
    alive,
    check_name,
    check_room,
    remove_stale,
    replace_bytes,
    replace_text,
    stale_temps,
    storage_error,
    sync,
    sync_one,
    temp_directory,
    temp_path,
)
from llm2enc.storage.cache import default_cache
from llm2enc.storage.digest import sha256_of
from llm2enc.storage.directory import atomic_directory, recover
from llm2enc.storage.lock import file_lock, owner
from llm2enc.storage.partial import Facts, PartialFolder, difference
from llm2enc.storage.secrets import redacted, secrets_in

__all__ = [
    "Facts",
    "PartialFolder",
    "add_path_to_oserror",
    "alive",
    "atomic_directory",
    "check_name",
    "check_room",
    "default_cache",
    "difference",
    "file_lock",
    "owner",
    "recover",
    "redacted",
    "remove_stale",
    "replace_bytes",
    "replace_text",
    "secrets",
    "secrets_in",
    "sha256_of",
    "stale_temps",
    "storage_error",
    "sync",
    "sync_one",
    "temp_directory",
    "temp_path",
]
