"""LiveCodeBench: what its problems hold, how it asks, and when an answer is right.

After LiveCodeBench/LiveCodeBench at 28fef95e (``benchmarks/code_generation.py``,
``prompts/code_generation.py``, ``utils/extraction_utils.py``, ``evaluation/testing_util.py`` and
``pass_k_utils.py``). One difference: programs run as programs, with a standard input of their own,
where the official code imitates one within its process; its imitation gives
``sys.stdin.buffer.readline`` the first line again and again.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import pickle
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from allmem.evaluation.benchmarks import benchmark
from allmem.evaluation.harness.sandbox import Limits, Outcome, Sandbox

__all__ = ["Problem", "Trial", "extract_code", "judge", "pass_at_k", "read_problem"]


@dataclass(frozen=True)
class Trial:
    """An input and what it should give."""

    input: str
    output: str


@dataclass(frozen=True)
class Problem:
    """A problem."""

    id: str
    question: str
    starter_code: str
    difficulty: str
    platform: str
    date: str
    function: str | None
    """That is to be called, for problems that give the head of one; else a program is asked for."""
    tests: tuple[Trial, ...]

    @property
    def prompt(self) -> str:
        """The question as the benchmark asks it."""
        prompts = benchmark("livecodebench")
        form = prompts["with_starter_code" if self.starter_code else "without_starter_code"]
        return form.replace("{starter_code}", self.starter_code).replace(
            "{question}", self.question
        )


def read_problem(row: Mapping[str, Any]) -> Problem:
    """A row of ``livecodebench/code_generation_lite``.

    Raises:
        ValueError: with what is wrong with it.
    """
    try:
        tests = json.loads(row["public_test_cases"]) + _private_tests(row["private_test_cases"])
        return Problem(
            id=str(row["question_id"]),
            question=row["question_content"],
            starter_code=row.get("starter_code") or "",
            difficulty=str(row.get("difficulty", "")),
            platform=str(row.get("platform", "")),
            date=str(row.get("contest_date", ""))[:10],
            function=json.loads(row.get("metadata") or "{}").get("func_name"),
            tests=tuple(Trial(test["input"], test["output"]) for test in tests),
        )
    except KeyError as error:
        raise ValueError(f"the field {error.args[0]!r} is missing") from error
    except TypeError as error:
        raise ValueError(f"a field is of the wrong kind ({error})") from error


def extract_code(answer: str) -> str:
    """The text between the last two lines with a fence; nothing if there are fewer."""
    lines = answer.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) >= 2 else ""


def judge(
    code: str, problem: Problem, limits: Limits | None = None
) -> tuple[list[str], dict[str, bool]]:
    """Run a program on the tests of a problem up to the first that it fails.

    Returns:
        ``pass``, ``wrong``, ``error`` or ``timeout`` for each test that was run, and what the
        sandbox kept away.
    """
    if not code.strip():
        return ["error"], {}
    verdicts = []
    prelude = benchmark("livecodebench")["prelude"]
    with Sandbox(code, problem.function, prelude, limits) as sandbox:
        for test in problem.tests:
            verdicts.append(_verdict(sandbox.run(test.input), test, problem.function is not None))
            if verdicts[-1] != "pass":
                break
        return verdicts, sandbox.isolation


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that one of ``k`` answers, drawn from ``samples``, is right: without bias
    (arXiv:2107.03374, equation 1)."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def _verdict(outcome: Outcome, test: Trial, calls: bool) -> str:
    if outcome.status != "ok":
        return outcome.status
    if calls:
        try:
            same = json.loads(outcome.output) == json.loads(test.output)
        except ValueError:
            # It ended itself before its function returned.
            return "error"
        return "pass" if same else "wrong"
    got, expected = (_lines(text) for text in (outcome.output, test.output))
    if len(got) != len(expected):
        return "wrong"
    return "pass" if all(map(_same_line, got, expected)) else "wrong"


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_line(got: str, expected: str) -> bool:
    """As texts, else as numbers without rounding."""
    return got == expected or (
        (numbers := _numbers(got)) is not None and numbers == _numbers(expected)
    )


def _numbers(line: str) -> Sequence[Decimal] | None:
    try:
        return [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None


def _private_tests(packed: str) -> list[dict[str, Any]]:
    """JSON, or JSON that was pickled, compressed and written in base64."""
    try:
        return json.loads(packed)
    except ValueError:
        pass
    try:
        pickled = zlib.decompress(base64.b64decode(packed.encode()))
        return json.loads(_TextUnpickler(io.BytesIO(pickled)).load())
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, IndexError) as error:
        raise ValueError(f"the private tests cannot be unpacked ({error})") from error


class _TextUnpickler(pickle.Unpickler):
    """Reads texts, numbers, lists; a file that names a class or a function is refused, since
    loading it would call it."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and should hold a text")
