"""A YAML file and overrides become one frozen, typed tree, or one error that names every fault.

Knows pydantic and ruamel only. What the keys mean is said by the classes that stand beside the components.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import SafeRepresenter

Tree = dict[str, Any]
Origins = dict[str, str]  # dotted path -> the file (or override) that set it


class ConfigError(ValueError):
    """Every fault of a config, one line each: `where: dotted.path: what is wrong; what to do`."""


class Config(BaseModel):
    """Parent of every config class: frozen, and a key that no field takes is an error.

    `plain_key`: the key that a plain value in place of the class stands for; "" where none may.
    """

    plain_key: ClassVar[str] = ""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)


ConfigT = TypeVar("ConfigT", bound=Config)


def load(path: str | Path | None, overrides: Sequence[str], cls: type[ConfigT]) -> ConfigT:
    """The config of type `cls` that the file at `path`, its parents and `key.sub=value` overrides describe.

    `extends:` names one parent file or a list of them, relative to the file that says so; a later one wins
    over an earlier one, the file itself over its parents, an override over all.

    Raises:
        ConfigError: every fault at once, by dotted path and by the file that holds it.
    """
    origins: Origins = {}
    tree = read_tree(path, overrides, origins, cls=cls)
    return validate(tree, cls, where=str(path) if path is not None else "command line", origins=origins)


def read_tree(
    path: str | Path | None,
    overrides: Sequence[str],
    origins: Origins | None = None,
    *,
    cls: type[Config] | None = None,
) -> Tree:
    """The file at `path`, its parents and the overrides as plain values, not yet held against a class.

    Fills `origins`. `cls` tells an override that goes into a plain value which key that value stands for
    (`Config.plain_key`). Raises ConfigError for a file that can't be read and for every override of another form.
    """
    origins = {} if origins is None else origins
    tree = _read_with_parents(Path(path), origins, chain=()) if path is not None else {}
    faults = []
    for override in overrides:
        try:
            _apply_override(tree, override, origins, cls)
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return tree


def validate(tree: Tree, cls: type[ConfigT], *, where: str, origins: Origins | None = None) -> ConfigT:
    """`tree` as a `cls`; raises ConfigError with a line for each fault."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        lines = [_fault_line(fault, cls, where, origins or {}) for fault in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def to_tree(config: Config) -> Tree:
    """The resolved tree of plain values, defaults included, as the YAML spells the keys."""
    return config.model_dump(mode="json", by_alias=True)


def to_yaml(config: Config) -> str:
    """The resolved tree as YAML text; `load` of it gives an equal config."""
    out = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.allow_unicode = True
    writer.width = 4096
    writer.dump(to_tree(config), out)
    return out.getvalue()


