"""Short tasks (table 1 of the paper): knowledge, common sense, reasoning, instructions, code.

All but LiveCodeBench are lm-eval's definitions, met through ``evaluation/harness``. Here stands
which of its tasks is which, where its rows are, and which of its figures is reported first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from allmem.evaluation.harness import forms
from allmem.evaluation.harness.code_task import CodeTask
from allmem.evaluation.harness.definitions import Definition, Rows
from allmem.evaluation.harness.files import Files
from allmem.evaluation.harness.sentences import provide_sentences
from allmem.evaluation.harness.task import HarnessTask
from allmem.evaluation.task import Task

__all__ = ["GROUPS", "TASKS"]

ARC = ("question", "choices", "answerKey")


def _arc(name: str, folder: str, metric: str) -> HarnessTask:
    patterns = (f"{name}_test.jsonl", f"{folder}/test-*.parquet", f"{folder}/test.jsonl")
    rows = Rows(Files(patterns, "allenai/ai2_arc"), forms.arc)
    return HarnessTask(f"short/{name}", metric, rows, Definition("arc", name, ARC))


def _hellaswag() -> HarnessTask:
    patterns = (
        "hellaswag_val.jsonl",
        "hellaswag/data/validation-*.parquet",
        "hellaswag/validation-*.parquet",
    )
    rows = Rows(Files(patterns, "Rowan/hellaswag"), forms.hellaswag)
    definition = Definition("hellaswag", "hellaswag", ("query", "choices", "label"))
    return HarnessTask("short/hellaswag", "acc_norm", rows, definition)


def _winogrande() -> HarnessTask:
    patterns = ("winogrande_val.jsonl", "winogrande_xl/validation-*.parquet", "dev.jsonl")
    rows = Rows(Files(patterns, "allenai/winogrande"), forms.winogrande)
    keep = ("sentence", "option1", "option2", "answer")
    definition = Definition("winogrande", "winogrande", keep)
    return HarnessTask("short/winogrande", "acc", rows, definition)


def _ceval() -> HarnessTask:
    rows = Rows(
        Files(("ceval_val.jsonl", "{subject}/val-*.parquet", "val/{subject}_val.csv"), CEVAL),
        forms.ceval,
        Files(("ceval_dev.jsonl", "{subject}/dev-*.parquet", "dev/{subject}_dev.csv"), CEVAL),
    )
    keep = ("question", "A", "B", "C", "D", "answer")
    definition = Definition("ceval", "ceval-valid_{subject}", keep, shots=5)
    return HarnessTask("short/ceval", "acc", rows, definition)


CEVAL = "ceval/ceval-exam"


def _mmlu_redux() -> HarnessTask:
    patterns = ("mmlu_redux.jsonl", "mmlu-redux*/{subject}/*.parquet")
    rows = Rows(Files(patterns, "fxmarty/mmlu-redux-2.0-ok"), forms.mmlu_redux)
    definition = Definition(
        "mmlu-redux/generative",
        "mmlu_redux_{subject}_generative",
        ("question", "choices", "answer"),
    )
    return HarnessTask("short/mmlu_redux", "exact_match", rows, definition)


def _gpqa_diamond() -> HarnessTask:
    """Officially the likeliest choice; under the paper's protocol ten sampled chains of thought."""
    rows = Rows(Files(("gpqa_diamond.csv", "gpqa_diamond.jsonl"), "Idavidrein/gpqa"), forms.gpqa)
    keep = ("Question", "choice1", "choice2", "choice3", "choice4", "answer")
    paper = Definition(
        "gpqa/cot_zeroshot",
        "gpqa_diamond_cot_zeroshot",
        (*keep, "choices"),
        samples=10,
        names={"exact_match,flexible-extract": "acc", "exact_match,strict-match": "acc_strict"},
    )
    official = Definition("gpqa/zeroshot", "gpqa_diamond_zeroshot", keep)
    return HarnessTask("short/gpqa_diamond", "acc", rows, official, paper)


def _ifeval() -> HarnessTask:
    rows = Rows(Files(("ifeval_input_data.jsonl",), "google/IFEval"), forms.ifeval)
    keep = ("key", "prompt", "instruction_id_list", "kwargs")
    definition = Definition("ifeval", "ifeval", keep)
    return HarnessTask(
        "short/ifeval", "prompt_level_strict_acc", rows, definition, prepare=provide_sentences
    )


def _math500(name: str, folder: str, task: str, metric: str) -> HarnessTask:
    files = Files(("math500_test.jsonl", "MATH-500/test.jsonl"), "HuggingFaceH4/MATH-500")
    definition = Definition(folder, task, ("problem", "solution", "answer"))
    return HarnessTask(f"short/{name}", metric, Rows(files, forms.math500), definition)


TASKS: dict[str, Callable[[], Task]] = {
    "short/ceval": _ceval,
    "short/arc_easy": partial(_arc, "arc_easy", "ARC-Easy", "acc"),
    "short/arc_challenge": partial(_arc, "arc_challenge", "ARC-Challenge", "acc_norm"),
    "short/hellaswag": _hellaswag,
    "short/winogrande": _winogrande,
    "short/mmlu_redux": _mmlu_redux,
    "short/gpqa_diamond": _gpqa_diamond,
    "short/ifeval": _ifeval,
    "short/math500": partial(_math500, "math500", "minerva_math", "minerva_math500", "math_verify"),
    # Without examples, and without sympy and math_verify: the last text between dollar signs.
    "short/math500_plain": partial(
        _math500, "math500_plain", "hendrycks_math", "hendrycks_math500", "exact_match"
    ),
    "short/livecodebench_v5": CodeTask,
}

PAPER = (
    "short/ceval",
    "short/arc_easy",
    "short/arc_challenge",
    "short/hellaswag",
    "short/winogrande",
    "short/mmlu_redux",
    "short/gpqa_diamond",
    "short/ifeval",
    "short/math500",
    "short/livecodebench_v5",
)
GROUPS: dict[str, tuple[str, ...]] = {"short": PAPER[:-1], "short-paper": PAPER}
