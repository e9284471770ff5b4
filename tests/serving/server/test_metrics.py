"""What Prometheus is told adds up."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.server.fake import Running
from tests.serving.server.test_errors import CHAT


def read(server: Running) -> dict[tuple[str, ...], float]:
    """Every value, by its name and labels."""
    text = httpx.get(server.url + "/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_tokens_and_times_are_counted(server: Running) -> None:
    for _ in range(3):
        server.post(max_tokens=4)
    server.post(temperature=-1)
    httpx.get(server.url + "/made/up")
    told = read(server)
    assert told["allmem_requests_total", CHAT, "200"] == 3
    assert told["allmem_requests_total", CHAT, "400"] == 1
    assert told["allmem_requests_total", "other", "404"] == 1
    assert told["allmem_request_seconds_count", CHAT] == 4
    assert told["allmem_generated_tokens_total",] == 12
    assert told["allmem_first_token_seconds_count",] == 3
    assert told["allmem_token_seconds_count",] == 3
    assert told["allmem_cancelled_total",] == 0
    assert told["allmem_running",] == 0
    assert {"allmem_slots", "allmem_waiting", "allmem_state_bytes"} <= {key[0] for key in told}
