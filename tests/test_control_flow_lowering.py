"""``torch.cond`` and ``torch.while_loop`` from the model to each file: real If and Loop, right on both sides."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, fx, nn

import fxexport
from fxexport.capture.birth import nan_birth
from fxexport.capture.filled_memory import ZEROS, Filled
from fxexport.capture.pipeline import capture_model
from fxexport.control_flow import COND, control_flow, eager_control_flow, insert_cond, insert_while_loop, operands_of
from fxexport.errors import CaptureError, VerifyError
from fxexport.lowering import lower
from fxexport.passes import FoldBatchnorm, RemoveDropout, RemoveNoops
from fxexport.program import Program, source_line
from fxexport.rewrite import NodePass, PassManager
from fxexport.session import open_session
from fxexport.validation.compare import compare_outputs, tolerance_for

aten = torch.ops.aten
X = torch.tensor([[0.5, 1.0, 0.25, 2.0], [1.5, 0.5, 3.0, 0.75], [0.1, 0.2, 0.3, 0.4]])
FORMATS = ("onnx", "pt", "pt2")


class Weights(nn.Module):
    """Weights and constants of the closure, two results, one of them integers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.offset = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def forward(self, x: Tensor) -> Any:
        def yes(x: Tensor) -> Any:
            return self.linear(x).relu() + torch.tensor([1.0, 2.0, 3.0, 4.0]), x.sum(1).to(torch.int64)

        def no(x: Tensor) -> Any:
            return x * self.scale + self.offset * x.shape[0], x.mean(1).to(torch.int64)

        return torch.cond(x.sum() > 0, yes, no, (x,))


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        def yes(x: Tensor) -> Any:
            return torch.cond(
                x.mean() > 0.9, lambda x: x.sin(), lambda x: x.cos() + x.shape[0] + torch.tensor(2.0), (x,)
            )

        return torch.cond(x.sum() > 0, yes, lambda x: -x, (x,)) * 2  # type: ignore[no-any-return]


class Convolutions(nn.Module):
    """A batchnorm to fold, a dropout to remove and a block without gradients on each side."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.flat = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.2))
        for norm in (self.deep[1], self.flat[1]):
            norm.running_mean.uniform_(-1, 1)  # type: ignore[operator]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        def flat(x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.flat(x) * 2  # type: ignore[no-any-return]

        return torch.cond(x.mean() > 0, self.deep, flat, (x,))  # type: ignore[no-any-return]


class Writes(nn.Module):
    """In-place operators and a write into a slice, on tensors of the branch."""

    def forward(self, x: Tensor) -> Tensor:
        def yes(x: Tensor) -> Tensor:
            y = x * 2
            y.relu_()
            y[:, 0] = 1
            return y

        return torch.cond(x.sum() > 0, yes, lambda x: x.clone().add_(1), (x,))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Operators that the translation has to decompose, inside of a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        def no(x: Tensor) -> Tensor:
            return nn.functional.layer_norm(x, (4,))

        return torch.cond(x.mean() > 0, lambda x: self.layer(x[None])[0], no, (x,))  # type: ignore[no-any-return]


class Counted(nn.Module):
    """A tensor and a counter are carried, the number of rounds depends on data; none where the sum is large."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, x: Tensor) -> Any:
        def going(i: Tensor, y: Tensor) -> Tensor:
            return (y.sum() < 100) & (i < 10)

        i, y = torch.while_loop(going, lambda i, y: (i + 1, y * 2 + self.step), (torch.tensor(0), x))  # type: ignore[no-untyped-call]
        return y, i


class BranchInLoop(nn.Module):
    """A round for each row, with a branch in it."""

    def forward(self, x: Tensor) -> Any:
        def body(i: Tensor, y: Tensor) -> Any:
            return i + 1, torch.cond(y.sum() > 0, lambda y: y - 1, lambda y: y * 2 + 1, (y,))

        return torch.while_loop(lambda i, y: i < y.shape[0], body, (torch.tensor(0), x))  # type: ignore[no-untyped-call]


