"""YAML 1.2 with each key there once: how recipes are read and written."""

import re
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """YAML 1.2 scalars. YAML 1.1, PyYAML's own, reads `5e-5` as a string, `010` as 8, `1:30` as 90 and `no` as False."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[str, Any]:
        """A mapping whose keys are text as it is written (a prompt may be called `1e5`), each there once."""
        if not isinstance(node, yaml.MappingNode):
            return super().construct_mapping(node, deep)  # raises
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key.start_mark)
            if key.value in found:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value[:100]!r} is there twice; keep one of them", key.start_mark
                )
            found[key.value] = self.construct_object(value, deep)
        return found


class Dumper(yaml.SafeDumper):
    """Puts quotes around texts that either version reads as something else: `no`, and `1e5` or `08` (a revision)."""

    def represent_text(self, text: str) -> yaml.Node:
        # PyYAML takes U+0085 for a line break, and writes it as it stands unless the style is one with escapes.
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


Dumper.add_representer(str, Dumper.represent_text)

Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for _side in (Loader, Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
