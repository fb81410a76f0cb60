"""Structural OpenAPI schemas, as CRDs must have them, from the pydantic models of the kinds.

Pydantic's JSON schema has references, titles and unions with null, which the API server does not accept. This
module only rewrites; the constraints of fields are in the kinds' modules (docs/decisions/200).
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from farebox.api.base import APIObject

Schema = dict[str, Any]

_DROPPED = frozenset({"title", "const", "$defs"})
_BEHAVIOUR_NUMBERS = re.compile(r" \(B\d+(?:, B\d+)*\)")

_ORDER = ("description", "type", "format", "enum", "default", "required", "properties", "items")
"""The order of keys in a schema, for people who read the CRDs. Other keys follow by name."""

_TYPE_META: Schema = {
    "apiVersion": {"type": "string", "description": "The group and version of the kind."},
    "kind": {"type": "string", "description": "The kind of the object."},
    "metadata": {"type": "object"},
}


def object_schema(cls: type[APIObject]) -> Schema:
    """The schema of a kind's objects.

    Only the spec keeps defaults: a value that the operator has not reported must stay absent in a status.
    """
    document = cls.model_json_schema(by_alias=True, mode="validation")
    root = _rewrite(document, document.get("$defs", {}))
    properties = root["properties"]
    root["properties"] = {
        **_TYPE_META,
        "spec": _everywhere(properties["spec"], _describe_default),
        "status": _everywhere(properties["status"], _no_default),
    }
    return root


def _rewrite(node: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """A structural schema that accepts what `node` accepts, except explicit nulls."""
    node = _resolved(node, definitions)
    result: Schema = {}
    for key, value in node.items():
        match key:
            case "properties":
                result[key] = {name: _rewrite(part, definitions) for name, part in value.items()}
            case "items":
                result[key] = _rewrite(value, definitions)
            case "additionalProperties" if isinstance(value, Mapping):
                result[key] = _rewrite(dict(value), definitions)
            case "additionalProperties":
                pass  # pydantic's "any object"; in a CRD it is x-kubernetes-preserve-unknown-fields
            case "description":
                result[key] = _one_line(value)
            case "default" if _absence_means_default(value):
                pass
            case _ if key not in _DROPPED:
                result[key] = value
    return dict(sorted(result.items(), key=_place))


def _place(item: tuple[str, Any]) -> tuple[int, str]:
    key = item[0]
    return (_ORDER.index(key) if key in _ORDER else len(_ORDER), key)


def _resolved(node: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """`node` with its reference resolved and null removed from its union. Its own keys win.

    "T or null" in Python means that a field may be absent; a CRD expresses that with `required`.
    """
    while "$ref" in node or "anyOf" in node:
        own = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
        if "$ref" in node:
            target = definitions[node["$ref"].removeprefix("#/$defs/")]
        else:
            members = [member for member in node["anyOf"] if member.get("type") != "null"]
            if len(members) != 1:
                raise TypeError(f"a field of several types cannot be structural: {node['anyOf']}")
            target = members[0]
        node = {**target, **own}
    return node


def _absence_means_default(default: Any) -> bool:
    """Whether an absent field means the same as this default, so that the default is not stored.

    Objects are never filled in (docs/decisions/206). Each of their fields has its own default, which is
    filled in if the object is present.
    """
    return default is None or isinstance(default, Mapping) or default in ("", [])


def _one_line(text: str) -> str:
    """A docstring for kubectl explain: one paragraph, without behaviour numbers."""
    return " ".join(_BEHAVIOUR_NUMBERS.sub("", text).split())


def _everywhere(schema: Schema, change: Callable[[Schema], Schema]) -> Schema:
    """`schema` with `change` applied to it and to every schema in it."""
    result = change(schema)
    if "properties" in result:
        properties = result["properties"]
        result["properties"] = {name: _everywhere(part, change) for name, part in properties.items()}
    for key in ("items", "additionalProperties"):
        if key in result:
            result[key] = _everywhere(result[key], change)
    return result


def _no_default(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if key != "default"}


def _describe_default(schema: Schema) -> Schema:
    """Append the default to the description, because kubectl explain does not show defaults."""
    if "default" not in schema:
        return dict(schema)
    default = schema["default"]
    word = default if isinstance(default, str) and default.isalpha() else json.dumps(default)
    return {**schema, "description": f"{schema['description']} Default: {word}."}