class LoopOverNumber(nn.Module):
    """A Python number is carried."""

    def forward(self, x: Tensor) -> Any:
        return torch.while_loop(lambda i, y: i < y.shape[0], lambda i, y: (i + 1, y + i), (0, x))[1]  # type: ignore[no-untyped-call]


class SizeDecides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.shape[0] > 3, lambda x: x + 1, lambda x: x - 1, (x,))  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weights": (Weights, "if"),
    "nested": (Nested, "if"),
    "convolutions": (Convolutions, "if"),
    "writes": (Writes, "if"),
    "attention": (Attention, "if"),
    "size": (SizeDecides, "if"),
    "counted": (Counted, "while"),
    "branch-in-loop": (BranchInLoop, "while"),
    "number": (LoopOverNumber, "while"),
}


def example(model: nn.Module) -> Tensor:
    return torch.rand(3, 3, 5, 5) if isinstance(model, Convolutions) else X


def sides(x: Tensor) -> list[Tensor]:
    return [x, -x, x * 0.1, x * 1000, torch.cat([x, x - 2])[:5], x[:1] - 1]


def operators(path: Path) -> Counter[str]:
    """Every operator of an ONNX file, those in sub-graphs among them."""

    def count(graph: onnx.GraphProto) -> Counter[str]:
        found = Counter(node.op_type for node in graph.node)
        for node in graph.node:
            for attribute in node.attribute:
                found += count(attribute.g) if attribute.HasField("g") else Counter[str]()
        return found

    return count(onnx.load(str(path)).graph)


def agree(model: nn.Module, path: Path, program: Program, inputs: Sequence[Tensor]) -> None:
    session, outputs = open_session(path), [spec.name for spec in program.signature.outputs]
    for x in inputs:
        with torch.no_grad(), eager_control_flow():
            want = model(x)
        got = session([spec.name for spec in program.signature.inputs], [x])
        results = compare_outputs(outputs, list(want) if isinstance(want, tuple) else [want], got, tolerance_for)
        assert all(r.passed for r in results), f"{path.suffix}: {[(r.name, r.reason) for r in results]}"


@pytest.fixture
def no_retracing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the program was traced again")

    monkeypatch.setattr(torch.onnx, "export", refused)
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", refused)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("no_retracing")
def test_a_model_with_control_flow_is_right_on_both_sides_in_every_format(name: str, tmp_path: Path) -> None:
    make, word = MODELS[name]
    model = make().eval()
    x = example(model)
    program = capture_model(model, x, dynamic={"x": {0: "batch"}}).program
    tidy, _ = PassManager([RemoveDropout(), RemoveNoops(), FoldBatchnorm()]).run(program)
    for form, formats in ((program, ("onnx",)), (tidy, FORMATS)):
        form.verify()
        for suffix in formats:
            if (name, suffix) == ("number", "pt2"):  # torch.export.save has no form of a number among what is carried
                continue
            path = tmp_path / f"m.{suffix}"
            lower(form, path)
            agree(model, path, form, sides(x))
    wanted = {"If": 0, "Loop": 0}
    for _, _, graph in tidy.graphs():
        for call in control_flow(graph):
            wanted["If" if call.target is COND else "Loop"] += 1
    found = operators(tmp_path / "m.onnx")
    assert {kind: found[kind] for kind in wanted} == wanted
    assert wanted[{"if": "If", "while": "Loop"}[word]]
    assert {"if": "prim::If", "while": "prim::Loop"}[word] in str(torch.jit.load(str(tmp_path / "m.pt")).inlined_graph)  # type: ignore[no-untyped-call]


def test_compile_proves_both_files_of_a_branch(tmp_path: Path) -> None:
    for suffix in ("onnx", "pt"):
        path = tmp_path / f"m.{suffix}"
        artifact: Any = fxexport.compile(Nested().eval(), path, X, dynamic={"x": {0: "batch"}})
        for x in sides(X):
            with eager_control_flow():
                assert torch.allclose(torch.as_tensor(artifact(x)), Nested()(x), atol=1e-6)


