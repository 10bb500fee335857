"""Calls over HTTP, each held against the service's own OpenAPI document.

A status or a member of a body that is not documented fails the test that met it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.running import Service

__all__ = ["bearer", "calling", "refused"]


@asynccontextmanager
async def calling(service: Service, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    document = service.app.openapi()

    async def check(response: httpx.Response) -> None:
        await response.aread()
        assert_documented(document, response)

    async with service.http(event_hooks={"response": [check]}, **options) as http:
        yield http


def assert_documented(document: dict[str, Any], response: httpx.Response) -> None:
    """Hold an answer against OpenAPI: its status, and the members of its body."""
    if response.status_code == 400:
        return  # of the gate, before any route
    described = [
        methods
        for path, methods in document["paths"].items()
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), response.url.path)
    ]
    if not described:
        return  # a page, or nothing of ours
    operation = described[0].get(response.request.method.lower())
    if operation is None:
        assert response.status_code == 405
        return
    answers = operation["responses"]
    assert str(response.status_code) in answers, (response, list(answers))
    content = answers[str(response.status_code)].get("content")
    if content is None:
        assert response.content == b""
        return
    schema = content["application/json"]["schema"]
    body = response.json()
    if schema.get("type") == "array":
        schema = schema["items"]
        body = body[0] if body else {}
    shape = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    assert body.keys() <= shape["properties"].keys()
    assert body.keys() >= set(shape.get("required", [])) or body == {}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def refused(answer: httpx.Response) -> tuple[int, Any]:
    """Status and slug of a refusal, of the shape that all have."""
    body = answer.json()
    assert body.keys() == {"detail"}, body
    return answer.status_code, body["detail"]
