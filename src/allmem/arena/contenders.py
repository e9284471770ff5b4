"""At which sizes entrants take part in an arena: contenders, with everything decided.

Memories take the parameters and the state of the reference, attentions without a memory (the window
itself, KV policies) its bytes in keys and values. An entrant that cannot is refused, or told if the
arena allows it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from allmem.arena.config import ArenaConfig, Entrant
from allmem.arena.entrants import BESIDE, TEACHER, WINDOW, entrants_of
from allmem.arena.ground import Ground, Totals
from allmem.choices import Conversion, Limits
from allmem.errors import AllMemError, unknown_name
from allmem.mixers.ablations import ABLATIONS
from allmem.mixers.cache_sizes import equal_caches
from allmem.mixers.matching import Counted, match, with_chunk
from allmem.mixers.registry import (
    MemoryKind,
    expand_pattern,
    mixer_kind,
)
from allmem.models.structure import attention_shape

__all__ = ["Contender", "contenders"]


@dataclass(frozen=True)
class Contender:
    """An entrant with everything decided."""

    name: str
    mixer: str
    conversion: Conversion
    totals: Totals
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Those that were solved for."""
    parameter_difference: float | None = None
    """More than the reference, as a share; ``None`` where it is not compared."""
    state_difference: float | None = None
    ablation: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Of its mixer."""
        conversion = self.conversion
        if self.mixer == "allmem":
            return conversion.memory
        return conversion.mixer_options.get(self.mixer, {})

    def outside(self, limits: Limits) -> list[str]:
        """What differs by more than it may."""
        parameters = abs(self.parameter_difference or 0.0) > limits.parameters
        state = abs(self.state_difference or 0.0) > limits.state
        return ["parameters"] * parameters + ["state"] * state


def contenders(config: ArenaConfig, ground: Ground) -> list[Contender]:
    """Everybody with their sizes: teacher, window, reference, then the others.

    Raises:
        AllMemError: on entrants that make no sense, and on sizes that cannot be matched unless the
            arena allows it.
    """
    entrants = entrants_of(config)
    planner = _Planner(config, ground)
    reference = planner.own(config.reference, entrants.pop(config.reference))
    if not reference.totals.memory_layers:
        raise AllMemError(
            f"reference: {config.reference} has no memory, so there is no size to be matched; "
            "choose one that has"
        )
    teacher = planner.made(TEACHER, "full", dataclasses.replace(ground.window(), mixers="full"))
    window = planner.made(WINDOW, "window", ground.window())
    found = [planner.plan(name, entrant, reference) for name, entrant in entrants.items()]
    return [teacher, window, _compared(reference, reference), *found]


@dataclass(frozen=True)
class _Planner:
    """Makes contenders of entrants."""

    config: ArenaConfig
    ground: Ground

    def own(self, name: str, entrant: Entrant) -> Contender:
        """An entrant as its options are.

        Raises:
            AllMemError: if they make no sense.
        """
        try:
            mixer, options = self._mixer(name, entrant)
            return self.made(
                name, mixer, self._conversion(mixer, options, entrant), ablation=entrant.ablation
            )
        except AllMemError as error:
            raise AllMemError(f"entrant {name}: {error}") from None

    def plan(self, name: str, entrant: Entrant, reference: Contender) -> Contender:
        """An entrant at the reference's sizes.

        Raises:
            AllMemError: if there are none, and the arena does not allow it.
        """
        own = _compared(self.own(name, entrant), reference)
        try:
            if entrant.match and own.outside(self.config.limits):
                solve = self._memory if own.totals.memory_layers else self._cache
                own = solve(own, entrant, reference)
            refused = [w for w in own.outside(self.config.limits) if w not in self.config.unmatched]
            if refused:
                raise AllMemError(_too_far(own, reference, self.config.limits, refused))
        except AllMemError as error:
            raise AllMemError(f"entrant {name}: {error}") from None
        return own

    def made(self, name: str, mixer: str, conversion: Conversion, **more: Any) -> Contender:
        """A contender, counted."""
        totals = self.ground.totals(self.ground.model(conversion))
        return Contender(name, mixer, conversion, totals, **more)

    def _mixer(self, name: str, entrant: Entrant) -> tuple[str, dict[str, Any]]:
        """Its mixer and options; of an ablation those of the reference with a change."""
        if entrant.ablation is None:
            return entrant.mixer or name, dict(entrant.options)
        if entrant.ablation not in ABLATIONS:
            raise AllMemError(unknown_name("ablation", entrant.ablation, ABLATIONS))
        of = self.config.named().get(self.config.reference) or Entrant()
        mixer = of.mixer or self.config.reference
        if mixer != "allmem":
            raise AllMemError(f"ablations are of the mixer 'allmem'; the reference is {mixer!r}")
        return mixer, {**of.options, **_changes(entrant)}

    def _conversion(self, mixer: str, options: dict[str, Any], entrant: Entrant) -> Conversion:
        kind = mixer_kind(mixer)
        pattern = entrant.pattern or mixer
        layers = set(expand_pattern(pattern, self.ground.layers))
        if mixer not in layers or layers - {mixer, *BESIDE}:
            raise AllMemError(
                f"pattern = {pattern!r} must name {mixer!r}, and besides it window and full alone"
            )
        window = dataclasses.replace(
            self.ground.window(), mixers=pattern, keep_full=entrant.keep_full
        )
        if kind is None:
            known = ("window", "sinks") if mixer == "window" else ()
            for key in options:
                if key not in known:
                    raise AllMemError(unknown_name(f"option of {mixer}", key, known))
        if isinstance(kind, MemoryKind):
            options = with_chunk(mixer, options, self.ground.sizes.steps)
        return _with_options(window, mixer, options)

    def _memory(self, own: Contender, entrant: Entrant, reference: Contender) -> Contender:
        """With sizes of its memory that are solved for."""
        wanted, layers = reference.totals, own.totals.memory_layers
        # What its other layers keep beyond a window is not for a memory to have.
        spare = wanted.state_bytes - (own.totals.state_bytes - own.totals.memory_bytes)
        target = Counted(
            round(wanted.parameters / layers), max(0, round(spare / layers)), wanted.trainable
        )
        fixed, start = own.options, {}
        if own.ablation is not None:
            # The reference's sizes are where its ablations begin, not where they have to stay.
            changed = _changes(entrant)
            free = {*reference_sizes(own.mixer)} - changed.keys()
            start = {name: fixed[name] for name in free if name in fixed}
            fixed = {name: value for name, value in fixed.items() if name not in free}
        found = match(
            own.mixer,
            self.ground.slot(),
            target,
            fixed,
            self.config.limits,
            start=start,
            strict=False,
        )
        conversion = _with_options(own.conversion, own.mixer, found.options)
        made = self.made(own.name, own.mixer, conversion, sizes=found.sizes, ablation=own.ablation)
        return _compared(made, reference)

    def _cache(self, own: Contender, entrant: Entrant, reference: Contender) -> Contender:
        """With a window, or the cache of a KV policy, that takes the bytes of the reference's
        window and memory."""
        ground = self.ground
        size = "window" if own.mixer == "window" else "slots"
        if own.mixer == "full" or size in entrant.options:
            return own
        layers = ground.model(own.conversion).config.layer_names.count(own.mixer)
        spare = reference.totals.state_bytes - own.totals.state_bytes
        target = ground.window_bytes // ground.layers + spare // layers
        sinks = own.conversion.sinks or 0
        try:
            cache = equal_caches(
                target,
                attention_shape(ground.base),
                ground.dtype,
                sinks=sinks,
                layers=layers,
                names=[own.mixer],
                options={own.mixer: entrant.options},
            )[own.mixer]
        except AllMemError:
            if "state" in self.config.unmatched:
                return own
            raise
        sizes = {size: cache.slots - sinks if size == "window" else cache.slots}
        conversion = _with_options(own.conversion, own.mixer, {**entrant.options, **sizes})
        return _compared(self.made(own.name, own.mixer, conversion, sizes=sizes), reference)


def _compared(one: Contender, reference: Contender) -> Contender:
    """With its differences from the reference."""
    wanted, totals = reference.totals, one.totals
    trained = wanted.trainable and totals.trainable
    return dataclasses.replace(
        one,
        parameter_difference=totals.parameters / wanted.parameters - 1 if trained else None,
        state_difference=totals.state_bytes / max(wanted.state_bytes, 1) - 1,
    )


def reference_sizes(mixer: str) -> list[str]:
    """Options of a mixer that are sizes."""
    config = getattr(mixer_kind(mixer), "config", None)
    return [*getattr(config, "state_sizes", ()), *getattr(config, "parameter_sizes", ())]


def _changes(entrant: Entrant) -> dict[str, Any]:
    """What an ablation has otherwise than the reference."""
    assert entrant.ablation is not None
    return {**ABLATIONS[entrant.ablation], **entrant.options}


def _with_options(conversion: Conversion, mixer: str, options: dict[str, Any]) -> Conversion:
    if mixer in BESIDE:
        return dataclasses.replace(conversion, **options)
    if mixer == "allmem":
        return dataclasses.replace(conversion, memory=options)
    return dataclasses.replace(conversion, mixer_options={mixer: options})


def _too_far(one: Contender, reference: Contender, limits: Limits, refused: list[str]) -> str:
    wanted, own = reference.totals, one.totals
    parameters, of = "", ""
    if one.parameter_difference is not None:
        parameters = f"{own.parameters:,} parameters ({one.parameter_difference:+.1%}) and "
        of = f"{wanted.parameters:,} and "
    sizes = ", ".join(f"{name} = {value}" for name, value in one.sizes.items())
    nearest = f", at the nearest sizes ({sizes})" if sizes else ""
    return (
        f"it has {parameters}{own.state_bytes:,} bytes of state ({one.state_difference:+.1%}) "
        f"beyond the window's{nearest}, where {reference.name} has {of}{wanted.state_bytes:,}; "
        f"{limits.parameters:.0%} and {limits.state:.0%} are allowed. Fix fewer of its options, "
        f"exclude it, or compare it all the same: unmatched: [{', '.join(refused)}]"
    )
