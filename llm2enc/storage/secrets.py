"""What must not stand in a recipe, a published file or a message, and by what it is known.

secrets_in("hf_" + 34 letters)    ["a Hugging Face token"]
redacted("... hf_abc... ...")     "... <a Hugging Face token> ..."
"""

import os
import re
from functools import cache

# The beginnings that the services give their keys. Every pattern begins with letters (or `://`), for which `re` searches
# a gigabyte in seconds; with anything else it takes a minute.
KINDS: dict[str, tuple[bytes, ...]] = {
    "a Hugging Face token": (rb"hf_[A-Za-z0-9]{30,}", rb"api_org_[A-Za-z0-9]{30,}"),
    "a wandb key": (
        rb"wandb_v\d_[A-Za-z0-9_]{30,}",
        *(
            rb"%s[\"' :=]{1,6}(?:local-)?[0-9a-f]{40}\b" % name
            for name in (b"api_key", b"API_KEY", b"apikey", b"apiKey")
        ),
        rb"api\.wandb\.ai\s[\s\S]{0,80}password [0-9a-f]{40}\b",  # as .netrc has it
    ),
    "an AWS key": (
        rb"AKIA[0-9A-Z]{16}\b",
        rb"ASIA[0-9A-Z]{16}\b",
        rb"aws_secret_access_key[\"' :=]{1,6}[A-Za-z0-9/+]{40}",
        rb"AWS_SECRET_ACCESS_KEY[\"' :=]{1,6}[A-Za-z0-9/+]{40}",
    ),
    "a GitHub token": (
        *(rb"gh%s_[A-Za-z0-9]{36,}" % kind for kind in (b"p", b"o", b"u", b"s", b"r")),
        rb"github_pat_[A-Za-z0-9_]{50,}",
    ),
    "an API key": (
        *(rb"sk-%s-[A-Za-z0-9_-]{20,}" % maker for maker in (b"proj", b"ant", b"or")),
        rb"AIza[0-9A-Za-z_-]{35}",
        rb"xox[abprs]-[0-9A-Za-z-]{20,}",
    ),
    "a private key": (rb"PRIVATE KEY-----",),
    "a password in a URL": (
        rb"://[\w.%+-]{0,64}:[^\s:/@\"'<>]{3,128}@[\w.-]",
        rb"://[\w.%+-]{20,256}@[\w.-]",  # a token in the user's place
    ),
}
# Variables whose very value is secret, whatever it looks like.
_VARIABLES = re.compile(r"(?:TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)(?:_ID)?$")
SHORTEST = 12  # characters; shorter values (`true`, `none`) are no secrets, and would be found anywhere


def of_environment() -> dict[str, str]:
    """Value of every secret variable of this process, by "the value of NAME"."""
    named = {f"the value of {name}": value for name, value in os.environ.items() if _VARIABLES.search(name)}
    return {kind: value for kind, value in named.items() if len(value) >= SHORTEST}


def secrets_in(text: str) -> list[str]:
    """Kinds of secrets in a text."""
    kinds = [kind for kind, patterns in _compiled().items() if any(one.search(text) for one in patterns)]
    return kinds + [kind for kind, value in of_environment().items() if value in text]


def redacted(text: str) -> str:
    """The text with the kind of every secret in its place."""
    for kind, value in of_environment().items():
        text = text.replace(value, f"<{kind}>")
    for kind, patterns in _compiled().items():
        for one in patterns:
            text = one.sub(lambda match, kind=kind: _without(match[0], kind), text)
    return text


def _without(secret: str, kind: str) -> str:
    """A URL keeps its border signs, so that what stands around the secret can still be read."""
    return f"://<{kind}>@{secret[-1]}" if secret.startswith("://") else f"<{kind}>"


@cache
def _compiled() -> dict[str, list[re.Pattern[str]]]:
    return {kind: [re.compile(one.decode(), re.ASCII) for one in patterns] for kind, patterns in KINDS.items()}