class _Representer(SafeRepresenter):
    """Quotes text with line breaks and control characters: ruamel writes U+0085 plain, and reads it back as a space."""

    def represent_str(self, data: str) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Representer.add_representer(str, _Representer.represent_str)


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file; raises ConfigError where there is none, or where a key stands twice."""
    return _read_yaml(path, named_by="")


def _read_yaml(path: Path, *, named_by: str) -> Tree:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{named_by}{path}: cannot be read: {error}; give the path of a UTF-8 YAML file") from None
    return _parse_mapping(text, where=str(path))


def _parse_mapping(text: str, *, where: str) -> Tree:
    try:
        tree = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {_one_line(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: the top level is a {type(tree).__name__}; it must be a mapping of keys")
    return tree


def _one_line(error: YAMLError) -> str:
    # ruamel adds paragraphs about how to allow duplicate keys; the first lines hold the fault and its place.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("To suppress", "http", "Duplicate keys will"))]
    return " ".join(kept[:6])


def _read_with_parents(path: Path, origins: Origins, *, chain: tuple[Path, ...]) -> Tree:
    resolved = path.resolve()
    if resolved in chain:
        loop = " -> ".join(str(link) for link in (*chain, resolved))
        raise ConfigError(f"{path}: extends: the files extend each other in a circle: {loop}; break it")
    tree = _read_yaml(path, named_by=f"{chain[-1]}: extends: " if chain else "")
    parents = tree.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: extends: got {parents!r}; give one path or a list of paths")
    merged: Tree = {}
    for parent in parents:
        below = _read_with_parents(path.parent / parent, origins, chain=(*chain, resolved))
        merged = _merged(merged, below)
    for dotted in _dotted_paths(tree):
        origins[dotted] = str(path)
    return _merged(merged, tree)


def _merged(below: Tree, above: Tree) -> Tree:
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def _dotted_paths(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        yield dotted
        if isinstance(value, dict):
            yield from _dotted_paths(value, f"{dotted}.")


def _apply_override(tree: Tree, override: str, origins: Origins, cls: type[Config] | None) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    where = f"override {override!r}"
    if not equals or not all(keys):
        raise ConfigError(f"{where}: not of the form key.sub=value")
    parsed = _parse_mapping(f"value: {text}", where=where)
    if list(parsed) != ["value"]:
        raise ConfigError(f"{where}: sets more than one key; give each key an override of its own")
    node: Any = tree
    for number, key in enumerate(keys[:-1]):
        cls = cls if cls is None or key.isdecimal() else _config_class(_fields_by_key(cls).get(key))
        plain = _Plain(cls.plain_key if cls else "", is_list=keys[number + 1].isdecimal())
        node = _step_into(node, key, plain, where=where)
    if isinstance(node, list):
        node[_index(node, keys[-1], where=where)] = parsed["value"]
    else:
        node[keys[-1]] = parsed["value"]
    origins[dotted.strip()] = "override"


class _Plain(NamedTuple):
    """What a plain text stands for where an override goes into it: a mapping of `key`, or a list of one such."""

    key: str
    is_list: bool


def _step_into(node: Any, key: str, plain: _Plain, *, where: str) -> Any:
    """What stands under `key`, for an override of a part of it; an empty mapping where nothing did."""
    if isinstance(node, list):
        place: Any = _index(node, key, where=where)
        below = node[place]
    else:
        place, below = key, node.get(key)
    if not isinstance(below, dict | list):
        spelt = {plain.key: below} if plain.key and isinstance(below, str) else {}
        below = node[place] = [spelt] if spelt and plain.is_list else spelt
    return below


def _index(items: list[Any], key: str, *, where: str) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        size = len(items)
        raise ConfigError(f"{where}: {key!r} is no place in a list of {size}; count from 0, or set the whole list")
    return int(key)


def _fault_line(fault: Any, cls: type[Config], where: str, origins: Origins) -> str:
    path = [str(part) for part in fault["loc"]]
    dotted = ".".join(path)
    source = _origin_of(path, origins) or where
    place = f"{source}: {dotted}" if dotted else source
    match fault["type"]:
        case "extra_forbidden":
            return f"{place}: unknown key{_did_you_mean(path, cls)}"
        case "missing":
            return f"{place}: missing; it has no default, so the config must set it"
        case "value_error":
            return f"{place}: {fault['ctx']['error']}"
    message = fault["msg"][:1].lower() + fault["msg"][1:]  # the rest may quote values, which have a case
    return f"{place}: {message}, got {fault['input']!r}{_quote_it(fault, dotted, source)}"


def _quote_it(fault: Any, dotted: str, source: str) -> str:
    """What to do where YAML read a text as a number, a date or a truth."""
    value = fault["input"]
    if fault["type"] not in ("string_type", "path_type") or not isinstance(value, bool | int | float | date):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"; quote it: {dotted}='\"{text}\"'" if source == "override" else f'; quote it: "{text}"'


def _origin_of(path: Sequence[str], origins: Origins) -> str | None:
    for length in range(len(path), 0, -1):
        if (origin := origins.get(".".join(path[:length]))) is not None:
            return origin
    return None


def _did_you_mean(path: Sequence[str], cls: type[Config]) -> str:
    siblings = _keys_below(cls, path[:-1])
    close = difflib.get_close_matches(path[-1], siblings, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    elsewhere = [known for known in _all_paths(cls) if known.rsplit(".", 1)[-1] == path[-1]]
    if elsewhere:
        return f"; did you mean {elsewhere[0]!r}?"
    return f"; the keys here are {', '.join(siblings)}" if siblings else ""


def _keys_below(cls: type[Config], path: Sequence[str]) -> list[str]:
    node: type[Config] | None = cls
    for key in path:
        if node is None:
            return []
        if not key.isdigit():
            node = _config_class(_fields_by_key(node).get(key))
    return list(_fields_by_key(node)) if node is not None else []


def _fields_by_key(cls: type[Config]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in cls.model_fields.items()}


def _config_class(annotation: Any) -> type[Config] | None:
    """The config class inside an annotation such as `Config | None`, `list[Config]` or `Annotated[...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    if get_origin(annotation) in (Union, UnionType, Annotated, list, tuple, dict):
        for inner in get_args(annotation):
            if (found := _config_class(inner)) is not None:
                return found
    return None


def _all_paths(cls: type[Config], prefix: str = "") -> Iterator[str]:
    for key, annotation in _fields_by_key(cls).items():
        yield f"{prefix}{key}"
        if (inner := _config_class(annotation)) is not None:
            yield from _all_paths(inner, f"{prefix}{key}.")
