"""What kind of work an operation is, and shares that add up."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.op_groups import (
    ATTENTION,
    COPIES,
    ELEMENTWISE,
    FUSED,
    GROUPS,
    OTHER,
    OUTSIDE,
    PRODUCTS,
    REDUCTIONS,
    VIEWS,
    kernel_group,
    op_group,
    shares,
)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::mm", PRODUCTS),
        ("aten::baddbmm", PRODUCTS),
        ("aten::linear", VIEWS),
        ("aten::matmul", VIEWS),
        ("aten::scaled_dot_product_attention", VIEWS),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", ATTENTION),
        ("aten::mul_", ELEMENTWISE),
        ("aten::silu_backward", ELEMENTWISE),
        ("aten::linalg_vector_norm", REDUCTIONS),
        ("aten::_softmax", REDUCTIONS),
        ("aten::copy_", COPIES),
        ("aten::cat", COPIES),
        ("aten::transpose", VIEWS),
        ("aten::empty_strided", VIEWS),
        ("aten::select", VIEWS),
        ("aten::no_such_operation", OTHER),
        ("MmBackward0", OUTSIDE),
        ("autograd::engine::evaluate_function: MmBackward0", OUTSIDE),
        ("Optimizer.step#AdamW.step", OUTSIDE),
    ],
)
def test_an_operation_is_told_by_what_it_does_itself(name: str, group: str) -> None:
    assert op_group(name) == group


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT", PRODUCTS),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", PRODUCTS),
        ("void pytorch_flash::flash_fwd_kernel<...>", ATTENTION),
        ("triton_tem_fused_flex_attention_0", ATTENTION),
        ("void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel>", COPIES),
        ("Memcpy DtoD (Device -> Device)", COPIES),
        ("void at::native::vectorized_elementwise_kernel<4, MulFunctor>", ELEMENTWISE),
        ("void at::native::reduce_kernel<512, 1, NormTwoOps>", REDUCTIONS),
        ("_factors_kernel", FUSED),
        ("something_new", OTHER),
    ],
)
def test_a_kernel_is_told_by_its_words(name: str, group: str) -> None:
    assert kernel_group(name) == group


def test_shares_add_up_to_the_whole() -> None:
    found = shares({PRODUCTS: 2.0, COPIES: 1.0, OUTSIDE: 0.5}, 4.0)
    assert list(found) == list(GROUPS)
    assert sum(found.values()) == pytest.approx(1)
    # What no operation spent, whatever was said of it.
    assert found[OUTSIDE] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="do not fit"):
        shares({PRODUCTS: 5.0}, 4.0)
    with pytest.raises(ValueError, match="unknown"):
        shares({"nothing": 1.0}, 4.0)


def test_the_groups_of_real_work_leave_little_unknown() -> None:
    a = torch.randn(64, 64, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        torch.nn.functional.silu(a @ a).softmax(-1).sum().backward()
    names = [event.key for event in watched.key_averages()]
    groups = {op_group(name) for name in names}
    assert {PRODUCTS, ELEMENTWISE, REDUCTIONS, VIEWS, OUTSIDE} <= groups
    assert OTHER not in groups, [name for name in names if op_group(name) == OTHER]
