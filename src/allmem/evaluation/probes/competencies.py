"""The four competencies of MemoryAgentBench, in generated form: to retrieve, to learn at test time,
to understand a text as a whole, and to let later facts override earlier ones.

The names are the benchmark's; texts, questions and scoring are allmem's own, and figures do not
compare with published ones.
"""

from __future__ import annotations

from collections.abc import Callable

from allmem.evaluation.probes.base import Cell, Probe, Question, Script
from allmem.evaluation.probes.cast import Cast
from allmem.evaluation.probes.composing import Plant
from allmem.evaluation.probes.updates import PREFIX, ask_latest, scattered
from allmem.evaluation.task import Setting, Task

__all__ = ["CLASSES", "TASKS", "Conflicts", "Learning", "Retrieval", "Understanding"]

CLASSES = {
    "animal": "otter badger heron lizard donkey falcon rabbit beetle salmon weasel goose tiger",
    "tool": "hammer chisel shovel pliers anvil spanner hatchet sickle wrench trowel saw drill",
    "fruit": "apple cherry lemon peach plum grape banana melon apricot fig mango pear",
    "garment": "jacket scarf mitten apron trousers sweater blouse cloak sandal bonnet vest shirt",
}
"""What a made-up label may stand for."""
PEOPLE = 16
COUNTS = range(1, 10)
"""How often something may happen."""


class Retrieval(Probe):
    """``probes/retrieval``: accurate retrieval; one of many people's facts."""

    name = "probes/retrieval"
    shared = 2

    def script(self, cast: Cast, cell: Cell, setting: Setting) -> Script:
        facts = [cast.fact() for _ in range(PEOPLE)]
        plants = [Plant(fact.stated[0], cast.rng.random()) for fact in facts]
        questions = [
            Question(
                fact.subject.asks.format(name=fact.name),
                fact.values,
                tuple(fact.stated),
                fact.prefix,
            )
            for fact in cast.rng.sample(facts, self.shared)
        ]
        return Script(plants, questions)


class Learning(Probe):
    """``probes/learning``: test-time learning; made-up labels for kinds of things, from examples,
    then things that were not among them."""

    name = "probes/learning"
    metric = "choice"
    shared = len(CLASSES)

    def cells(self, setting: Setting) -> list[Cell]:
        return [{"examples": n} for n in ((8,) if setting.quick else (1, 4, 8))]

    def script(self, cast: Cast, cell: Cell, setting: Setting) -> Script:
        shown = int(cell["examples"])
        labels = {kind: cast.word() for kind in CLASSES}
        plants, new = [], []
        for kind, words in CLASSES.items():
            things = cast.rng.sample(words.split(), shown + 1)
            new.append((things[-1], labels[kind]))
            plants += [
                Plant(f"Entry: {thing}. Label: {labels[kind]}.", cast.rng.random())
                for thing in things[:-1]
            ]
        questions = [
            Question(
                "Entries of one kind have the same label. What is the label of a new entry: "
                f"{thing}?",
                (label,),
                tuple(p.text for p in plants if p.text.endswith(f" {label}.")),
                "Label:",
                rivals=tuple(other for other in labels.values() if other != label),
            )
            for thing, label in new
        ]
        cast.rng.shuffle(plants)
        return Script(plants, questions)


class Understanding(Probe):
    """``probes/understanding``: long-range understanding; which event was most frequent, and how
    often one came."""

    name = "probes/understanding"
    metric = "choice"

    def script(self, cast: Cast, cell: Cell, setting: Setting) -> Script:
        cities = cast.values("city", 4)
        told = {city: f"The bell of {city} rang." for city in cities}
        counts = dict(zip(cities, cast.rng.sample(COUNTS, len(cities)), strict=True))
        events = [city for city in cities for _ in range(counts[city])]
        plants = [Plant(told[city], cast.rng.random()) for city in events]
        most = max(cities, key=lambda city: counts[city])
        asked = cast.rng.choice(cities)
        number = str(counts[asked])
        questions = [
            Question(
                f"Of {', '.join(sorted(cities))}: the bell of which city rang most often?",
                (most,),
                tuple(told.values()),
                "Most often rang the bell of",
                {"kind": "most frequent"},
                rivals=tuple(city for city in cities if city != most),
            ),
            Question(
                f"How many times did the bell of {asked} ring?",
                (number,),
                (told[asked],),
                "Number of times:",
                {"kind": "count"},
                rivals=tuple(str(n) for n in COUNTS if str(n) != number),
            ),
        ]
        return Script(plants, questions)


class Conflicts(Probe):
    """``probes/conflicts``: later facts override; asked directly, and over one fact more."""

    name = "probes/conflicts"

    def script(self, cast: Cast, cell: Cell, setting: Setting) -> Script:
        single = cast.fact(2, ("city", "number"))
        master, former, latter = cast.name(), cast.name(), cast.name()
        old, new = cast.values("city", 2)
        told = [
            f"The apprentice of {master} is {former}.",
            f"Since the spring, the apprentice of {master} is {latter}.",
        ]
        # Both apprentices come from somewhere: only who is the present one tells them apart.
        homes = [f"{former} grew up in {old}.", f"{latter} grew up in {new}."]
        plants = [
            *scattered(cast, single.changed),
            *scattered(cast, told),
            *(Plant(home, cast.rng.random()) for home in homes),
        ]
        questions = [
            ask_latest(cast, single, {"hops": 1}),
            Question(
                f"In which city did the present apprentice of {master} grow up?",
                (new,),
                (told[1], homes[1]),
                PREFIX[cast.language],
                {"hops": 2},
                stale=(old,),
            ),
        ]
        return Script(plants, questions)


TASKS: dict[str, Callable[[], Task]] = {
    "probes/retrieval": Retrieval,
    "probes/learning": Learning,
    "probes/understanding": Understanding,
    "probes/conflicts": Conflicts,
}
