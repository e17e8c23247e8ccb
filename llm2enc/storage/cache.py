"""Where what can be made again is kept."""

import os
from pathlib import Path


def default_cache() -> Path:
    """The cache folder, of vectors and dequantised models: $LLM2ENC_CACHE, else `llm2enc` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LLM2ENC_CACHE") or Path(home) / "llm2enc")
