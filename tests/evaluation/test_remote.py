"""A model behind a server: what is sent, what comes back, and what goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from allmem.errors import AllMemError
from allmem.evaluation.model import Prompt
from allmem.evaluation.remote import ATTEMPTS, KEY, Patience, RemoteModel
from allmem.evaluation.rows import Run
from allmem.evaluation.runner import evaluate
from allmem.evaluation.suites.longbench import LongBench
from allmem.evaluation.task import Setting
from allmem.reading import Sampling
from tests.evaluation.answering import LetterTokenizer
from tests.evaluation.benchmark_files import put, row
from tests.evaluation.tasks import Letters

GREEDY = Sampling(seed=0)
QUICK = Patience(timeout=10, pause=0.001)
CHAT = [{"role": "user", "content": "Who?"}]


class Server(ThreadingHTTPServer):
    """Says back what it was asked, in the form of the protocol."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, Any], Any]] = []
        self.owner = "vllm"
        self.failures: list[int] = []
        """Statuses of the next answers."""
        self.together = 0
        self.most_together = 0
        self.raw: bytes | None = None
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *rest: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(
            200, {"data": [{"id": "tiny", "owned_by": self.server.owner, "max_model_len": 128}]}
        )

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append((self.path, body, self.headers.get("Authorization")))
            status = server.failures.pop(0) if server.failures else 200
            server.together += 1
            server.most_together = max(server.most_together, server.together)
        if status != 200:
            self.answer(status, {"error": {"message": "out of luck"}})
        elif self.path == "/v1/completions":
            choice = {"text": f"<{body['prompt'][-3:]}>", "finish_reason": "stop"}
            self.answer(200, {"choices": [choice], "usage": {"prompt_tokens": 3}})
        else:
            said = body["messages"][0]["content"]
            choice = {"message": {"content": f"{said} END more"}, "finish_reason": "length"}
            usage = {"prompt_tokens": 7, "completion_tokens": 5}
            self.answer(200, {"choices": [choice], "usage": usage})
        with server.lock:
            server.together -= 1

    def answer(self, status: int, body: Any) -> None:
        text = self.server.raw or json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def remote(server: Server, **options: Any) -> RemoteModel:
    return RemoteModel(server.url, patience=QUICK, **options)


def chat(prefix: str = "", **more: Any) -> Prompt:
    return Prompt(None, "Who?", CHAT, answer_prefix=prefix, max_new_tokens=9, **more)


def test_a_conversation_goes_to_chat_and_a_text_to_completions(server: Server) -> None:
    model = remote(server)
    text = Prompt(None, "Once", None, answer_prefix=" upon", max_new_tokens=4)
    first, second = model.complete([chat(stop=(" END",)), text], GREEDY, [0, 1])
    assert (first.text, first.prompt_tokens, first.new_tokens) == ("Who?", 7, 5)
    assert (second.text, second.prompt_tokens, second.new_tokens) == ("<pon>", 3, None)
    assert first.finished, "at the stop text"
    assert second.finished
    sent = {path: body for path, body, _ in server.asked}
    asked = sent["/v1/chat/completions"]
    assert asked["messages"] == CHAT
    assert asked["max_tokens"] == 9
    assert asked["temperature"] == 0
    assert asked["stop"] == [" END"]
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    assert "seed" not in asked
    assert sent["/v1/completions"]["prompt"] == "Once upon"


def test_only_known_servers_are_sent_extensions(server: Server) -> None:
    drawn = Sampling(0.6, 0.95, 20, seed=0)
    remote(server, thinking=True).complete([chat("It was")], drawn, [0])
    asked = server.asked[-1][1]
    assert asked["top_k"] == 20
    assert asked["chat_template_kwargs"] == {"enable_thinking": True}
    assert asked["messages"][-1] == {"role": "assistant", "content": "It was"}
    assert asked["continue_final_message"] is True
    assert asked["add_generation_prompt"] is False
    server.owner = "someone"
    remote(server).complete([chat()], Sampling(0.6, 0.95, seed=0), [0])
    allowed = {"model", "messages", "max_tokens", "temperature", "top_p", "seed"}
    assert server.asked[-1][1].keys() == allowed