def test_passes_work_inside_of_branches_and_say_so() -> None:
    model = Convolutions().eval()
    program = capture_model(model, example(model), dynamic={"x": {0: "batch"}}).program
    text = str(program)
    tidy, records = PassManager([RemoveDropout(), FoldBatchnorm()]).run(program)
    assert [record.count for record in records] == [2, 2]
    assert str(program) == text
    calls = Counter(str(node.target) for _, _, graph in tidy.graphs() for node in graph.nodes)
    assert not [name for name in calls if "batch_norm" in name or "dropout" in name]
    (cond,) = control_flow(tidy.graph)
    assert len(operands_of(cond)) == 5, "the image, two weights and two biases: those of the batchnorms are gone"
    assert len(tidy.constants()) == 4
    assert "in true_graph_0" not in tidy.notes
    (first,) = PassManager([RemoveDropout()]).run(program, limit=1)[1]
    assert first.count == 1
    assert all(source_line(node).startswith(__file__) for node in tidy.graph.nodes if node.op == "call_function")


def test_a_pass_that_breaks_a_branch_is_rolled_back() -> None:
    class Widen(NodePass):
        name = "widen"
        targets = (aten.neg.default,)

        def rewrite(self, program: Program, node: fx.Node) -> Any:
            node.replace_all_uses_with(program.insert(aten.unsqueeze.default, (node.args[0], 0), before=node))
            program.erase(node)
            return True

    program = capture_model(Nested().eval(), X).program
    with pytest.raises(VerifyError, match=r"result unsqueeze\w* inside of cond is torch.float32\[1, 3, 4\], its value"):
        PassManager([Widen()]).run(program)


def test_what_nothing_reads_is_no_result_and_no_operand() -> None:
    class Half(Weights):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x)[1]

    program = capture_model(Half().eval(), X).program
    program.erase_dead()
    program.verify()
    (cond,) = control_flow(program.graph)
    assert len(operands_of(cond)) == 1
    assert len(cond.meta["val"]) == 1
    assert not program.constants()
    assert program.run(X)[0].tolist() == [3, 5, 1]
    cond.replace_all_uses_with(cond)
    for item in list(cond.users):
        item.replace_all_uses_with(program.input_nodes[0])
    program.erase_dead()
    assert [node.op for node in program.graph.nodes] == ["placeholder", "output"]


def test_a_write_into_an_operand_is_refused_with_its_line() -> None:
    class Outside(nn.Module):
        def forward(self, x: Tensor) -> Any:
            y = x * 1
            return torch.cond(x.sum() > 0, lambda y: y.add_(1) * 1, lambda y: y * 1, (y,)), y

    with pytest.raises(CaptureError):
        capture_model(Outside().eval(), X)


