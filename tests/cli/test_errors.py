"""Bad input: one line on stderr that names the value and the remedy, exit code 2, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import allmem
from allmem import answering
from allmem.cli import ask as ask_module
from tests.cli.conftest import C, S, W, make_base, make_tokenizer


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no file"),
        (b"", "is empty"),
        (b" \n\n ", "is empty"),
        (b"a\0b", "not a text file"),
        ("ÿ".encode("utf-16"), "not a text file"),
        ("café".encode("latin1"), "0xe9 at offset 3"),
    ],
    ids=["missing", "empty", "blank", "binary", "utf-16", "latin1"],
)
def test_documents_that_cannot_be_read(
    fails: Any, converted: str, tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "book.txt"
    if content is not None:
        file.write_bytes(content)
        assert said in fails("ask", converted, "--document", "-", "Who?", stdin=content)
    for args in (["ask", converted, "Who?", "--document"], ["generate", converted, "--file"]):
        message = fails(*args, str(file))
        assert said in message
        assert str(file) in message


def test_a_folder_is_not_a_document(fails: Any, converted: str, tmp_path: Path) -> None:
    assert "is a folder" in fails("ask", converted, "--document", str(tmp_path), "Who?")


def test_a_byte_order_mark_is_no_text(run: Any, converted: str) -> None:
    plain = run("generate", converted, "-n", "4", stdin=b"Once").stdout
    assert run("generate", converted, "-n", "4", stdin="Once".encode("utf-8-sig")).stdout == plain


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--document", "STORY", " "], "the question is empty"),
        (["--document", "STORY", "Who?", "--window", "8", "--chunk", "9"], "choose chunk <= 8"),
        (["--document", "STORY", "Who?", "--window", "8", "--sinks", "8"], "at most 7 sinks"),
        (["--document", "STORY", "Who?", "--window", "0"], "window = 0"),
        (["--document", "STORY", "Who?", "--mixers", "almem"], "did you mean 'allmem'"),
        (["--document", "STORY", "Who?", "--mixers", "allmem*3"], "divide"),
        (["--document", "STORY", "Who?", "--keep-full", "7"], "there is no layer 7"),
        (["--document", "STORY", "Who?", "--keep-full", "a"], "'a' is not a layer"),
        (["--document", "STORY", "Who?", "--set", "los=dot"], "did you mean 'loss'"),
        (["--document", "STORY", "Who?", "--set", "loss=dott"], "did you mean 'dot'"),
        (["--document", "STORY", "Who?", "--set", "loss"], "KEY=VALUE"),
        (["--document", "STORY", "Who?", "--set", "chunk=3"], "--chunk"),
        (["--document", "STORY", "Who?", "--temperature", "-1"], "temperature = -1"),
        (["--document", "STORY", "Who?", "--top-p", "0"], "top_p = 0"),
        (["--document", "STORY", "Who?", "--top-k", "-2"], "top_k = -2"),
        (["--document", "STORY", "Who?", "--device", "warp"], "'warp'"),
        (["--document", "STORY", "Who?", "--adapter", "nowhere"], "there is no file nowhere"),
    ],
    ids=lambda value: " ".join(value[2:]).replace("Who? ", "") if isinstance(value, list) else "",
)
def test_values_that_make_no_sense(
    fails: Any, base: str, story: str, args: list[str], said: str
) -> None:
    assert said in fails("ask", base, *[story if a == "STORY" else a for a in args])


def test_a_converted_model_s_layout_is_fixed(fails: Any, run: Any, converted: str) -> None:
    assert "mixers" in fails("generate", converted, "Once", "--mixers", "window")
    assert "fixed already" in fails("info", converted, "--set", "loss=dot")
    assert "choose chunk <= 16" in fails("generate", converted, "Once", "--chunk", "17")
    assert "window 12, sinks 2, chunk 8" in run("info", converted, "--window", "12").stdout


@pytest.mark.parametrize("command", [["info"], ["generate", "-n", "1"]], ids=["info", "generate"])
def test_models_that_are_not_there(fails: Any, command: list[str], tmp_path: Path) -> None:
    end = ["Once"] if command[0] == "generate" else []

    def said(source: str) -> str:
        return fails(*command, source, *end)

    assert "name is empty" in said(" ")
    assert "there is no folder or file ./nowhere" in said("./nowhere")
    assert "there is no folder or file no.gguf" in said("no.gguf")
    assert "neither a config.json nor a GGUF file" in said(str(tmp_path))
    assert "HF_HUB_OFFLINE is set" in said("nobody/nothing")


def test_generate_wants_one_prompt(fails: Any, converted: str, story: str) -> None:
    assert "both" in fails("generate", converted, "Once", "--file", story)
    assert "empty" in fails("generate", converted, "")
    assert "empty" in fails("generate", converted, stdin="")


def test_chat_needs_a_template(fails: Any, folders: Path) -> None:
    message = fails("chat", str(folders / "plain"), "--window", "16", stdin="hello\n")
    assert "no chat template" in message


def test_a_template_that_refuses_the_conversation(
    fails: Any, converted: str, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer("{{ raise_exception('no system, please') }}")
    model = allmem.convert(make_base(len(tokenizer)), window=W, sinks=S, chunk=C)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    message = fails("chat", str(tmp_path), "--system", "Be brief.", stdin="hello\n")
    assert "no system, please" in message


def test_adapters_that_do_not_fit(
    fails: Any, run: Any, base: str, adapter: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    tokenizer = make_tokenizer()
    make_base(len(tokenizer), seed=5).save_pretrained(other)
    tokenizer.save_pretrained(other)
    args = ["Once", "-n", "1", "--adapter"]
    assert "another base model" in fails("generate", str(other), *args, adapter)
    run("generate", str(other), *args, adapter, "--other-base")

    altered = tmp_path / "altered.safetensors"
    data = bytearray(Path(adapter).read_bytes())
    data[-1] ^= 1
    altered.write_bytes(data)
    assert "was altered" in fails("generate", base, *args, str(altered))
    altered.write_bytes(data[: len(data) // 2])
    assert "truncated" in fails("generate", base, *args, str(altered))


def test_a_tokenizer_with_more_tokens_than_the_model(fails: Any, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    make_base(len(tokenizer) - 1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "do not belong together" in fails("generate", str(tmp_path), "Once")


def test_a_model_without_tokenizer_or_with_damaged_weights(fails: Any, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    make_base(len(tokenizer)).save_pretrained(tmp_path)
    assert "tokenizer" in fails("generate", str(tmp_path), "Once")
    tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "damaged" in fails("generate", str(tmp_path), "Once")


def test_an_unforeseen_exception_asks_for_a_report(
    run: Any, converted: str, story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(answering, "Reader", broken)
    stderr = run("ask", converted, "--document", story, "Who?", code=1).stderr
    assert "RuntimeError: boom" in stderr
    assert "please report" in stderr.splitlines()[-1]


def test_ctrl_c_ends_with_130(
    run: Any, converted: str, story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(pieces: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ask_module.terminal, "stream", interrupted)
    stderr = run("ask", converted, "--document", story, "Who?", code=130).stderr
    assert stderr.strip().splitlines()[-1] == "interrupted"


def command_line(*args: str) -> list[str]:
    return [sys.executable, "-m", "allmem.cli.main", *args]


def test_a_true_process_stops_at_ctrl_c_and_says_little(converted: str) -> None:
    # A shell lets what it starts in the background ignore SIGINT, and children inherit that.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command_line("chat", converted, "-n", "2"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, usual)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("Hello\n")
    process.stdin.flush()
    # The first answer is there: the process waits for the next turn.
    assert process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    # Before its input is closed: at the end of the input it would end by itself.
    assert process.wait(timeout=60) == 130
    _, stderr = process.communicate()
    assert "Traceback" not in stderr
    assert "interrupted" in stderr


def test_a_true_process_is_quiet_when_its_reader_goes_away(converted: str, story: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    args = command_line("ask", converted, "--document", story, "-n", "4", "Who?")
    with os.fdopen(write_end, "wb") as gone:
        done = subprocess.run(args, check=False, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_true_process_prints_errors_in_one_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    done = subprocess.run(
        command_line("info", missing), check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"error: there is no folder or file {missing}; check the path\n"
