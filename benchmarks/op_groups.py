"""What kind of work an operation is, by its name; and shares of a whole that add up to it.

Knows nothing of profilers: names in, groups out. Operations of torch (``aten::…``) are told by
torch's own registry where it says what they do (which ones work number by number, which ones only
make views, which ones only call others), and by name where it does not. Kernels of a GPU have free
names, so they are told by words in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import torch

__all__ = ["GROUPS", "OUTSIDE", "kernel_group", "op_group", "shares"]

PRODUCTS, ATTENTION, ELEMENTWISE = "matrix products", "fused attention", "elementwise"
REDUCTIONS, COPIES, VIEWS = "norms, sums, softmax", "copies", "views, allocation, dispatch"
FUSED = "fused memory kernels"
OTHER, OUTSIDE = "other operations", "Python, autograd, between operations"
GROUPS = (PRODUCTS, ATTENTION, FUSED, ELEMENTWISE, REDUCTIONS, COPIES, VIEWS, OTHER, OUTSIDE)

NAMED = {
    PRODUCTS: (
        "mm bmm addmm baddbmm addbmm mv addmv dot vdot addr convolution _convolution "
        "mkldnn_convolution _addmm_activation mkldnn_linear"
    ),
    ATTENTION: (
        "_scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_flash_attention_for_cpu_backward _scaled_dot_product_flash_attention "
        "_scaled_dot_product_flash_attention_backward _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_cudnn_attention_backward _flash_attention_forward "
        "_flash_attention_backward _efficient_attention_forward _efficient_attention_backward"
    ),
    ELEMENTWISE: (
        "where silu_backward sigmoid_backward softplus_backward threshold_backward _fused_adamw_ "
        "_fused_adam_ _foreach_add_ _foreach_mul_ _foreach_div_ _foreach_sqrt _foreach_lerp_ "
        "_foreach_addcmul_ _foreach_addcdiv_ masked_fill masked_fill_ normal_ uniform_ random_ "
        "arange"
    ),
    REDUCTIONS: (
        "sum mean linalg_vector_norm norm _softmax _log_softmax _softmax_backward_data "
        "_log_softmax_backward_data logsumexp amax amin max min any all cumsum var argmax topk "
        "sort _fused_rms_norm _fused_rms_norm_backward native_layer_norm"
    ),
    COPIES: (
        "copy_ _to_copy clone cat stack index index_select gather scatter scatter_ scatter_add_ "
        "index_put_ _index_put_impl_ index_add_ index_copy index_copy_ embedding "
        "embedding_dense_backward fill_ zero_ zeros ones full constant_pad_nd slice_backward "
        "select_backward repeat repeat_interleave take roll flip masked_select nonzero "
        "masked_scatter_ new_zeros zeros_like ones_like full_like scalar_tensor"
    ),
    VIEWS: (
        "empty empty_strided empty_like new_empty resize_ set_ as_strided as_strided_ detach_ "
        "_reshape_alias _unsafe_view"
    ),
}
BY_NAME = {name: group for group, names in NAMED.items() for name in names.split()}

WORDS = (
    (ATTENTION, ("flash", "fmha", "flex", "sdpa", "attention", "triton_tem")),
    (PRODUCTS, ("gemm", "gemv", "cutlass", "nvjet", "cublas", "xmma", "wgmma", "dot_kernel")),
    (COPIES, ("memcpy", "memset", "copy", "cat", "index", "gather", "scatter", "fill")),
    (REDUCTIONS, ("reduce", "softmax", "norm", "cumsum", "scan", "argmax")),
    (ELEMENTWISE, ("elementwise", "pointwise", "foreach", "multi_tensor", "adam", "silu")),
)
"""What a kernel's name tells, the first that fits: a copy is an elementwise kernel too."""
OWN_KERNEL = re.compile(r"_[a-z_]+_kernel")
"""Kernels of ``allmem.memory.kernels`` have the bare names of Python functions."""


@cache
def op_group(name: str) -> str:
    """Of an operation as torch's profiler names it."""
    space, _, op = name.partition("::")
    if space != "aten":
        # Functions of autograd and of Python, whose own time is not spent in an operation.
        return OUTSIDE
    if op in BY_NAME:
        return BY_NAME[op]
    packet = getattr(torch.ops.aten, op, None)
    overloads = [] if packet is None else [getattr(packet, o) for o in packet.overloads()]
    if any(torch.Tag.pointwise in overload.tags for overload in overloads):
        return ELEMENTWISE
    returned = [r.alias_info for o in overloads for r in o._schema.returns]
    if any(alias is not None and not alias.is_write for alias in returned):
        return VIEWS
    return VIEWS if any(_only_calls(overload) for overload in overloads) else OTHER


def _only_calls(overload: torch._ops.OpOverload) -> bool:
    """Whether it is made of other operations, whose time is their own."""
    key = "CompositeImplicitAutograd"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), key))


def kernel_group(name: str) -> str:
    """Of a kernel on a GPU."""
    if OWN_KERNEL.fullmatch(name):
        return FUSED
    lower = name.lower()
    return next((group for group, words in WORDS if any(w in lower for w in words)), OTHER)


def shares(seconds: Mapping[str, float], whole: float, rest: str = OUTSIDE) -> dict[str, float]:
    """Of every group in ``GROUPS``, in that order, its share of ``whole``; they add up to 1.

    Args:
        seconds: by group.
        rest: the group that takes what no other has.

    Raises:
        ValueError: if the groups have more than the whole, or one is not known.
    """
    unknown = seconds.keys() - set(GROUPS)
    named = sum(taken for group, taken in seconds.items() if group != rest)
    if unknown or named > whole:
        said = f"unknown groups {sorted(unknown)}, {named} of {whole} seconds"
        raise ValueError(f"groups do not fit the whole: {said}")
    found = {group: seconds.get(group, 0.0) / whole for group in GROUPS if group != rest}
    return found | {rest: 1 - sum(found.values())}
