"""Fixtures of the server's tests; without the packages of the extra ``server`` there is nothing to test."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob: list[str] = []

if all(find_spec(name) for name in ("fastapi", "httpx", "jwt", "uvicorn")):
    from tests.server.serving import process, serve, served

    __all__ = ["process", "serve", "served"]
else:
    collect_ignore_glob.append("test_*.py")
