"""Assertions go, and the notes quote them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxexport.capture import capture
from fxexport.passes import RemoveAssertions
from fxexport.rewrite import PassManager
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten
X = torch.randn(2, 4, 6)


class Checked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._assert_async(x.sum() > -1e6, "the sum must not be small")
        torch._assert_async(x.max() < 1e6, "and no value large")
        return x.to(torch.float64) + 1


def test_assertions_go() -> None:
    def forward(x: Tensor) -> Tensor:
        n = x.sum().item()
        torch._check(n > -100)
        return x * n

    program = assert_rewrites(RemoveAssertions(), forward, None, (torch.ones(2, 2, dtype=torch.int64),))
    assert not any("assert" in str(n.target) or "constrain" in str(n.target) for n in program.graph.nodes)


def test_what_was_checked_is_not_computed_any_more() -> None:
    gone = [aten._assert_async.msg, aten._assert_tensor_metadata.default, aten.sum.default, aten.gt.Scalar]
    program = assert_rewrites(RemoveAssertions(), Checked(), None, (X,), gone=gone, count=3)
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == [aten.to.dtype, aten.add.Tensor]


def test_what_an_assertion_said_is_in_the_notes() -> None:
    program = capture(Checked(), (X,))
    _, (record,) = PassManager([RemoveAssertions()]).run(program)
    assert record.notes == ("removed 3 assertions: the sum must not be small; and no value large",)


def test_the_notes_quote_only_what_went() -> None:
    program = capture(Checked(), (X,))
    after, (record,) = PassManager([RemoveAssertions()]).run(program, limit=1)
    assert record.notes == ("removed 1 assertions: the sum must not be small",)
    assert len(list(after.find(aten._assert_async.msg))) == 1


def test_the_range_of_a_size_is_quoted() -> None:
    class Repeat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x[0].item()

    program = capture(Repeat(), (torch.tensor([3, 4]),))
    (size,), (last,) = program.find(aten.item.default), program.find(aten.mul.Tensor)
    program.insert(aten.sym_constrain_range_for_size.default, (size,), {"min": 1, "max": 7}, before=last)
    program.insert(aten.sym_constrain_range.default, (size,), {"max": 9}, before=last)
    _, (record,) = PassManager([RemoveAssertions()]).run(program)
    assert record.notes == (f"removed 2 assertions: 1 <= {size} <= 7; {size} <= 9",)


def test_no_assertion_no_change() -> None:
    assert_unchanged(RemoveAssertions(), nn.Linear(6, 3), (X,))