def test_what_the_protocol_cannot_say_is_refused_before_anything_is_sent(server: Server) -> None:
    server.owner = "someone"
    model = remote(server)
    with pytest.raises(AllMemError, match=r"top_k = 20; vLLM, SGLang and allmem can.*--top-k 0"):
        model.complete([chat()], Sampling(0.6, 0.95, 20, seed=0), [0])
    with pytest.raises(AllMemError, match=r"how an answer in a conversation begins.*vLLM"):
        model.complete([chat(), chat("It was")], GREEDY, [0, 1])
    assert server.asked == []
    # A text carries its own beginning.
    model.complete([Prompt(None, "Once", None, answer_prefix=" upon")], GREEDY, [0])
    assert server.asked[0][1]["prompt"] == "Once upon"


def test_samples_draw_by_their_number_and_seed(server: Server) -> None:
    model = remote(server, concurrency=1)
    for seed in (0, 1):
        model.complete([chat()] * 2, Sampling(1.0, seed=seed), [4, 5])
    model.complete([chat()], Sampling(1.0, seed=0), [5])
    seeds = [body["seed"] for _, body, _ in server.asked]
    assert len(set(seeds)) == 4
    assert seeds[-1] == seeds[1]


def test_a_batch_is_under_way_at_once_and_comes_back_in_order(server: Server) -> None:
    prompts = [
        Prompt(None, "", [{"role": "user", "content": str(i)}], stop=(" ",)) for i in range(40)
    ]
    found = remote(server, concurrency=8).complete(prompts, GREEDY, range(40))
    assert [answer.text for answer in found] == [str(i) for i in range(40)]
    assert server.most_together > 1


def test_a_busy_server_is_asked_again(server: Server) -> None:
    model = remote(server)
    server.failures = [429, 503, 500]
    assert model.complete([chat()], GREEDY, [0])[0].text == "Who? END more"
    assert len(server.asked) == 4
    server.failures = [503] * ATTEMPTS
    with pytest.raises(
        AllMemError, match=rf"in {ATTEMPTS} attempts: 503 out of luck.*the same command goes on"
    ):
        model.complete([chat()], GREEDY, [0])


def test_a_refusal_is_told_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    model = remote(server)
    server.failures = [400]
    with pytest.raises(AllMemError, match="refused: 400 out of luck"):
        model.complete([chat()], GREEDY, [0])
    assert len(server.asked) == 1
    server.failures = [401]
    with pytest.raises(AllMemError, match=f"401 out of luck .*{KEY}"):
        model.complete([chat()], GREEDY, [0])
    monkeypatch.setenv(KEY, "secret")
    remote(server).complete([chat()], GREEDY, [0])
    assert server.asked[-1][2] == "Bearer secret"


def test_what_is_no_server_is_told(server: Server) -> None:
    with pytest.raises(AllMemError, match="begins with http"):
        RemoteModel("localhost:8000")
    with pytest.raises(AllMemError, match="has the models tiny; name one of them, not 'other'"):
        remote(server, model="other")
    model = remote(server)
    for raw, message in ((b"<html>", "did not answer in JSON"), (b'{"a": 1}', "unknown form")):
        server.raw = raw
        with pytest.raises(AllMemError, match=message):
            model.complete([chat()], GREEDY, [0])
    server.shutdown()
    server.server_close()
    with pytest.raises(AllMemError, match=f"did not answer in {ATTEMPTS} attempts"):
        remote(server)


def test_a_run_through_a_server(server: Server, tmp_path: Any) -> None:
    model = remote(server, label="tiny", tokenizer=LetterTokenizer())
    assert (model.label, model.reach) == ("tiny", 128)
    evaluate([model], [Letters("letters/one")], Setting(truncate=20), tmp_path)
    rows = Run(tmp_path).rows("tiny", "letters/one").rows()
    assert len(rows) == 13
    # Cut by the tokenizer, though the server tokenises by itself.
    assert all(row["cut"] > 0 for row in rows)
    assert all(len(body["prompt"]) == 20 for _, body, _ in server.asked)
    with pytest.raises(AllMemError, match="tiny only answers"):
        model.session()


def test_a_benchmark_that_cuts_needs_the_server_s_tokenizer(server: Server, tmp_path: Path) -> None:
    put(tmp_path / "data" / "qmsum.jsonl", [row()])
    setting = Setting(data=tmp_path / "data")
    with pytest.raises(AllMemError, match=r"tiny are cut at 64 tokens, .*--tokenizer"):
        evaluate([remote(server)], [LongBench("qmsum")], setting, tmp_path / "run")
    assert server.asked == []
    assert not (tmp_path / "run").exists()
