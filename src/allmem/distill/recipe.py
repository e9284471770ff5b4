"""A recipe: everything that a distillation run needs, in one YAML file.

``load_recipe`` reads a file or a preset and puts ``key=value`` settings in place of its own values.
A key that is not known is an error that names the nearest one. ``allmem.distill.launch`` carries a
recipe out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from allmem.choices import Conversion
from allmem.data.fact_lists import FactLists
from allmem.data.interviews import Interviews
from allmem.data.recitations import Recitations
from allmem.distill.config import DistillConfig
from allmem.errors import AllMemError, unknown_name
from allmem.schema import build_from, check_positive, override, read_yaml

__all__ = [
    "RECIPE",
    "DataSource",
    "OnPolicySource",
    "Recipe",
    "TeacherSource",
    "load_recipe",
    "preset_names",
    "recipe_text",
]

RECIPE = "recipe.yaml"
"""What a run leaves beside its figures, to be run again."""


@dataclass(frozen=True)
class OnPolicySource:
    """Prompts that the student answers anew at every step (paper section 3.3.3, online).

    Raises:
        AllMemError: on a share that is none.
    """

    prompts: tuple[str, ...]
    """Files of chats; the answers in them are not read."""
    max_new_tokens: int = 512
    thinking: bool = False
    share: float = 1.0
    """Of the rows; the others are those that are given beside."""

    def __post_init__(self) -> None:
        check_positive(max_new_tokens=self.max_new_tokens)
        if not self.prompts:
            raise AllMemError("prompts is empty; name at least one file")
        if not 0 < self.share <= 1:
            raise AllMemError(f"share = {self.share} must lie above 0 and up to 1")


SOURCES = ("folder", "texts", "responses", "facts", "recitations", "interviews", "mixture")
"""The keys of a data source that name rows."""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


@dataclass(frozen=True)
class DataSource:
    """What to learn from. Give one of ``folder``, ``texts``, ``responses``, ``facts``,
    ``recitations``, ``interviews``, ``mixture`` and ``on_policy``; one of the others beside the
    last if that has a share below 1.

    Raises:
        AllMemError: if none or several are given, or a number is not positive.
    """

    folder: str | None = None
    """Made by ``allmem data build``."""
    texts: tuple[str, ...] = ()
    """Plain text files in UTF-8, of which every token is learned."""
    responses: str | None = None
    """Made by ``allmem collect``: the student's own answers (offline on-policy distillation)."""
    facts: FactLists | None = None
    """Lists of facts that are made as they are read; nothing is learned of them but to recall."""
    recitations: Recitations | None = None
    """Prose that is said twice, made as it is read."""
    interviews: Interviews | None = None
    """Chats about facts that prose hides, made as they are read."""
    mixture: tuple[dict[str, Any], ...] = ()
    """Several sources in turn: the keys of each, and ``share``, how many of its rows come in a
    turn (default 1)."""
    on_policy: OnPolicySource | None = None
    mix: dict[str, float] = field(default_factory=dict)
    """Of a folder: length class -> share of the rows; default: all in proportion."""
    length: int = 1024
    """Tokens of a row made of texts or responses."""
    held_out: str | None = None
    """To be judged by, of the same kind as the data: a text file, a folder, or a file of responses;
    default: what is kept back of the data."""
    evaluated: int = 8
    """Held-out rows: eight of a thousand tokens tell a tenth of the window's KL."""

    def __post_init__(self) -> None:
        given = [name for name in SOURCES if getattr(self, name)]
        needed = self.on_policy is None or self.on_policy.share < 1
        if len(given) != needed:
            found = " and ".join(given) or "none"
            if self.on_policy is None:
                raise AllMemError(f"give one of {_listed(SOURCES)} and on_policy (found {found})")
            others = "needs one" if needed else "goes without any"
            raise AllMemError(
                f"on_policy with share = {self.on_policy.share} {others} of {_listed(SOURCES)} "
                f"beside it (found {found})"
            )
        _ = self.parts
        if self.mix and not self.folder:
            raise AllMemError("mix is for a folder with length classes")
        if self.held_out and not (self.folder or self.texts or self.responses):
            raise AllMemError(
                f"held_out = {self.held_out!r} is for folder, texts and responses; rows that are "
                "made, mixture and on_policy hold back some of their own"
            )
        check_positive(length=self.length, evaluated=self.evaluated)

    @property
    def made(self) -> FactLists | Recitations | Interviews | None:
        """What rows that are made as they are read look like."""
        return self.facts or self.recitations or self.interviews

    @property
    def parts(self) -> list[tuple[int, DataSource]]:
        """The sources of a mixture, each with its share.

        Raises:
            AllMemError: if one of them is none, or is a mixture or on-policy itself.
        """
        found = []
        for number, values in enumerate(self.mixture, 1):
            where = f"mixture, source {number}"
            own = {key: value for key, value in values.items() if key != "share"}
            share = values.get("share", 1)
            if not isinstance(share, int) or isinstance(share, bool) or share < 1:
                raise AllMemError(f"{where}: share = {share!r} must be a positive whole number")
            if inner := sorted({"mixture", "on_policy", "evaluated"} & set(own)):
                raise AllMemError(f"{where}: {inner[0]} belongs beside the mixture, not into it")
            found.append((share, build_from(DataSource, own, where)))
        return found


