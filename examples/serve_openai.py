"""Ask `allmem serve` with OpenAI's client: a whole answer, a stream, and several at once.

    allmem serve smollm2                    # in another terminal
    pip install openai
    python -m examples.serve_openai
    python -m examples.serve_openai --url http://127.0.0.1:8000/v1 "Who was William Morris?"

Run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from openai import OpenAI

QUESTION = "Name three rivers of Europe."


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    args = parser.parse_args(argv)

    # The client wants a key even where the server wants none.
    client = OpenAI(base_url=args.url, api_key=os.environ.get("ALLMEM_API_KEY", "none"))
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": args.question}]

    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=60)
    print(answer.choices[0].message.content)
    print(f"{answer.usage.prompt_tokens} tokens read, {answer.usage.completion_tokens} written")

    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=60, stop=["\n\n"], stream=True
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    # What the protocol does not know goes into `extra_body`.
    several = client.chat.completions.create(
        model=model, messages=messages, max_tokens=20, n=2, seed=1, extra_body={"top_k": 50}
    )
    for choice in several.choices:
        print(f"{choice.index}: {choice.message.content}")


if __name__ == "__main__":
    main()
