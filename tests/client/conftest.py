"""The server that most tests of the client share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from cra_middleware import Runtime
from tests.client.served import Served


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("served")).start()
    yield made
    made.close()


@pytest.fixture
def runtime(served: Served) -> Iterator[Runtime]:
    with served.connect() as made:
        yield made


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    """Starts servers of a test's own."""
    made: list[Served] = []

    def start(*args: Any, **options: Any) -> Served:
        made.append(Served(tmp_path / f"server{len(made)}", *args, **options).start())
        return made[-1]

    yield start
    for one in made:
        one.close()
