"""Let a small model with the memory that ships read a text, and ask it what its window has lost.

    python -m examples.quickstart               # a page of a novel, in which a sentence is hidden
    python -m examples.quickstart notes.txt "Where does Anna live?"
    python -m examples.quickstart notes.txt "Who is absent?" --model Qwen/Qwen3-0.6B

Run it from the root of the repository. ``--adapter`` loads trained memories from a file. Another
model without an adapter is converted only: its memory is untrained and adds nothing, its answer
rests on the window and the sinks. The steps are the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import allmem
from allmem.documents import READ, load_book
from allmem.models.sources import smollm2_file
from allmem.prompts import DocumentPrompt

CHARACTERS = 4_000
"""Of the novel, if no file is named."""
HIDDEN = "The locker of Alice Walsh is 4812."
"""A sentence in it, between the first paragraphs."""
QUESTION = "What is the locker of Alice Walsh?"


def read_text(file: Path | None) -> str:
    """The text to read."""
    if file is not None:
        return file.read_text(encoding="utf-8")
    title, *paragraphs = load_book(READ)[:CHARACTERS].split("\n\n")
    return "\n\n".join([title, HIDDEN, *paragraphs])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", help="UTF-8 text")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--model", help="hub name, folder or GGUF file; default: SmolLM2-135M")
    parser.add_argument(
        "--adapter", help="trained memories for this model; default: for SmolLM2 those that ship"
    )
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--sinks", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    args = parser.parse_args(argv)

    source = args.model or smollm2_file()
    tokenizer = allmem.load_tokenizer(source)
    adapter = args.adapter or (None if args.model else "smollm2")
    if adapter is not None:
        # An adapter brings the window, the sinks and the chunk that it is read with.
        model = allmem.load_adapter(source, adapter)
    else:
        model = allmem.convert(source, window=args.window, sinks=args.sinks, chunk=args.chunk)

    # The chat template around the text, cut where the question will stand.
    prompt = DocumentPrompt(tokenizer)
    text = torch.tensor([prompt.document(read_text(args.file))])  # [1, T]
    question = torch.tensor([prompt.question(args.question)])  # [1, Q]

    cache = allmem.AllMemCache(model.config)
    begin = time.perf_counter()
    with torch.no_grad():
        model(text, past_key_values=cache, logits_to_keep=1)
    seconds = time.perf_counter() - begin
    print(f"read {text.shape[1]} tokens in {seconds:.0f} s into {cache.nbytes / 1e6:.0f} MB")

    # The mask covers what was read too: it says that `question` holds new tokens only.
    mask = torch.ones(1, text.shape[1] + question.shape[1], dtype=torch.int64)
    answer = model.generate(
        question,
        attention_mask=mask,
        past_key_values=cache,
        max_new_tokens=args.max_new_tokens,
        do_sample=False,
    )
    print(tokenizer.decode(answer[0, question.shape[1] :], skip_special_tokens=True).strip())


if __name__ == "__main__":
    main()
