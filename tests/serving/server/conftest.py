"""A tokenizer and servers for the tests of the HTTP side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.conftest import make_tokenizer
from tests.serving.server.fake import FakeEngine, Running, running


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def engine(tokenizer: Any) -> FakeEngine:
    return FakeEngine(tokenizer)


@pytest.fixture
def server(engine: FakeEngine) -> Iterator[Running]:
    with running(engine) as server:
        yield server
