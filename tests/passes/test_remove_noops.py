"""Calls that return their argument go, calls that look like it stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxexport.capture import capture
from fxexport.passes import RemoveAssertions, RemoveNoops
from fxexport.rewrite import PassManager
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten
X = torch.randn(2, 4, 6)
BATCH = {"x": {0: "batch"}}


class Call(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("table", torch.randn(4, 6))

    def forward(self, x: Tensor):
        return self.function(x)


NOOPS = {
    "to dtype": lambda x: x.to(torch.float32),
    "float": lambda x: x.float(),
    "to device": lambda x: x.to("cpu"),
    "to copy": lambda x: x.to(torch.float32, copy=True),
    "type_as": lambda x: x.to(x + 1),
    "clone": lambda x: x.clone(),
    "contiguous": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "detach": lambda x: x.detach(),
    "alias": lambda x: aten.alias(x),
    "slice": lambda x: x[:],
    "slice to a large end": lambda x: x[:, :1000],
    "slice to the size": lambda x: x[: x.shape[0]],
    "slice from the size back": lambda x: x[-x.shape[1] :],
    "narrow": lambda x: x.narrow(1, 0, 4),
    "expand": lambda x: x.expand(-1, 4, 6),
    "expand to its size": lambda x: x.expand(x.shape[0], -1, -1),
    "expand_as": lambda x: x.expand_as(x.relu()),
    "reshape": lambda x: x.reshape(x.shape),
    "view": lambda x: x.view(-1, 4, 6),
    "flatten one": lambda x: x.flatten(1, 1),
    "squeeze": lambda x: x.squeeze(1),
    "permute": lambda x: x.permute(0, 1, -1),
    "transpose": lambda x: x.transpose(2, -1),
    "pad": lambda x: F.pad(x, (0, 0, 0, 0)),
    "repeat": lambda x: x.repeat(1, 1, 1),
    "tile": lambda x: x.tile(1),
    "cat": lambda x: torch.cat([x], dim=1),
}


@pytest.mark.parametrize("name", NOOPS)
def test_goes(name: str) -> None:
    program = assert_rewrites(
        RemoveNoops(),
        Call(lambda x: NOOPS[name](x.sin()).cos()),
        None,
        (X,),
        dynamic=BATCH,
        first=[RemoveAssertions()],  # `to` is captured with an assertion about what it converts
        rtol=0,
        atol=0,
    )
    calls = [n.target for n in program.graph.nodes if n.op == "call_function" and n.target != aten.transpose.int]
    assert calls == [aten.sin.default, aten.cos.default]


STAY = {
    "to another dtype": (aten.to.dtype, lambda x: x.to(torch.float64)),
    "channels last": (aten.to.dtype_layout, lambda x: x[None].to(memory_format=torch.channels_last)),
    "slice from one": (aten.slice.Tensor, lambda x: x[:, 1:]),
    "slice all but one": (aten.slice.Tensor, lambda x: x[:, :-1]),
    "slice by two": (aten.slice.Tensor, lambda x: x[:, ::2]),
    "slice to a fixed size": (aten.slice.Tensor, lambda x: x[:2]),
    "expand": (aten.expand.default, lambda x: x[:, :, :1].expand(-1, -1, 6)),
    "expand with a new axis": (aten.expand.default, lambda x: x.expand(3, -1, -1, -1)),
    "view": (aten.view.default, lambda x: x.view(-1, 6, 4)),
    "permute": (aten.permute.default, lambda x: x.permute(0, 2, 1)),
    "pad": (aten.pad.default, lambda x: F.pad(x, (1, 0))),
    "pad and crop": (aten.pad.default, lambda x: F.pad(x, (1, -1))),
    "repeat": (aten.repeat.default, lambda x: x.repeat(1, 2, 1)),
    "repeat with a new axis": (aten.repeat.default, lambda x: x.repeat(1, 1, 1, 1)),
    "cat": (aten.cat.default, lambda x: torch.cat([x, x])),
    "flip": (aten.flip.default, lambda x: x.flip(0)),
    "zero": (aten.add.Tensor, lambda x: x + 0),
    "one": (aten.mul.Tensor, lambda x: x * 1),
}


@pytest.mark.parametrize("name", STAY)
def test_stays(name: str) -> None:
    op, function = STAY[name]
    model = Call(lambda x: function(x.sin()))
    # The first run removes the full slices that capture writes beside the slice in question.
    program = assert_unchanged(RemoveNoops(), model, (X,), dynamic=BATCH, first=[RemoveNoops()])
    assert len(list(program.find(op))) == 1


def test_a_square_transposed_has_the_same_shape() -> None:
    assert_unchanged(RemoveNoops(), Call(lambda x: x.transpose(0, 1)), (torch.randn(3, 3),))


def test_the_output_may_become_the_input() -> None:
    program = assert_rewrites(RemoveNoops(), Call(lambda x: (x.clone(), x + 1)), None, (X,))
    assert program.output_nodes[0] is program.input_nodes[0]
    program.to_exported()


def test_constants_in_forward() -> None:
    """``torch.tensor(...)`` in forward is captured as lift_fresh_copy and detach."""
    model = Call(lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    program = assert_rewrites(RemoveNoops(), model, None, (X,))
    assert program.node_count() == 1


def test_a_chain_goes_at_once() -> None:
    model = Call(lambda x: x.sin().clone().to(torch.float32)[:].contiguous().view(x.shape).cos())
    program = assert_rewrites(RemoveNoops(), model, None, (X,), dynamic=BATCH, first=[RemoveAssertions()])
    assert program.node_count() == 2


def test_view_of_a_removed_copy_becomes_reshape() -> None:
    """The strides of x.T do not fit a view; nor do those of what is computed from it elementwise."""
    model = Call(lambda x: x.sin().transpose(1, 2).contiguous().cos().view(-1, 24))
    ops = {aten.reshape.default: 1, aten.view.default: 0}
    program = assert_rewrites(RemoveNoops(), model, None, (X,), gone=[aten.contiguous.default], ops=ops, dynamic=BATCH)
    (cos,) = program.find(aten.cos.default)
    assert not cos.meta["val"].is_contiguous()


def test_copies_stay_where_strides_are_looked_at() -> None:
    model = Call(lambda x: x.sin().transpose(1, 2).contiguous().as_strided((2, 3), (24, 1)))
    assert_unchanged(RemoveNoops(), model, (X,), reason="the program looks at strides")


def test_the_first_rewrites_alone() -> None:
    """Views become reshapes with the first copy that needs it, so that every prefix of the rewrites is right."""
    model = Call(lambda x: x.clone().sin().transpose(1, 2).contiguous().cos().view(-1, 24).detach())
    program = capture(model, (X,))
    for limit, copies in ((0, 3), (1, 2), (2, 1), (3, 0)):
        after, (record,) = PassManager([RemoveNoops()]).run(program, limit=limit)
        assert record.count == limit
        assert len(list(after.find(aten.clone.default, aten.contiguous.default, aten.detach.default))) == copies
        assert torch.equal(after.run(X)[0], program.run(X)[0])


def test_no_noop_no_change() -> None:
    assert_unchanged(RemoveNoops(), nn.Linear(6, 3), (X,))