@dataclass(frozen=True)
class TeacherSource:
    """Who is imitated.

    Raises:
        AllMemError: if a model is named and not wanted, or the other way round.
    """

    kind: Literal["own", "model", "stored"] = "own"
    """``own``: the student's weights with full attention; ``model``: another model; ``stored``:
    answers in the data folder, from ``allmem data teach``."""
    model: str | None = None
    dtype: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "model") != (self.model is not None):
            raise AllMemError(f"kind = {self.kind!r} and model = {self.model!r} do not go together")


@dataclass(frozen=True)
class Recipe:
    """A whole run. See ``docs/distillation.md`` for every key.

    Raises:
        AllMemError: on values that do not fit together.
    """

    model: str
    """What to distil: a hub name, a folder, a GGUF file, or ``smollm2``."""
    output: str
    """Folder of the run."""
    data: DataSource
    training: DistillConfig
    conversion: Conversion = field(default_factory=Conversion)
    """Of a model that is not converted yet."""
    adapter: str | None = None
    """Trained memories to go on from."""
    other_base: bool = False
    """Load the adapter although its base had other weights."""
    dtype: str | None = None
    """Precision of the frozen weights and of the computation; default: as saved."""
    device: str | None = None
    """Default: the GPU, if there is one; with several processes each has its own."""
    teacher: TeacherSource = field(default_factory=TeacherSource)

    def __post_init__(self) -> None:
        if self.data.on_policy is None:
            return
        if self.teacher.kind == "stored":
            raise AllMemError("teacher.kind = stored has no answers to what data.on_policy makes")
        if self.training.workers or self.training.fsdp:
            raise AllMemError(
                "data.on_policy needs training.workers = 0 and training.fsdp = false: rows are "
                "made by the weights of their step, and differ in length from process to process"
            )


def preset_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("allmem.resources") / "presets"
    names = [file.name for file in folder.iterdir()]
    return sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml"))


def load_recipe(source: str, settings: Iterable[str] = (), **values: Any) -> Recipe:
    """A recipe from a YAML file, or from a preset's name.

    Args:
        settings: ``key=value`` each, in place of the file's; ``training.lr=1e-3`` reaches inside.
        values: the same as keyword arguments; ``None`` is ignored.

    Raises:
        AllMemError: if there is no such file or preset, or it holds what a recipe refuses.
    """
    path: Any = Path(source)
    if not path.is_file():
        if source not in preset_names():
            if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
                raise AllMemError(f"there is no file {source}")
            raise AllMemError(
                f"{unknown_name('preset', source, preset_names())}; or name a YAML file"
            )
        path = resources.files("allmem.resources") / "presets" / f"{source}.yaml"
    found = override(read_yaml(path), settings)
    found |= {key: value for key, value in values.items() if value is not None}
    return build_from(Recipe, found, source)


def recipe_text(recipe: Recipe) -> str:
    """A recipe with all its keys as YAML; loading it gives the same recipe."""
    import yaml

    return yaml.safe_dump(_plain(dataclasses.asdict(recipe)), sort_keys=False).rstrip()


def _plain(value: Any) -> Any:
    """Without tuples, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
