"""Triton kernels for the inner loop: the same results as ``MemoryNetwork.step`` and the write of
``inner_loop``, with fewer passes over memory.

    step          read, and factors of the gradients, of many tokens
    decode_step   read, and gradients added to the running sums in place, of a few tokens
    row_norms     norms of the weights' rows
    write         steps 4 to 6: clip, momentum, write

Forward only: callers run them without gradients, or inside an ``autograd.Function`` whose backward
pass is their own. ``cannot_run`` says which calls they cannot compute, ``chosen`` whether they are
to compute one. Importing this package does not import triton. No function reads a number back from
the device, so all can be captured in a CUDA graph.

Sums are fp32, in float64 for float64, which only triton's interpreter computes (TRITON_INTERPRET=1,
on a CPU: for tests).

Letters: R rows, P slots of a pool of rows, H memory heads, N tokens, d head size, h width, M fast
matrices.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from allmem.config import MemoryConfig
from allmem.memory.kernels.choice import chosen
from allmem.memory.kernels.tiles import cannot_run
from allmem.memory.network import UNSCALED, Factors, MemoryNetwork, Scales
from allmem.memory.state import FastWeights, MemoryState

__all__ = ["cannot_run", "chosen", "decode_step", "row_norms", "step", "write"]


def step(
    network: MemoryNetwork,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: FastWeights,
    scales: Scales = UNSCALED,
) -> tuple[Tensor, dict[str, Factors]]:
    """``network.step`` with the same arguments, in two kernels.

    Rows and heads may be one dimension, as there, or two: then tokens before heads in memory need
    no copy.

    Args:
        q, k, v: [R, H, N, d] or [R H, N, d], of any strides.
        eta: [R, H, N, M] or [R H, N, M].
        weights: {matrix: [R, H, out, in] or [R H, out, in]} in the dtype of q.
        scales: {matrix: [R, H, out, 1] or [R H, out, 1]}, of any of the matrices.

    Returns:
        M(q; F), in the shape of q, and of every matrix the factors [..., N, out] and [..., N, in],
        all in the dtype of q. What lies between them is rounded less often than by torch's
        operations.
    """
    from allmem.memory.kernels.triton_step import step as compute

    return compute(network, q, k, v, eta, weights, scales)


def decode_step(
    network: MemoryNetwork,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: FastWeights,
    targets: Mapping[str, Tensor],
    gradient: FastWeights,
    slots: Tensor | None = None,
) -> Tensor:
    """Read a few tokens, and add the gradients that they cause to the running sums.

    The same as ``network.step``, with the scales targets / norms of the rows of ``weights``, and
    then sum += left^T right. Products are in the dtype of the weights, whatever that of q.

    Args:
        q, k, v: [R, H, N, d], N up to ``network.FEW``, of any dtype and strides.
        eta: [R, H, N, M].
        weights: F, {matrix: [R, H, out, in]}, contiguous.
        targets: {matrix: [H, out, 1]}, the norms that rows are scaled to, of the matrices to be
            scaled: ``inner_loop``'s for an internal normalisation, none otherwise.
        gradient: running sums, contiguous; written in place.
        slots: [R] int64 on the device; then weights and sums are those of P slots, [P, H, out, in],
            of which row r's are at slots[r], and those of no row are not touched. No slot is given
            twice.

    Returns:
        M(q; F), [R, H, N, d] in the dtype of q.
    """
    from allmem.memory.kernels.triton_decode import decode_step as compute

    return compute(network, q, k, v, eta, weights, targets, gradient, slots)


def row_norms(weights: FastWeights) -> FastWeights:
    """Norm of every output row over its inputs: {matrix: [..., out, in]} to [..., out, 1]."""
    from allmem.memory.kernels.triton_write import row_norms as compute

    return compute(weights)


def write(
    state: MemoryState,
    targets: Mapping[str, Tensor],
    chunk: int,
    config: MemoryConfig,
    rows: Tensor | None = None,
    *,
    in_place: bool = False,
) -> MemoryState:
    """Close the open chunk: clip, momentum, normalisation and write; the new sums are zero.

    Args:
        state: contiguous tensors. Rows that lie in a pool (``state.at``) are written in place, and
            those of other slots cost nothing.
        targets: {matrix: [H, out, 1]}, the norms that rows are scaled to; read unless
            ``config.norm`` is ``none``.
        chunk: C, by which the sum of the momentum's decays is divided.
        config: its optimizer must be ``sgd``.
        rows: [R] bool on the device, the rows that close; the others stay as they are, bit for bit.
            ``None`` for all.
        in_place: whether to write into the tensors of ``state``, as a static state needs it.

    Returns:
        The state after the write; ``state`` itself if in place.
    """
    from allmem.memory.kernels.triton_write import write as compute

    return compute(state, targets, chunk, config, rows, in_place=in_place)
