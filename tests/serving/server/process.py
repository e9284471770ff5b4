"""A server in a process of its own: ``python -m tests.serving.server.process PAUSE GRACE``.

It prints its address and writes without end, a token every ``PAUSE`` seconds.
"""

from __future__ import annotations

import sys

from allmem.serving.server.app import create_app
from allmem.serving.server.running import run
from allmem.serving.server.sockets import address, bind
from tests.cli.conftest import make_tokenizer
from tests.serving.server.fake import FakeEngine, make_service


def say(line: str) -> None:
    """Tell whoever started this."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until a signal comes."""
    pause, grace = map(float, sys.argv[1:3])
    service = make_service(FakeEngine(make_tokenizer(), pause=pause, forever=True))
    sock = bind("127.0.0.1", 0)
    app = create_app(service)
    run(service, app, sock, grace=grace, ready=lambda: say(address(sock)))


if __name__ == "__main__":
    main()
