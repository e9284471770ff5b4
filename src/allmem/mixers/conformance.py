"""What every mixer must hold, as tests that anyone can run on a mixer of their own.

In pytest, subclass ``MixerConformance``::

    class TestMyMixer(MixerConformance):
        hidden_size = 24

        def make_mixer(self):
            return MyMixer(hidden_size=24, ...)

or call ``check_conformance(lambda: MyMixer(...), hidden_size=24)``, which returns what failed.

Every check draws all slow weights at random, also those that start at zero: with alpha = 0 a broken
memory passes everything. The sequences are long enough for many chunks to close if the mixer is
built with chunks of 3 to 8 tokens, which it should be. Everything runs in float64. A mixer that
wants the attention's features is tried beside a small one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from allmem.layout import Layout
from allmem.mixers.base import Mixer
from allmem.mixers.layer import LayerMixer
from allmem.mixers.trial import CPU, DTYPE, ConformanceError, Trial, randomise
from allmem.token_layout import TokenLayout, periods_that_end

__all__ = ["ConformanceError", "Failure", "MixerConformance", "check_conformance", "randomise"]

LENGTHS = (1, 2, 3, 5, 8, 13, 29, 47)
"""Lengths of the sequences, shortest first, so that the first failure is the smallest."""
RAGGED = [[n, *other] for n in LENGTHS[:-1] for other in ((), (0,), (n // 2,))] + [[29, 3, 0, 8]]
"""Lengths of rows of a padded batch, smallest first; the last are those that every mixer is tried
with."""
PACKED = [[1, 1], [1, 2], [2, 1], [3, 2], [3, 5], [8, 5], [8, 13], [13, 1, 8, 20]]
"""Lengths of packed documents, in the same order."""


@dataclass(frozen=True)
class Failure:
    """A property that does not hold, and why."""

    property: str
    message: str


class MixerConformance(Trial):
    """The suite. Subclass it and give ``make_mixer``."""

    counts_flops: bool = True
    """Whether ``flops`` is compared with torch's counter, to 5 %. Off for mixers whose useful work
    the counter cannot see, such as masked attention, and so for those that are tried beside one."""

    # The properties

    def test_splitting_a_text_changes_nothing(self) -> None:
        mixer = self._mixer()
        for length in LENGTHS:
            x = self._inputs(2, length)
            whole, _ = self._read(mixer, x)
            for parts in ([1] * length, [length // 2, length - length // 2], [length - 1, 1]):
                self._same(self._read_as(mixer, x, parts), whole)

    def test_no_output_depends_on_a_later_token(self) -> None:
        mixer = self._mixer()
        for length in LENGTHS[1:]:
            x = self._inputs(1, length)
            y, _ = self._read(mixer, x)
            for cut in sorted({1, length // 2, length - 1}):
                other = x.clone()
                other[:, cut:] += 1
                changed, _ = self._read(mixer, other)
                self.example = f"tokens from {cut} of {length} changed"
                self._same(changed[:, :cut], y[:, :cut])

    def test_earlier_tokens_matter(self) -> None:
        """The converse of causality: a mixer that ignores its past would pass most other checks."""
        mixer = self._mixer()
        length, early = LENGTHS[-1], 3  # more than one: a memory may leave out the sinks
        x = self._inputs(1, length)
        other = x.clone()
        other[:, :early] += 1
        with torch.no_grad():
            y, _ = self._read(mixer, x)
            changed, _ = self._read(mixer, other)
        if float((changed - y)[:, early:].abs().max()) < 1e-12:
            raise ConformanceError(
                f"the first {early} of {length} tokens changed, and no later output did"
            )

    def test_padding_changes_nothing(self) -> None:
        self._smallest(self._check_padding, RAGGED)

    def _check_padding(self, mixer: Mixer, row_lengths: list[int]) -> None:
        rows, lengths = len(row_lengths), torch.tensor(row_lengths)
        width = max(row_lengths) + 2
        x = self._inputs(rows, width)
        x = torch.where(torch.arange(width)[None, :, None] < lengths[:, None, None], x, torch.nan)
        first, second = lengths // 2, lengths - lengths // 2
        example = f"padded rows of {row_lengths} tokens read as {first.tolist()}, then "
        example += f"{second.tolist()}"
        self.example = example
        state = self._start(mixer, rows)
        pieces: list[list[Tensor]] = [[] for _ in row_lengths]
        start = torch.zeros(rows, dtype=torch.int64)
        for count in (first, second):
            if not bool(count.any()):
                continue
            slots = int(count.max()) + 2
            index = (start[:, None] + torch.arange(slots)).clamp(max=width - 1)
            now = x.gather(1, index[..., None].expand(-1, -1, self.hidden_size))
            now = torch.where(
                torch.arange(slots)[None, :, None] < count[:, None, None], now, torch.nan
            )
            layout = Layout.ragged(start, count, CPU, slots=slots)
            y, state = mixer(now, state, layout)
            if not bool(torch.isfinite(y).all()):
                raise ConformanceError(
                    f"{example}: padding slots that held NaN gave outputs that are not finite"
                )
            for r, tokens in enumerate(count.tolist()):
                pieces[r].append(y[r, :tokens])
            start = start + count
        for r, length in enumerate(row_lengths):
            if length == 0:
                continue
            alone, _ = self._read(mixer, x[r : r + 1, :length])
            self.example = f"{example}: row {r} against the same text alone"
            self._same(torch.cat(pieces[r])[None], alone)

    def test_packed_documents_do_not_see_each_other(self) -> None:
        self._smallest(self._check_packing, PACKED)

    def _check_packing(self, mixer: Mixer, documents: list[int]) -> None:
        example = f"documents of {documents} tokens in one row"
        self.example = example
        x = self._inputs(1, sum(documents))
        begins = torch.zeros(1, sum(documents), dtype=torch.bool)
        ends = torch.tensor(documents).cumsum(0)
        begins[0, (ends - torch.tensor(documents))] = True
        layout = Layout.from_grid(torch.zeros(1, dtype=torch.int64), None, begins, CPU)
        rows = layout.gather(x)
        y, _ = mixer(rows, self._start(mixer, layout.rows), layout)
        packed = layout.scatter(y)
        for i, (end, length) in enumerate(zip(ends.tolist(), documents, strict=True)):
            alone, _ = self._read(mixer, x[:, end - length : end])
            self.example = f"{example}: document {i} against the same text alone"
            self._same(packed[:, end - length : end], alone)

    def test_reading_without_gradients_changes_nothing(self) -> None:
        """Without gradients a mixer may write into the state that it is given."""
        mixer = self._mixer()
        for length in LENGTHS[1:-1]:
            x = self._inputs(2, length)
            parts = [length - length // 2, length // 2]
            recorded = self._read_as(mixer, x.clone().requires_grad_(), parts)
            with torch.no_grad():
                plain = self._read_as(mixer, x, parts)
            self.example += ", with and without gradients"
            self._same(plain, recorded)

    def test_rows_can_be_selected_repeated_and_reordered(self) -> None:
        mixer = self._mixer()
        x = self._inputs(3, 22)
        _, state = self._read(mixer, x[:, :14])
        order = torch.tensor([2, 0, 0, 1])
        expected, _ = self._continue(mixer, x[:, 14:], state.clone(), 14)
        example = f"rows {order.tolist()} of 3 selected after 14 tokens"
        self.example = example
        y, _ = self._continue(mixer, x[order, 14:], state.select(order), 14)
        self.example = example
        self._same(y, expected[order])
        example = "every row twice after 14 tokens"
        self.example = example
        y, _ = self._continue(mixer, x[:, 14:].repeat_interleave(2, 0), state.repeat(2), 14)
        self.example = example
        self._same(y, expected.repeat_interleave(2, 0))

    def test_a_state_before_the_first_token_is_its_own(self) -> None:
        mixer = self._mixer()
        for rows in (1, 2):
            x = self._inputs(rows, 17)
            with torch.no_grad():
                expected, _ = self._read(mixer, x)
                tensors = self._start(mixer, rows).tensors()
                for value, tensor in enumerate(tensors.values(), 1):
                    tensor.fill_(value)
                self.example = f"init_state of {rows} rows, each tensor overwritten"
                for value, (name, tensor) in enumerate(tensors.items(), 1):
                    if not bool((tensor == value).all()):
                        raise ConformanceError(f"{self.example}: {name} shares another's memory")
                again, _ = self._read(mixer, x)
            self._same(again, expected)

    def test_forks_are_independent_and_bit_identical(self) -> None:
        mixer = self._mixer()
        x = self._inputs(2, 31)
        with torch.no_grad():
            _, state = self._read(mixer, x[:, :17])
            fork = state.clone()
            first, _ = self._continue(mixer, x[:, 17:], state, 17)
            # Whatever the first future wrote, the fork must not have noticed.
            second, _ = self._continue(mixer, x[:, 17:], fork, 17)
        if not torch.equal(first, second):
            raise ConformanceError("a fork, continued after its twin, gave other bits")

    def test_saved_states_continue_bit_identically(self) -> None:
        from safetensors.torch import load, save

        mixer = self._mixer()
        x = self._inputs(2, 31)
        with torch.no_grad():
            _, state = self._read(mixer, x[:, :17])
            self.example = "a state written to bytes after 17 tokens and read back"
            plain = {k: t.contiguous().clone() for k, t in state.tensors().items()}
            blob = save(plain)
            restored = self._start(mixer, 2).with_tensors(load(blob))
            first, _ = self._continue(mixer, x[:, 17:], state, 17)
            second, _ = self._continue(mixer, x[:, 17:], restored, 17)
        if not torch.equal(first, second):
            raise ConformanceError("a state, written to bytes and read back, gave other bits")

    def test_the_same_calls_give_the_same_bits(self) -> None:
        mixer = self._mixer()
        x = self._inputs(2, 29)
        with torch.no_grad():
            first, _ = self._read(mixer, x)
            second, _ = self._read(mixer, x)
        if not torch.equal(first, second):
            raise ConformanceError("two identical calls gave different bits")

    def test_single_tokens_need_no_count_on_the_cpu(self) -> None:
        """If ``periods`` says so."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        mixer = self._mixer()
        start = torch.tensor([9, 4])
        periods = mixer.periods(Layout.dense(start, 2, 1, CPU))
        if periods is None:
            return
        x = self._inputs(2, 26)
        with torch.no_grad():
            # Rows of which different numbers of tokens were read, each alone.
            states = [self._read(mixer, x[r : r + 1, :n])[1] for r, n in enumerate(start.tolist())]
            names = states[0].tensors()
            state = states[0].with_tensors(
                {name: torch.cat([s.tensors()[name] for s in states]) for name in names}
            )
            twin = state.clone()
            for token in x[:, int(start.max()) :].split(1, 1):
                self.example = f"a token after {start.tolist()}"
                closing = periods_that_end(periods, start)
                y, state = mixer(token, state, TokenLayout.next_of(start, closing=closing))
                expected, twin = mixer(token, twin, Layout.dense(start, 2, 1, CPU))
                self._same(y, expected)
                start = start + 1
            self.example = "a number of a tensor was read on the way"
            for closing in {frozenset[int](), periods}:
                fork, layout = state.clone(), TokenLayout.next_of(start, closing=closing)
                with FakeTensorMode(allow_non_fake_inputs=True):
                    mixer(x[:, :1], fork, layout)

    def test_state_bytes_are_what_the_closed_form_says(self) -> None:
        mixer = self._mixer()
        sizes = set()
        for length in (1, 5, 23, 47):
            _, state = self._read(mixer, self._inputs(1, length))
            self.example = f"state_bytes({length})"
            expected = mixer.state_bytes(length, DTYPE)
            if state.nbytes != expected:
                raise ConformanceError(
                    f"after {length} tokens the state has {state.nbytes} bytes, state_bytes says "
                    f"{expected}"
                )
            sizes.add(state.nbytes)
        if mixer.capabilities.constant_state and len(sizes) > 1:
            raise ConformanceError(f"a constant state was promised, its sizes are {sorted(sizes)}")

    def test_flops_are_what_torch_counts(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        mixer = self._mixer()
        if not self.counts_flops or isinstance(mixer, LayerMixer):
            return
        length = 24
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self._read(mixer, self._inputs(1, length))
        self.example = f"flops({length})"
        counted, stated = counter.get_total_flops(), mixer.flops(length)
        if not 0.95 <= stated / max(counted, 1) <= 1.05:
            raise ConformanceError(
                f"flops({length}) says {stated}, torch counted {counted} in matrix products"
            )

    def test_gradients_equal_finite_differences(self) -> None:
        mixer = self._mixer()
        x = self._inputs(1, 11).requires_grad_()
        probe = self._inputs(1, 11, seed=7)
        names, leaves = ["x"], [x]
        for name, parameter in mixer.named_parameters():
            if mixer.capabilities.trainable and parameter.requires_grad:
                names.append(name)
                leaves.append(parameter)

        def loss() -> Tensor:
            state, done, total = self._start(mixer, 1), 0, torch.zeros((), dtype=DTYPE)
            for count in (7, 4):
                y, state = self._continue(mixer, x[:, done : done + count], state, done)
                total = total + (y * probe[:, done : done + count]).sum()
                done += count
            self.example = "gradients of 11 tokens read as [7, 4]"
            return total

        gradients = torch.autograd.grad(loss(), leaves, allow_unused=True)
        step = 1e-6
        for name, leaf, gradient in zip(names, leaves, gradients, strict=True):
            if gradient is None or not bool(gradient.any()):
                raise ConformanceError(f"no gradient reaches {name}")
            direction = torch.randn(
                leaf.shape, generator=torch.Generator().manual_seed(3), dtype=DTYPE
            )
            with torch.no_grad():
                leaf.add_(step * direction)
                above = loss()
                leaf.sub_(2 * step * direction)
                below = loss()
                leaf.add_(step * direction)
            numeric = float((above - below) / (2 * step))
            analytic = float((gradient * direction).sum())
            if abs(numeric - analytic) > 1e-5 * max(1.0, abs(numeric)):
                raise ConformanceError(
                    f"along a random direction of {name} the gradient is {analytic:.9g}, finite "
                    f"differences give {numeric:.9g}"
                )


def check_conformance(
    make_mixer: Callable[[], Mixer],
    hidden_size: int,
    *,
    tolerance: float = 1e-8,
    counts_flops: bool = True,
) -> list[Failure]:
    """Run the whole suite on a mixer.

    Args:
        make_mixer: builds the mixer; called once per property.
        hidden_size: D.

    Returns:
        The properties that do not hold, by name; empty for a conforming mixer. A mixer that raises
        does not hold the property either: the failure tells the exception and the example.
    """

    class Suite(MixerConformance):
        def make_mixer(self) -> Mixer:
            return make_mixer()

    suite = Suite()
    suite.hidden_size, suite.tolerance, suite.counts_flops = hidden_size, tolerance, counts_flops
    failures = []
    for name in [n for n in dir(MixerConformance) if n.startswith("test_")]:
        try:
            getattr(suite, name)()
        except ConformanceError as error:
            failures.append(Failure(_spoken(name), str(error)))
        except Exception as error:
            raised = f"{suite.example}: raised {type(error).__name__}: {error}"
            failures.append(Failure(_spoken(name), raised))
    return failures


def _spoken(name: str) -> str:
    """The property that a test is about."""
    return name.removeprefix("test_").replace("_", " ")
