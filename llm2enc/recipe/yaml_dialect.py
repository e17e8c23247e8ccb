"""YAML 1.2 with each key there once: how recipes are read and written, by ruamel.yaml."""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from llm2enc.errors import InputError

_TEXT = "tag:yaml.org,2002:str"
_CORE = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}


class _Resolver(VersionedResolver):
    """The core schema alone: ruamel.yaml also takes `2024-01-01` for a date, `1_0` for 10, and `<<` for a merge."""

    def resolve(self, kind: type, value: Any, implicit: tuple[bool, bool]) -> Any:
        tag = super().resolve(kind, value, implicit)
        return Tag(suffix=_TEXT) if kind is ScalarNode and (str(tag) not in _CORE or "_" in value) else tag


class _Constructor(SafeConstructor):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
        """A mapping whose keys are text as it is written: a prompt may be called `1e5`."""
        pairs: list[Any] = node.value if isinstance(node, MappingNode) else []
        for place, (key, value) in enumerate(pairs):
            if not isinstance(key, ScalarNode):
                raise ConstructorError(None, None, "a key must be plain text", key.start_mark)
            pairs[place] = ScalarNode(Tag(suffix=_TEXT), key.value, key.start_mark, key.end_mark), value
        return super().construct_mapping(node, deep)


class _Representer(SafeRepresenter):
    """Writes what readers of YAML 1.1 read alike: `no` in quotes, and 1.0e-05 with its point."""

    earlier = VersionedResolver((1, 1))

    def represent_str(self, data: str) -> ScalarNode:
        # U+0085 is a line break to readers, and written as it stands unless the style is one with escapes.
        plain = "\x85" not in data and str(self.earlier.resolve(ScalarNode, data, (True, False))) == _TEXT
        return self.represent_scalar(_TEXT, data, style=None if plain else '"')

    def represent_float(self, data: float) -> ScalarNode:
        text = repr(data)
        return self.represent_scalar("tag:yaml.org,2002:float", text if "." in text else text.replace("e", ".0e"))


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(float, _Representer.represent_float)


def _yaml() -> YAML:
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Constructor, yaml.Representer = _Resolver, _Constructor, _Representer
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output, yaml.width = False, False, 120
    return yaml


def from_yaml(text: str) -> Any:
    """The data of a YAML text. InputError, with line and column where there are some, for what is none."""
    try:
        return _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InputError(f"{where}{error.problem or error.context}") from None
    except (YAMLError, KeyError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{type(error).__name__}: {error}") from None


def to_yaml(data: dict[str, Any]) -> str:
    """The data as YAML, in its own order; `from_yaml` of it gives equal data."""
    file = StringIO()
    _yaml().dump(data, file)
    return file.getvalue()
