"""What an arena's work consists of: for every contender and seed a job, with a folder of its own.

    OUTPUT/jobs/<contender>/seed-0/job.json          all that decides it
                                   training/         a run of ``allmem distill``, while it goes on
                                   training.json     what came of training
                                   adapter.safetensors
                                   evaluation.json   every figure, question by question

A file is there whole or not at all, so that an arena that was killed goes on where it was. What has
nothing to train has one job without a seed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allmem.arena.config import ArenaConfig
from allmem.arena.contenders import Contender
from allmem.choices import Conversion
from allmem.errors import AllMemError
from allmem.evaluation.rows import folder_name
from allmem.files import atomic_path
from allmem.journal import first_difference
from allmem.schema import build_from

__all__ = ["EVALUATION", "JOB", "TRAINING", "Job", "jobs_of", "read_job", "read_json", "write_json"]

JOB, TRAINING, EVALUATION = "job.json", "training.json", "evaluation.json"


@dataclass(frozen=True)
class Job:
    """One contender with one seed."""

    arena: ArenaConfig
    name: str
    """The contender's."""
    conversion: Conversion
    seed: int | None
    """``None`` where nothing is trained."""
    length: int
    """At which reading is timed."""

    @property
    def label(self) -> str:
        """For people."""
        return self.name if self.seed is None else f"{self.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        own = "untrained" if self.seed is None else f"seed-{self.seed}"
        return Path(self.arena.output) / "jobs" / folder_name(self.name) / own

    def training_identity(self) -> dict[str, Any]:
        """What decides the weights."""
        arena = self.arena
        values = arena.to_dict()
        keys = ("teacher", "dtype", "sizes", "recall", "data", "special_stages", "modules")
        training = dataclasses.replace(arena.training, seed=self.seed or 0).essence()
        return _plain(
            {key: values[key] for key in keys}
            | {"conversion": dataclasses.asdict(self.conversion)}
            | ({} if self.seed is None else {"training": training})
        )

    def evaluation_identity(self) -> dict[str, Any]:
        """What decides the figures of given weights."""
        evaluation = dataclasses.asdict(self.arena.evaluation)
        return _plain({"evaluation": evaluation, "length": self.length, "data": self._judged()})

    def _judged(self) -> dict[str, Any]:
        values = self.arena.to_dict()
        return {key: values[key] for key in ("sizes", "recall", "data")}

    def trained(self) -> dict[str, Any] | None:
        """What came of training, if it is done.

        Raises:
            AllMemError: if it was another training, naming the first difference.
        """
        return self._found(TRAINING, self.training_identity(), refuse=True)

    def evaluated(self) -> dict[str, Any] | None:
        """The figures, if they are there and were measured as they would be now."""
        return self._found(EVALUATION, self.evaluation_identity())

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        trained = self.trained()
        return trained is not None and (bool(trained["diverged"]) or self.evaluated() is not None)

    def _found(
        self, name: str, identity: dict[str, Any], refuse: bool = False
    ) -> dict[str, Any] | None:
        path = self.folder / name
        if not path.is_file():
            return None
        found = read_json(path)
        difference = first_difference(_flat(found.get("identity", {})), _flat(identity))
        if difference is None:
            return found
        if refuse:
            raise AllMemError(
                f"{path} was made with {difference}; choose another output folder, or take this "
                "one's away"
            )
        return None


def jobs_of(arena: ArenaConfig, contenders: Sequence[Contender], length: int) -> list[Job]:
    """All jobs: those without training, then seed by seed, so that an arena that is cut off has
    something to say of everybody.

    Raises:
        AllMemError: if two names would share a folder.
    """
    trained = [one for one in contenders if one.totals.trainable]
    rest = [one for one in contenders if not one.totals.trainable]
    order: list[tuple[Contender, int | None]] = [(one, None) for one in rest]
    order += [(one, seed) for seed in arena.seeds for one in trained]
    jobs = [Job(arena, one.name, one.conversion, seed, length) for one, seed in order]
    taken: dict[Path, str] = {}
    for job in jobs:
        other = taken.setdefault(job.folder, job.name)
        if other != job.name:
            raise AllMemError(
                f"entrants {other!r} and {job.name!r} would share the folder {job.folder}; rename "
                "one of them"
            )
    return jobs


def write_job(job: Job) -> Path:
    """Leave a job for another process; returns its folder."""
    job.folder.mkdir(parents=True, exist_ok=True)
    values = {
        "arena": job.arena.to_dict(),
        "name": job.name,
        "conversion": dataclasses.asdict(job.conversion),
        "seed": job.seed,
        "length": job.length,
    }
    write_json(job.folder / JOB, values)
    return job.folder


def read_job(folder: str | Path) -> Job:
    """The job that ``write_job`` left.

    Raises:
        AllMemError: if it is damaged.
    """
    path = Path(folder) / JOB
    values = read_json(path)
    return Job(
        ArenaConfig.from_dict(values["arena"], str(path)),
        values["name"],
        build_from(Conversion, values["conversion"], str(path)),
        values["seed"],
        values["length"],
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        AllMemError: if it is missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AllMemError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise AllMemError(f"{path} is damaged ({error}); remove it, and make it again") from error
    assert isinstance(values, dict)
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object, whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON keeps it."""
    plain = json.loads(json.dumps(values))
    assert isinstance(plain, dict)
    return plain


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """``{"a": {"b": {"c": 1}}}`` as ``{"a.b.c": 1}``, so that a difference is named."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flat(value) if isinstance(value, dict) else {}
        flat |= {f"{key}.{name}": below for name, below in inner.items()} or {key: value}
    return flat
