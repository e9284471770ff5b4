"""Read a text once, keep what it left behind as a file, and ask about it in another process.

    python -m examples.save_and_fork read book.safetensors     # or: read STATE TEXT
    python -m examples.save_and_fork ask book.safetensors      # or: ask STATE QUESTION ...

Run it from the root of the repository. The second command reads no text: it loads the state, and
asks each question of a copy of it, so no question sees the ones before. Without a trained adapter
the memory adds nothing, and answers rest on the window and the sinks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

import allmem
from allmem.models.sources import smollm2_file
from allmem.prompts import DocumentPrompt
from examples.quickstart import read_text

QUESTIONS = ("Who are the people that Walter sees?", "What is the name of Walter's father?")


def open_model(args: argparse.Namespace) -> tuple[allmem.AllMemForCausalLM, DocumentPrompt]:
    """The same model in both processes: a state is of no use to any other."""
    source = args.model or smollm2_file()
    # An untrained memory starts from random weights. Checkpoints and adapters need no seed.
    torch.manual_seed(0)
    if args.adapter:
        model = allmem.load_adapter(source, args.adapter)
    else:
        model = allmem.convert(source, window=args.window, sinks=args.sinks, chunk=args.chunk)
    return model, DocumentPrompt(allmem.load_tokenizer(source))


def read(args: argparse.Namespace) -> None:
    model, prompt = open_model(args)
    ids = torch.tensor([prompt.document(read_text(args.text))])  # [1, T]
    cache = allmem.AllMemCache(model.config)
    with torch.no_grad():
        model(ids, past_key_values=cache, logits_to_keep=1)
    cache.save(args.state, model, note={"text": str(args.text or "a novel's beginning")})
    print(f"{ids.shape[1]} tokens are now {args.state} ({args.state.stat().st_size / 1e6:.0f} MB)")


def ask(args: argparse.Namespace) -> None:
    model, prompt = open_model(args)
    cache = allmem.AllMemCache.load(args.state, model)
    for question in args.questions or QUESTIONS:
        ids = torch.tensor([prompt.question(question)])  # [1, Q]
        fork = cache.fork()
        # The mask covers what was read too: it says that `ids` holds new tokens only.
        mask = torch.ones(1, fork.get_seq_length() + ids.shape[1], dtype=torch.int64)
        answer = model.generate(
            ids,
            attention_mask=mask,
            past_key_values=fork,
            max_new_tokens=args.max_new_tokens,
            do_sample=False,
        )
        text = prompt.tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
        print(f"{question}\n    {text.strip()}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model", help="hub name, folder or GGUF file; default: SmolLM2-135M")
    model.add_argument("--adapter", type=Path, help="trained memories for this model")
    model.add_argument("--window", type=int, default=1024)
    model.add_argument("--sinks", type=int, default=16)
    model.add_argument("--chunk", type=int, default=256)
    commands = parser.add_subparsers(required=True)
    reading = commands.add_parser("read", parents=[model], help="read a text, save the state")
    reading.add_argument("state", type=Path)
    reading.add_argument("text", type=Path, nargs="?", help="UTF-8 text")
    reading.set_defaults(run=read)
    asking = commands.add_parser("ask", parents=[model], help="load a state, ask questions")
    asking.add_argument("state", type=Path)
    asking.add_argument("questions", nargs="*")
    asking.add_argument("--max-new-tokens", type=int, default=40)
    asking.set_defaults(run=ask)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
