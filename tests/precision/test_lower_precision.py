"""float16 and bfloat16 as a rewrite: what runs in them, what stays in float32 and why, and that the numbers hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, fx, nn

import fxexport
from fxexport.errors import InputError
from fxexport.precision import PRECISIONS, LowerPrecision, apply_precision, refuse_unknown_modules
from fxexport.precision.applying import Applied
from fxexport.program import Program

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.out(torch.softmax(q @ k.transpose(-1, -2) / 4, -1) @ v)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0])


class Scaled(nn.Module):
    """Numbers that float16 does not hold, in the middle."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.wide, self.out, self.factor = nn.Linear(16, 16), nn.Linear(16, 4), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.wide(x) * self.factor / self.factor)


class Positions(nn.Module):
    """Integers become numbers and angles: positions after 2048 are no float16 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(50, 16), nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        angles = (torch.arange(ids.shape[1]).float() + 3001)[:, None] * torch.linspace(0.001, 1.0, 16)
        return self.out(self.table(ids) + angles.sin())


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        added = (1.0 - mask[:, None, :].float()) * torch.finfo(torch.float32).min
        return self.out(torch.softmax(self.q(x) @ x.transpose(1, 2) + added, -1) @ x)


class HandNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x / ((x * x).amax(-1, keepdim=True) + 1e-12).sqrt())


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(self.b(x) if x.sum() > 0 else x * 2)


def masks() -> Tensor:
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, 3:] = 0
    return mask


CASES: dict[str, tuple[type[nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "transformer": (Tiny, lambda: (torch.randn(2, 5, 16),)),
    "convolution": (ConvNet, lambda: (torch.randn(2, 3, 8, 8),)),
    "recurrent": (Recurrent, lambda: (torch.randn(2, 5, 8),)),
    "positions": (Positions, lambda: (torch.randint(0, 50, (2, 5)),)),
    "masked": (Masked, lambda: (torch.randn(2, 5, 16), masks())),
    "hand_norm": (HandNorm, lambda: (torch.randn(2, 5, 16),)),
    "branch": (Branching, lambda: (torch.randn(2, 8),)),
}


def make(case: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    kind, inputs = CASES[case]
    return kind().eval(), inputs()


def applied(model: nn.Module, inputs: tuple[Tensor, ...], name: str = "fp16", keep: Sequence[str] = ()) -> Applied:
    program = fxexport.capture(model.eval(), inputs)
    return apply_precision(program, PRECISIONS[name], [inputs], keep)


def dtypes(program: Program, operator: str) -> set[torch.dtype]:
    """The dtypes of the first operand of every call of an ATen operator."""
    calls = (
        n for n in program.graph.nodes if n.op == "call_function" and str(n.target).startswith(f"aten.{operator}.")
    )
    return {n.all_input_nodes[0].meta["val"].dtype for n in calls}


def reasons(found: Applied) -> dict[str, str]:
    return {f"{each.module}:{operator}": each.reason for each in found.record.kept for operator in each.operators}


# ---------------------------------------------------------------- what becomes what


@pytest.mark.parametrize("name", list(HALVES))
def test_products_run_in_half_and_norms_and_softmax_in_float32(name: str) -> None:
    program = applied(*make("transformer"), name).program
    assert dtypes(program, "linear") == dtypes(program, "matmul") == dtypes(program, "add") == {HALVES[name]}
    assert dtypes(program, "layer_norm") == dtypes(program, "softmax") == {torch.float32}
    weights = {name: value.dtype for name, value in program.constants().items()}
    assert {dtype for name, dtype in weights.items() if "norm" not in name} == {HALVES[name]}
    assert {dtype for name, dtype in weights.items() if "norm" in name} == {torch.float32}
    program.verify()


def test_inputs_and_outputs_stay_as_they_are() -> None:
    program = applied(*make("transformer")).program
    assert [node.meta["val"].dtype for node in program.input_nodes + program.output_nodes] == [torch.float32] * 2


def test_each_cast_is_made_once() -> None:
    program = applied(*make("transformer")).program
    casts = [n for n in program.graph.nodes if n.target == torch.ops.aten._to_copy.default]
    assert len({(n.args[0], n.kwargs["dtype"]) for n in casts}) == len(casts)


@pytest.mark.parametrize("name", list(HALVES))
@pytest.mark.parametrize("case", list(CASES))
def test_numbers_stay_close(case: str, name: str) -> None:
    model, inputs = make(case)
    precision = PRECISIONS[name]
    scale = model.eval()(*inputs).square().mean().sqrt().item()
    (got,) = applied(model, inputs, name).program.run(*inputs)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, model(*inputs), rtol=precision.rtol, atol=precision.atol * scale)


def test_twice_is_once() -> None:
    model, inputs = make("transformer")
    once = applied(model, inputs).program
    calls = once.node_count()
    again = once.clone()
    LowerPrecision(torch.float16).run(again)
    again.erase_dead()
    assert (again.node_count(), dtypes(again, "linear")) == (calls, {torch.float16})


def test_a_half_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).half().eval()
    program = fxexport.capture(model, (torch.randn(2, 4).half(),))
    found = apply_precision(program, PRECISIONS["fp16"], [(torch.randn(2, 4).half(),)])
    assert (found.record.lowered, found.record.total, found.record.kept) == (0, 0, [])
    assert found.program.node_count() == program.node_count()


# ---------------------------------------------------------------- what stays in float32


def test_values_that_overflow_stay_by_what_the_examples_give() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 16),)
    kept = reasons(applied(Scaled(1e5), inputs))
    assert "fp16 ends at" in kept[":mul"]
    assert not any("ends at" in reason for reason in reasons(applied(Scaled(10.0), inputs)).values())
    assert not any("ends at" in reason for reason in reasons(applied(Scaled(1e5), inputs, "bf16")).values())


def test_weights_that_do_not_fit_stay_with_their_product() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)).eval(), (torch.zeros(2, 16),)
    with torch.no_grad():
        model[0].weight[0, 0] = 1e6
    found = applied(model, inputs)
    assert dtypes(found.program, "linear") == {torch.float16, torch.float32}
    x = torch.ones(2, 16)
    x[:, 0] = 0.0  # an infinite weight would make it NaN
    torch.testing.assert_close(found.program.run(x)[0], model(x), rtol=1e-2, atol=1e-2)


def test_a_mask_of_the_smallest_number_stays_and_so_does_what_it_is_added_to() -> None:
    model, inputs = make("masked")
    found = applied(model, inputs)
    assert dtypes(found.program, "softmax") == {torch.float32}
    empty = (inputs[0], torch.zeros_like(inputs[1]))  # in float16 every score would be -inf, and softmax NaN
    torch.testing.assert_close(found.program.run(*empty)[0], model(*empty), rtol=1e-2, atol=1e-2)


def test_an_epsilon_that_becomes_zero_keeps_its_sum_in_float32() -> None:
    model, inputs = make("hand_norm")
    found = applied(model, inputs)
    assert reasons(found)[":add"] == "holds the number 1e-12"
    with torch.no_grad():
        model.a.bias.zero_()  # type: ignore[union-attr]
    zeros = (torch.zeros(2, 5, 16),)
    assert applied(model, inputs).program.run(*zeros)[0].isfinite().all()


def test_what_is_made_of_integers_stays() -> None:
    program = applied(*make("positions")).program
    assert dtypes(program, "sin") == dtypes(program, "mul") == {torch.float32}
    assert dtypes(program, "linear") == {torch.float16}


def test_cancellation_is_found_by_rounding_the_operands() -> None:
    class Cancels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(torch.relu(x + 300.0) - 300.0 - x + x.abs())

    torch.manual_seed(0)
    kept = reasons(applied(Cancels(), (torch.randn(2, 16),), "bf16"))
    assert any("rounded operands move its result" in reason for reason in kept.values())


def test_modules_that_the_user_names_stay() -> None:
    model, inputs = make("transformer")
    found = applied(model, inputs, keep=("blocks.0", "head"))
    paths = {
        n.meta["nn_module_stack"] and next(reversed(n.meta["nn_module_stack"].values()))[0]: dtype_of(n)
        for n in found.program.graph.nodes
        if n.target == torch.ops.aten.linear.default
    }
    assert paths["blocks.0.qkv"] == paths["head"] == torch.float32
    assert paths["blocks.1.qkv"] == torch.float16
    assert reasons(found)["head:linear"] == "asked for by keep_fp32"


def dtype_of(node: fx.Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def test_unknown_modules_are_refused_with_those_there_are() -> None:
    program = fxexport.capture(Tiny().eval(), (torch.randn(2, 5, 16),))
    with pytest.raises(InputError, match=r"keep_fp32 names 'bloks.0'; the modules are blocks.0"):
        refuse_unknown_modules(["bloks.0"], [program])
    refuse_unknown_modules(["blocks.0", "blocks.1.norm"], [program])


def test_a_branch_keeps_float32_inside_and_says_so() -> None:
    found = applied(*make("branch"))
    assert found.record.notes[-1] == "what branches and loops compute inside stays in float32"
    assert dtypes(found.program, "linear") == {torch.float16}


# ---------------------------------------------------------------- ranges, sizes


def test_other_dynamic_sizes(tmp_path: Path) -> None:
    model, inputs = make("transformer")
    path = tmp_path / "tiny.pt2"
    artifact = fxexport.compile(model.eval(), path, inputs, dynamic={"x": ["batch", "time", None]}, precision="fp16")
    x = torch.randn(3, 9, 16)
    torch.testing.assert_close(artifact(x), model(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("case", ["convolution", "masked", "positions", "branch"])
def test_onnx_files_are_proved_against_the_float32_model(case: str, tmp_path: Path) -> None:
    model, inputs = make(case)
    artifact = fxexport.compile(model.eval(), tmp_path / "m.onnx", inputs, dynamic=True, precision="fp16")
    assert artifact.report is not None
    assert artifact.report.precision is not None
    assert artifact.report.precision.lowered > 0
    graph = onnx.load(tmp_path / "m.onnx").graph
    halves = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert halves
    assert {v.type.tensor_type.elem_type for v in graph.output} == {onnx.TensorProto.FLOAT}
