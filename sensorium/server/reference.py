"""The API as a page to read, at /docs and /redoc: made from the same description as /openapi.json, without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

Schema = Mapping[str, Any]
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-cache",
}


def reference_page(api: Mapping[str, Any]) -> bytes:
    """HTML of an OpenAPI description: each route, then the fields of each type."""
    title = f"{api['info']['title']} {api['info']['version']}"
    routes = "".join(
        f"<tr><td><code>{method.upper()} {escape(path)}</code></td><td>{escape(route['summary'])}</td>"
        f"<td>{_kinds(route.get('requestBody', {}))}</td>"
        f"<td>{_kinds(next(iter(route['responses'].values())))}</td></tr>"
        for path, methods in api["paths"].items()
        for method, route in methods.items()
        if method != "parameters"
    )
    types = "".join(_type(name, schema) for name, schema in sorted(api["components"]["schemas"].items()))
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<link rel="stylesheet" href="reference.css"></head><body><h1>{escape(title)}</h1>'
        '<p>The same as <a href="openapi.json">openapi.json</a>, to read.</p>'
        f"<table><tr><th>route</th><th>what it does</th><th>takes</th><th>gives</th></tr>{routes}</table>"
        f"<h2>Types</h2>{types}</body></html>"
    )
    return page.encode()


def _kinds(body: Mapping[str, Any]) -> str:
    """The types of a request or an answer."""
    return ", ".join(_kind(content.get("schema", {})) for content in body.get("content", {}).values())


def _type(name: str, schema: Schema) -> str:
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code>{'' if field in required else '?'}</td><td>{_kind(kind)}</td>"
        f"<td>{escape(kind.get('description', ''))}</td></tr>"
        for field, kind in schema.get("properties", {}).items()
    )
    text = escape(schema.get("description", ""))
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{text}</p><table>{rows}</table>'


def _kind(schema: Schema) -> str:
    """A type in a few words, others as links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_kind, schema["anyOf"])))
    if "enum" in schema:
        return " or ".join(f"<code>{escape(repr(value))}</code>" for value in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    bounds = [f"{mark} {schema[key]}" for key, mark in _BOUNDS.items() if key in schema]
    return escape(f"{kind} {', '.join(bounds)}".strip())


_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "minLength": "length ≥", "maxLength": "length ≤"}
