"""What a user may choose about several memories in one layer (``allmem.mixers.several``): what they
are, how they share chunk and size, and whether a router stands before them.

Knows of memories what the registry knows: their names and options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from allmem.config import MemoryConfig, ProjectionOptions, require_choice, require_positive
from allmem.errors import AllMemError, unknown_name
from allmem.mixers.base import MemoryMixer, Mixer
from allmem.mixers.registry import MemoryKind, memory_kind

__all__ = ["MULTISCALE", "ROUTED", "SeveralOptions", "in_proportion"]

Route = Literal["none", "topk"]
Scale = Literal["channel", "none"]
Part = dict[str, Any]
"""{"mixer": name, "options": {...}}."""

KEYS = ("mixer", "options")


def in_proportion(chunk: int, wanted: int, largest: int) -> int:
    """A part's chunk where the largest of all parts is to be ``wanted``; at least 1."""
    return max(1, chunk * wanted // largest)


@dataclass(frozen=True)
class SeveralOptions(ProjectionOptions):
    """Options of several memories in one layer. ``projections`` with its ``rank`` (or the largest
    that a part has room for), and ``start``, are those of every part that has not chosen another
    than the default; ``write_scope`` and ``read_scope`` are those of all.

    Raises:
        AllMemError: on a value outside its range, and whatever the parts' own options raise.
    """

    state_sizes: ClassVar[tuple[str, ...]] = ("size",)

    parts: tuple[Part, ...] = ({"mixer": "allmem"}, {"mixer": "gated_deltanet"})
    """What they are: ``{"mixer": name, "options": {...}}`` each."""
    chunk: int | None = None
    """The largest chunk of a part; the others follow in proportion, at least 1. ``None`` for the
    chunks that the parts name."""
    size: int | None = None
    """What the parts' ``width`` (``allmem`` and ``lact``) or ``key_dim`` (others) add up to, in
    equal shares for those that name none; ``None`` for what one memory would have."""
    scale: Scale = "channel"
    """Whether every part but the first has a scale of its own for each channel."""
    route: Route = "none"
    """Whether all parts get every token, or those that a router chooses."""
    topk: int = 2
    """Parts that get a token where there is a router."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_positive(name, chunk=self.chunk, size=self.size, topk=self.topk)
        require_choice(name, "scale", self.scale, get_args(Scale))
        require_choice(name, "route", self.route, get_args(Route))
        if len(self.parts) < 2:
            raise AllMemError(
                f"{name}: parts = {list(self.parts)!r} names {len(self.parts)}; name two memories "
                "or more"
            )
        parts = [_part(i, part) for i, part in enumerate(self.parts)]
        self._check_routing(parts)
        chunks = [options.chunk for _, options in parts if _chunk(options) is not None]
        if self.chunk is not None and not chunks:
            raise AllMemError(f"{name}: chunk = {self.chunk}, but no part writes in chunks")
        largest = max(chunks, default=None)
        filled = []
        for kind, options in parts:
            values = options.to_dict()
            if self.chunk is not None and largest is not None and _chunk(options) is not None:
                values["chunk"] = in_proportion(options.chunk, self.chunk, largest)
            filled.append({"mixer": kind.name, "options": kind.options(values).to_dict()})
        # Filled in, so that a checkpoint says it all.
        object.__setattr__(self, "parts", tuple(filled))
        object.__setattr__(self, "chunk", self.chunk or largest)

    def _check_routing(self, parts: list[tuple[MemoryKind, Any]]) -> None:
        name = type(self).__name__
        if self.route == "topk" and not 2 <= self.topk <= len(parts):
            raise AllMemError(
                f"{name}: topk = {self.topk} of {len(parts)} parts; choose from 2 (of one chosen "
                "part the weight is always one, and the router would learn nothing) to "
                f"{len(parts)}"
            )
        if self.route == "none" and self.write_scope == "all":
            return
        for i, (kind, options) in enumerate(parts):
            if "shared" in (self.projections, getattr(options, "projections", "full")):
                raise AllMemError(
                    f"{name}: part {i} ({kind.name}) has projections = 'shared', but writes other "
                    "tokens than attention projects (route = 'topk' or write_scope = 'evicted'); "
                    "choose 'full' or 'lowrank'"
                )

    def check_writing(self, mixers: Sequence[Mixer]) -> None:
        """Refuse parts that would have to write other tokens than they read and cannot.

        Raises:
            AllMemError: if there is one.
        """
        if self.route == "none" and self.write_scope == "all":
            return
        for i, (part, mixer) in enumerate(zip(self.parts, mixers, strict=True)):
            if not isinstance(mixer, MemoryMixer):
                raise AllMemError(
                    f"{type(self).__name__}: part {i} ({part['mixer']}) writes every token that it "
                    "reads; route = 'topk' and write_scope = 'evicted' need mixers that derive "
                    "from allmem.mixers.MemoryMixer"
                )

    def sized(self, hidden_size: int, kv_heads: int) -> SeveralOptions:
        """These options with ``size`` filled in for a model, if any part follows it."""
        own = [_own_size(options, hidden_size, kv_heads) for _, options in self._chosen()]
        sizes = [size for size in own if size is not None]
        if self.size is not None or not sizes:
            return self
        return self.replace(size=sum(sizes) // len(sizes))

    def divided(self, hidden_size: int, kv_heads: int) -> list[tuple[MemoryKind, Any]]:
        """Kind and options of every part, with its share of ``size``.

        Raises:
            AllMemError: if there is less to share than parts.
        """
        total = self.sized(hidden_size, kv_heads).size
        chosen = self._chosen()
        follow = [i for i, (_, options) in enumerate(chosen) if _size_name(options) is not None]
        if total is not None and follow and total < len(follow):
            raise AllMemError(
                f"{type(self).__name__}: size = {total} cannot be shared by {len(follow)} parts; "
                f"choose at least {len(follow)}"
            )
        for place, i in enumerate(follow):
            assert total is not None
            kind, options = chosen[i]
            share = total // len(follow) + (place < total % len(follow))
            name = _size_name(options)
            changes = {str(name): share}
            if name == "key_dim":
                # Left alone, values would follow the keys.
                changes["value_dim"] = options.sized(hidden_size, kv_heads).value_dim
            chosen[i] = kind, options.replace(**changes)
        return [
            (kind, self._projecting(options, hidden_size, kv_heads)) for kind, options in chosen
        ]

    def _projecting(self, options: Any, hidden_size: int, kv_heads: int) -> Any:
        """A part's options, with what all parts are to do where it has the default."""
        if not isinstance(options, ProjectionOptions):
            return options
        changes: dict[str, Any] = {}
        if options.projections == "full" and self.projections != "full":
            room = _largest_rank(options, hidden_size, kv_heads)
            changes = {"projections": self.projections, "rank": min(self.rank, room)}
        if options.start == "attention":
            changes["start"] = self.start
        return options.replace(**changes)

    def _chosen(self) -> list[tuple[MemoryKind, Any]]:
        return [_part(i, part) for i, part in enumerate(self.parts)]


def _part(number: int, part: Any) -> tuple[MemoryKind, Any]:
    """A part's kind and validated options."""
    where = f"SeveralOptions: part {number}"
    if not isinstance(part, Mapping) or "mixer" not in part:
        raise AllMemError(
            f'{where}: {part!r} names no mixer; write {{"mixer": "allmem", "options": {{...}}}}'
        )
    for key in part:
        if key not in KEYS:
            raise AllMemError(f"{where}: {unknown_name('key', key, KEYS)}")
    try:
        kind = memory_kind(part["mixer"])
        if kind is None:
            raise AllMemError(f"{part['mixer']!r} is no memory; name one")
        options = kind.options(part.get("options") or {})
    except AllMemError as error:
        raise AllMemError(f"{where}: {error}") from error
    if getattr(options, "write_scope", "all") != "all":
        raise AllMemError(
            f"{where} ({kind.name}): write_scope = {options.write_scope!r} is chosen for all parts "
            "together; set it beside them, and 'all' for the part"
        )
    if getattr(options, "read_scope", "all") != "all":
        raise AllMemError(
            f"{where} ({kind.name}): read_scope = {options.read_scope!r} is chosen for all parts "
            "together; set it beside them, and 'all' for the part"
        )
    if getattr(options, "fusion", "gate") != "gate":
        raise AllMemError(
            f"{where} ({kind.name}): fusion = {options.fusion!r} needs a layer of its own; set "
            "fusion = 'gate' for the part"
        )
    return kind, options


def _chunk(options: Any) -> int | None:
    chunk: int | None = getattr(options, "chunk", None)
    return chunk


def _size_name(options: Any) -> str | None:
    """The size that a part shares with others, if it has one and the user named none."""
    if isinstance(options, MemoryConfig):
        return "width" if options.width is None and options.network != "linear" else None
    has_keys = hasattr(options, "sized") and hasattr(options, "value_dim")
    return "key_dim" if has_keys and getattr(options, "key_dim", 0) is None else None


def _own_size(options: Any, hidden_size: int, kv_heads: int) -> int | None:
    """What it would be if the part were alone."""
    name = _size_name(options)
    if name is None:
        return None
    size: int = getattr(options.sized(hidden_size, kv_heads), name)
    return size


def _largest_rank(options: Any, hidden_size: int, kv_heads: int) -> int:
    """Of a part's projections."""
    if not hasattr(options, "sized"):
        return hidden_size
    sized = options.sized(hidden_size, kv_heads)
    sizes = (getattr(sized, name, None) for name in ("head_dim", "key_dim", "value_dim"))
    return min(hidden_size, *(sized.heads * size for size in sizes if size is not None))


MULTISCALE: dict[str, Any] = {
    "parts": tuple(
        {"mixer": "allmem", "options": {"chunk": 2048 // period}} for period in (16, 4, 1)
    )
}
"""The paper's memory with chunks of a sixteenth, a quarter and all of C."""

ROUTED: dict[str, Any] = {"parts": ({"mixer": "gated_deltanet"},) * 4, "route": "topk"}
"""Four memories with a quarter of the keys each; a token is written into two."""