def test_the_eager_model_is_watched_inside_of_a_branch_and_left_usable() -> None:
    class Empty(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.cond(x.sum() > 0, lambda x: torch.empty_like(x), lambda x: x * 1, (x,))

    with torch.no_grad(), eager_control_flow(), Filled(ZEROS) as watcher:
        assert torch.equal(Empty()(X), torch.zeros_like(X))
    assert watcher.used
    assert torch.equal(Empty()(-X), -X), "PyTorch compiles torch.cond as before"


# -------------------------------------------------------------------- built, not captured


class Two(nn.Module):
    def forward(self, x: Tensor, w: Tensor) -> Any:
        return x * w, w * 2, x.sum() > 0


def built(edit: Callable[[fx.GraphModule, dict[str, fx.Node]], list[fx.Node]], w: Tensor = X[0]) -> Program:
    """The program of :class:`Two` that returns what ``edit`` inserts."""
    whole = capture_model(Two().eval(), (X, w), dynamic={"x": {0: "batch"}}).program
    exported = whole.to_exported()
    module = exported.graph_module
    nodes = {node.name: node for node in module.graph.nodes}
    results = edit(module, nodes)
    module.graph.output_node().args = ((*results[:2], nodes["gt"]),)
    module.recompile()
    return Program(exported, whole.signature)


def graph_of(build: Callable[..., Any], *operands: fx.Node) -> fx.Graph:
    """``build(call, *placeholders)`` as a graph; ``call`` adds an operator."""
    graph = fx.Graph()
    places = []
    for operand in operands:
        places.append(graph.placeholder(operand.name))
        places[-1].meta["val"] = operand.meta["val"]

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = graph.call_function(target, args, kwargs)
        values, named = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with operands[0].meta["val"].fake_mode:
            node.meta["val"] = target(*values, **named)
        return node

    graph.output(build(call, *places))
    return graph


def run_files(program: Program, tmp_path: Path, *inputs: Tensor) -> list[list[Tensor]]:
    program.verify()
    found = [list(program.run(*inputs))]
    names = [spec.name for spec in program.signature.inputs]
    for suffix in FORMATS:
        lower(program, tmp_path / f"b.{suffix}")
        found.append([torch.as_tensor(t) for t in open_session(tmp_path / f"b.{suffix}")(names, list(inputs))])
    return found


@pytest.mark.usefixtures("no_retracing")
def test_an_inserted_branch_may_return_operands_and_sizes_of_its_own(tmp_path: Path) -> None:
    def edit(module: fx.GraphModule, nodes: dict[str, fx.Node]) -> list[fx.Node]:
        mul, w = nodes["mul"], nodes["w"]
        yes = graph_of(lambda call, a, b: (a, call(aten.slice.Tensor, b, 0, 0, 2)), mul, w)
        no = graph_of(lambda call, a, b: (call(aten.neg.default, a), b), mul, w)
        return insert_cond(module, module.graph.output_node(), nodes["gt"], yes, no, [mul, w])

    program = built(edit)
    (call,) = control_flow(program.graph)
    assert [str(size) for size in call.meta["unbacked_bindings"]] == [str(call.meta["val"][1].shape[0])]
    for results in run_files(program, tmp_path, X, X[0]):
        assert torch.allclose(results[0], X * X[0])
        assert torch.equal(results[1], X[0][:2])
    for results in run_files(program, tmp_path, -X[:2], X[0]):
        assert torch.allclose(results[0], X[:2] * X[0])
        assert torch.equal(results[1], X[0])


def test_results_of_other_strides_are_laid_out_alike() -> None:
    def edit(module: fx.GraphModule, nodes: dict[str, fx.Node]) -> list[fx.Node]:
        mul = nodes["mul"]
        turned = graph_of(lambda call, a: (call(aten.permute.default, call(aten.clone.default, a), [1, 0]),) * 2, mul)
        plain = graph_of(
            lambda call, a: (
                (
                    call(
                        aten.clone.default, call(aten.permute.default, a, [1, 0]), memory_format=torch.contiguous_format
                    ),
                )
                * 2
            ),
            mul,
        )
        return insert_cond(module, module.graph.output_node(), nodes["gt"], turned, plain, [mul])

    program = built(edit)
    for x in (X, -X):
        for result in program.run(x, X[0])[:2]:
            assert torch.equal(result, (x * X[0]).T)
            assert result.stride() == (1, 4)


@pytest.mark.usefixtures("no_retracing")
def test_an_inserted_loop_runs_while_its_condition_holds(tmp_path: Path) -> None:
    def edit(module: fx.GraphModule, nodes: dict[str, fx.Node]) -> list[fx.Node]:
        mul, w = nodes["mul"], nodes["w"]

        def going(call: Any, a: fx.Node, b: fx.Node, other: fx.Node) -> Any:
            return (call(aten.lt.Scalar, call(aten.sum.default, a), 100),)

        def body(call: Any, a: fx.Node, b: fx.Node, other: fx.Node) -> Any:
            return call(aten.add.Tensor, call(aten.mul.Tensor, a, 2), other), other

        carried = [mul, w]
        graphs = (graph_of(going, mul, w, w), graph_of(body, mul, w, w))
        return insert_while_loop(module, module.graph.output_node(), *graphs, carried, [w])

    program = built(edit)
    for x in (X, X[:1], X * 1000):
        want = x * X[0]
        while want.sum() < 100:
            want = want * 2 + X[0]
        for results in run_files(program, tmp_path, x, X[0]):
            assert torch.allclose(results[0], want)
            assert torch.equal(results[1], X[0])


@pytest.mark.parametrize(
    ("yes", "no", "message"),
    [
        (lambda call, a: (a,), lambda call, a: (a, a), "have 1 and 2 results"),
        (lambda call, a: (a,), lambda call, a: (call(aten.sum.default, a),), r"float32\[.*4\] and torch.float32\[\]"),
        (lambda call, a: (a,), lambda call, a: (call(aten.gt.Scalar, a, 0),), r"float32.* and torch.bool"),
        (lambda call, a: (a,), lambda call, a: a, "returns a tuple of tensors"),
    ],
    ids=["count", "rank", "dtype", "tuple"],
)
def test_sides_that_do_not_fit_are_refused(yes: Any, no: Any, message: str) -> None:
    def edit(module: fx.GraphModule, nodes: dict[str, fx.Node]) -> list[fx.Node]:
        mul = nodes["mul"]
        graphs = graph_of(yes, mul), graph_of(no, mul)
        return insert_cond(module, module.graph.output_node(), nodes["gt"], *graphs, [mul])

    with pytest.raises(CaptureError, match=message):
        built(edit)


def test_a_loop_whose_shapes_grow_and_a_predicate_of_numbers_are_refused() -> None:
    def grows(module: fx.GraphModule, nodes: dict[str, fx.Node]) -> list[fx.Node]:
        mul = nodes["mul"]
        going = graph_of(lambda call, a: call(aten.lt.Scalar, call(aten.sum.default, a), 9), mul)
        body = graph_of(lambda call, a: (call(aten.cat.default, [a, a], 1),), mul)
        return insert_while_loop(module, module.graph.output_node(), going, body, [mul], [])

    def counts(module: fx.GraphModule, nodes: dict[str, fx.Node]) -> list[fx.Node]:
        mul = nodes["mul"]
        graphs = [graph_of(lambda call, a: (a,), mul) for _ in range(2)]
        return insert_cond(module, module.graph.output_node(), mul, graphs[0], graphs[1], [mul])

    with pytest.raises(CaptureError, match=r"mul is .* before the loop and .*8\] after a round of it"):
        built(grows)
    with pytest.raises(CaptureError, match=r"mul decides where to go and is .* not a bool tensor of one element"):
        built(counts)


def test_verify_finds_graphs_that_do_not_fit_their_call() -> None:
    program = capture_model(Nested().eval(), X).program
    twin = program.clone()
    (call,) = control_flow(twin.graph)
    assert call.target is COND
    (item,) = [user for user in call.users if user.target is operator.getitem]
    call.args = (*call.args[:3], (*operands_of(call), item.args[0]))
    call.args = (*call.args[:3], (twin.input_nodes[0], twin.input_nodes[0], twin.input_nodes[0], twin.input_nodes[0]))
    with pytest.raises(VerifyError, match="cond gives 4 operands to a graph that takes"):
        twin.verify()
    program.verify()
    inner = [graph for path, _, graph in program.graphs() if path.count(".") == 1]
    assert len(inner) == 2
    node = next(n for n in inner[0].nodes if n.op == "call_function")
    del node.meta["val"]
    with pytest.raises(VerifyError, match=r'in true_graph_0.true_graph_0 has no meta\["val"\]'):
        program.verify()


def test_a_nan_is_traced_into_the_branch_that_made_it() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.cond(x.sum() > 0, lambda x: (x - 1).sqrt() + 1, lambda x: x * 1, (x,))

    captured = capture_model(Root().eval(), X + 1)
    captured.reference.call.tensors[0].sub_(0.9)
    assert "it is born in aten.sqrt.default" in nan_birth(captured.reference)
