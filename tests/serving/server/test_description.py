"""The server's description is true: what fits it is answered, what does not is refused, and every
answer is one that it names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest

from tests.cli.conftest import make_tokenizer
from tests.serving.server.fake import FakeEngine, Running, running

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = 40
PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/models/{name}",
    "/health",
    "/metrics",
)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(FakeEngine(make_tokenizer())) as server:
        yield server


@pytest.fixture(scope="module")
def described(server: Running) -> Any:
    # What fits may still be refused: a model of another name, a token beyond the vocabulary.
    accepted = {"expected-statuses": ["2xx", "400", "404"]}
    config = schemathesis.Config.from_dict({"checks": {"positive_data_acceptance": accepted}})
    return schemathesis.openapi.from_url(server.url + "/openapi.json", config=config)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("path", PATHS)
def test_requests_that_fit_and_that_do_not(described: Any, path: str, mode: Any) -> None:
    operation = described[path]["post" if "completions" in path else "get"]

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: Any) -> None:
        case.call_and_validate(timeout=20)

    try:
        holds()
    except hypothesis.errors.Unsatisfiable:
        pytest.skip("there is nothing to get wrong")


def test_everything_is_described_and_no_more(server: Running) -> None:
    paths = httpx.get(server.url + "/openapi.json").json()["paths"]
    assert set(paths) == set(PATHS)
    for path, operations in paths.items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
    assert set(paths["/v1/chat/completions"]["post"]["responses"]) >= {"200", "400", "503"}
