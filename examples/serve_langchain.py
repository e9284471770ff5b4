"""Ask `allmem serve` from LangChain.

    allmem serve smollm2                    # in another terminal
    pip install langchain-openai
    python -m examples.serve_langchain

Run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from langchain_openai import ChatOpenAI


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="smollm2", help="as the server calls it")
    args = parser.parse_args(argv)

    chat = ChatOpenAI(
        base_url=args.url,
        api_key=os.environ.get("ALLMEM_API_KEY", "none"),
        model=args.model,
        max_tokens=40,
        extra_body={"top_k": 20},
    )
    turns = [("system", "Answer in one sentence."), ("human", "What is a loom?")]
    print(chat.invoke(turns).content)
    for chunk in chat.stream(turns):
        print(chunk.content, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
