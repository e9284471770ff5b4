"""LiveCodeBench as a task: several answers to each problem, run on its tests if the user allows it.

Running code that a model wrote is never done unasked (``Setting.run_code``). The outcome of every
test is stored with the answer, so that scores need no second run; answers that were stored without
are judged when it is asked for.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from allmem.errors import AllMemError
from allmem.evaluation.bad_rows import bad_row
from allmem.evaluation.benchmarks import benchmark
from allmem.evaluation.harness.files import Files, read_files
from allmem.evaluation.harness.livecodebench import (
    Problem,
    extract_code,
    judge,
    pass_at_k,
    read_problem,
)
from allmem.evaluation.model import EvaluatedModel
from allmem.evaluation.prompting import PAPER_NEW_TOKENS, check_can_cut, make_prompt
from allmem.evaluation.rows import RowsFile
from allmem.evaluation.sources import Source, read_lines
from allmem.evaluation.task import Example, Part, Request, Row, Setting, Task
from allmem.evaluation.thinking import after_thinking
from allmem.evaluation.user_files import Line
from allmem.evaluation.verdicts import add_verdicts
from allmem.reading import Sampling

__all__ = ["CodeTask"]

HUB = "livecodebench/code_generation_lite"
PARTS = ("test.jsonl", *(f"test{number}.jsonl" for number in range(2, 6)))
"""The files of ``release_v5``: 880 problems, May 2023 to January 2025."""
WHOLE = "livecodebench_v5.jsonl"
"""All of them in one file."""
SAMPLES = 10
SAMPLING = Sampling(temperature=0.2, top_p=0.95)
NEW_TOKENS = 2000
"""The benchmark's own (``runner/parser.py``)."""


class CodeTask(Task):
    """LiveCodeBench v5: programs for problems of contests, run on their tests."""

    name = "short/livecodebench_v5"
    metric = "pass@1"

    def examples(self, setting: Setting, model: EvaluatedModel) -> Iterable[Example]:
        if not setting.run_code:
            warnings.warn(
                f"{self.name}: answers are stored but not scored, since code that a model wrote "
                "is run only when it is asked for; the same command with --run-code judges them",
                stacklevel=2,
            )
        check_can_cut(model, setting.truncate or _shortens(model, setting))
        found = 0
        for line in _lines(setting):
            if setting.limit is not None and found >= setting.limit:
                break
            try:
                problem = read_problem(line.values)
            except ValueError as error:
                bad_row(setting, f"{line.place}: {error}")
                continue
            found += 1
            cell = {"difficulty": problem.difficulty} if problem.difficulty else {}
            reference = {"platform": problem.platform, "date": problem.date}
            yield Example(problem.id, problem, reference, cell)
        if not found:
            raise AllMemError(f"{self.name}: there is not one problem that can be read")

    def answer(
        self, model: EvaluatedModel, examples: Sequence[Example], setting: Setting
    ) -> list[Row]:
        sampling = _sampling(setting)
        samples = SAMPLES if sampling.temperature > 0 else 1
        prompts = [make_prompt(_request(e.ask, model, setting), model, setting) for e in examples]
        rows: list[Row] = [
            {
                "predictions": [],
                "sampling": dataclasses.asdict(sampling),
                "cut": prompt.cut,
                "new_tokens": 0,
                "finished": True,
            }
            for prompt in prompts
        ]
        for sample in range(samples):
            numbers = [Example(f"{e.id}#{sample}", None).number(setting.seed) for e in examples]
            completions = model.complete(prompts, sampling, numbers)
            for row, completion in zip(rows, completions, strict=True):
                row["predictions"].append(after_thinking(completion.text))
                row["prompt_tokens"] = completion.prompt_tokens
                row["new_tokens"] += (completion.new_tokens or 0) / samples
                row["finished"] &= completion.finished
        if setting.run_code:
            for example, row in zip(examples, rows, strict=True):
                row |= _judged(example.ask, row["predictions"])
        return rows

    def settle(self, path: Path, examples: Sequence[Example], setting: Setting) -> None:
        """Judge answers that were stored before it was asked for."""
        if not setting.run_code:
            return
        problems = {example.id: example.ask for example in examples}
        rows = [row for row in RowsFile(path).rows() if "outcomes" not in row]
        add_verdicts(path, rows, lambda row: _judged(problems[row["id"]], row["predictions"]))

    def parts(self, row: Row) -> list[Part]:
        """Nothing for answers that were not judged."""
        if "outcomes" not in row:
            return []
        outcomes = row["outcomes"]
        right = sum(all(verdict == "pass" for verdict in verdicts) for verdicts in outcomes)
        scores = {
            f"pass@{k}": pass_at_k(len(outcomes), right, k) for k in (1, 5) if k <= len(outcomes)
        }
        return [Part(scores, row["cell"])]


def _judged(problem: Problem, predictions: Sequence[str]) -> Row:
    outcomes: list[list[str]] = []
    isolation: dict[str, bool] = {}
    for prediction in predictions:
        verdicts, kept = judge(extract_code(prediction), problem)
        outcomes.append(verdicts)
        isolation |= kept
    open_ways = [way for way in ("network", "files") if isolation and not isolation[way]]
    if open_ways:
        warnings.warn(
            f"this system lets programs that a model wrote reach: {', '.join(open_ways)}; run this "
            "task in a container without them",
            stacklevel=2,
        )
    return {"outcomes": outcomes, "isolation": isolation}


def _sampling(setting: Setting) -> Sampling:
    """The benchmark's own, unless the user or the protocol says otherwise."""
    if setting.protocol == "paper" or setting.greedy or setting.sampling.temperature > 0:
        return setting.sampling
    return dataclasses.replace(SAMPLING, seed=setting.seed)


def _shortens(model: EvaluatedModel, setting: Setting) -> int | None:
    """The reach to which the paper's long answers have to be fitted."""
    chosen = setting.protocol != "paper" or setting.max_new_tokens is not None
    return None if chosen else model.reach


def _request(problem: Problem, model: EvaluatedModel, setting: Setting) -> Request:
    """The question with the benchmark's system message; in one text for a model without turns."""
    system = benchmark("livecodebench")["system"]
    chats = model.tokenizer is None or bool(model.tokenizer.chat_template)
    return Request(
        text=problem.prompt if chats else f"{system}\n\n{problem.prompt}",
        max_new_tokens=PAPER_NEW_TOKENS if setting.protocol == "paper" else NEW_TOKENS,
        least_new_tokens=NEW_TOKENS,
        system=system if chats else None,
    )


def _lines(setting: Setting) -> Iterator[Line]:
    if setting.data is None:
        for part in PARTS:
            name = part.removesuffix(".jsonl")
            yield from read_lines(Source("livecodebench", name, HUB, part), setting)
        return
    for part in PARTS:
        patterns = (f"code_generation_lite/{part}", f"livecodebench/{part}")
        whole = (WHOLE,) if part == PARTS[0] else ()
        for line in read_files(Files((*whole, *patterns), HUB), setting):
            yield line
        if Path(line.file).name.startswith(WHOLE):
            return
