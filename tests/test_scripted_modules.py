"""S34: ``torch.jit.script`` as a replacement: a module stays TorchScript in a ``.pt`` file, with all its branches."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxexport
from fxexport.errors import CaptureError, InputError, ValidationError
from fxexport.exportable.scripted import CALL, ScriptedModule


class GatedBlock(nn.Module):
    """Takes one of two ways, by the values of its input."""

    def __init__(self, size: int, second: bool = True) -> None:
        super().__init__()
        self.size = size
        self.bn, self.up = nn.BatchNorm1d(size), nn.Linear(size, size)
        self.down = nn.Linear(size, size) if second else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.down(x)) * 3
        if bool(x.sum() > 0):
            y = torch.relu(self.up(x)) + 1
        return y


class Net(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6, bias=False), nn.Linear(6, 2)
        self.blocks = nn.ModuleList(blocks or [GatedBlock(6), GatedBlock(6)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.last(x)
        return result


EXAMPLE = torch.linspace(-1, 1.2, 12).reshape(3, 4)
BATCH = {"x": ["batch", None]}


def export(model: nn.Module, path: Path, example: Any = EXAMPLE, name: str = "GatedBlock", **options: Any) -> Any:
    """The loaded file, in which modules of the class ``name`` stay TorchScript."""
    options = {"dynamic": BATCH, "replacements": {name: torch.jit.script}, **options}
    fxexport.compile(model, path, example, **options)
    return torch.jit.load(str(path))  # type: ignore[no-untyped-call]


def check(loaded: Any, model: nn.Module, *examples: Any) -> None:
    for example in examples:
        args = example if isinstance(example, tuple) else (example,)
        expected = model(*args)
        flat = list(expected.values()) if isinstance(expected, dict) else expected
        flat = [flat] if isinstance(flat, Tensor) else list(flat)
        torch.testing.assert_close(list(loaded(*args)), flat)


def kinds(block: Any) -> set[str]:
    found = set()
    for node in block.nodes():
        found |= {node.kind()}.union(*map(kinds, node.blocks()))
    return found


def both_ways(model: Net) -> list[Tensor]:
    """Inputs for which the first block goes either way, of several batch sizes."""
    found = [EXAMPLE, -EXAMPLE, *(sign * torch.rand(n, 4) for n in (1, 5) for sign in (1, -1))]
    assert {bool(model.first(x).sum() > 0) for x in found} == {True, False}
    return found


@pytest.mark.parametrize("passes", ["default", "none"])
def test_both_branches_are_in_the_file_and_right(passes: str, tmp_path: Path, untouched: Any) -> None:
    model = Net().eval()
    replaced = {"GatedBlock": torch.jit.script}
    with untouched(model):
        artifact = fxexport.compile(
            model, tmp_path / "m.ts", EXAMPLE, dynamic=BATCH, replacements=replaced, passes=passes, check="each"
        )
    assert "blocks.0, blocks.1 kept as TorchScript with all branches" in str(artifact.report)
    loaded: Any = torch.jit.load(str(tmp_path / "m.ts"))  # type: ignore[no-untyped-call]
    check(loaded, model, *both_ways(model))
    assert "prim::If" in kinds(loaded.inlined_graph)
    assert len(list(loaded.parameters())) + len(list(loaded.buffers())) == 3 + 2 * 9  # nothing is stored twice
    assert not any(p.requires_grad for p in loaded.parameters())


def test_two_exports_in_one_process_give_the_same_bytes(tmp_path: Path) -> None:
    model = Net(GatedBlock(6), GatedBlock(6, second=False)).eval()
    files = [tmp_path / folder / "m.pt" for folder in ("a", "b")]
    for path in files:
        check(export(model, path, dynamic=None, mkdir=True), model, EXAMPLE, -EXAMPLE)
        torch.jit.script(GatedBlock(5, second=False))  # TorchScript numbers classes on
    assert files[0].read_bytes() == files[1].read_bytes()


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.full((1, 1), 0.25)  # neither parameter nor buffer

    def forward(self, x: Tensor, y: Tensor, scale: float, z: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if bool(x.max() > y.max()):
            return x.t(), y * scale + self.shift
        if z is not None:
            y = y + z
        return y.t(), x


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if bool((x > 0).all()):
            return {"same": x, "sum": x.sum(1)}
        return {"same": x * 2, "sum": x.sum(1) * 2}


class Uses(nn.Module):
    """Several tensors, constants and keywords go in; several tensors come out, of another layout, or the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.named = Pair(), Named()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turned, other = self.pair(x, y, 0.5, z=x)
        found = self.named(other)
        again, _ = self.pair(y, x, 2.0)
        return turned.reshape(-1), found["same"] + 1, found["sum"] + again.sum()


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    model, scripted = Uses().eval(), {"Pair": torch.jit.script, "Named": torch.jit.script}
    dynamic = {"x": ["batch", None], "y": ["batch", None]}
    loaded = export(model, tmp_path / "m.pt", (x, y), replacements=scripted, dynamic=dynamic)
    check(loaded, model, (x, y), (x.abs() + 9, y), (x, y.abs() + 9), (torch.rand(5, 4) + 1, torch.rand(5, 4)))


class Slower(nn.Module):
    """What a factory may make of another module: the same values, or not."""

    def __init__(self, block: nn.Module, factor: float) -> None:
        super().__init__()
        self.block, self.factor = block, factor

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x) * self.factor
        return result


def test_the_original_judges_what_the_factory_made(tmp_path: Path) -> None:
    model = Net().eval()

    def frozen(block: nn.Module) -> nn.Module:
        script: Any = torch.jit.script(Slower(block, 1.0).eval())
        result: nn.Module = torch.jit.freeze(script, optimize_numerics=False)
        return result

    check(export(model, tmp_path / "f.pt", dynamic=None, replacements={"GatedBlock": frozen}), model, EXAMPLE, -EXAMPLE)
    wrong = {"GatedBlock": lambda block: torch.jit.script(Slower(block, 1.5))}
    with pytest.raises(ValidationError):
        export(model, tmp_path / "w.pt", dynamic=None, replacements=wrong)
    assert not (tmp_path / "w.pt").exists()


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2"])
def test_other_formats_are_refused_before_work(name: str, tmp_path: Path) -> None:
    text = r"replacements\['GatedBlock'\].*for TorchScript files \(\.pt, \.ts\)"
    for factory in (torch.jit.script, lambda block: torch.jit.script(block)):
        with pytest.raises(InputError, match=text):
            export(Net(), tmp_path / name, replacements={"GatedBlock": factory})
    assert not any(tmp_path.iterdir())


def test_a_script_module_elsewhere_and_as_the_whole_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"blocks\.0 is a TorchScript module"):
        export(Net(torch.jit.script(GatedBlock(6)), GatedBlock(6)), tmp_path / "m.pt")
    with pytest.raises(InputError, match="for all that is exported"):
        export(Net(), tmp_path / "m.pt", name="Net")


class Chooses(nn.Module):
    """Returns one size or another."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return x
        return x[:, :3]


class Finds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


class Loops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while bool(x.abs().max() > 1):
            x = x / 2
        return x


class Reads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, : int(x.sum().item())]


class Flag(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, bool]:
        return x, bool(x.sum() > 0)


class One(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


@pytest.mark.parametrize(
    ("inner", "text"),
    [
        (Chooses(), r"inner \(Chooses\) returns .*\[3, 6\] or .*\[3, 3\], by the values"),
        (Finds(), r"inner \(Finds\) returns .*sizes made by the values"),
        (Loops(), r"inner \(Loops\) .*without the values.*more than 32 decisions"),
        (Reads(), r"inner \(Reads\) .*without the values of its inputs at .*test_scripted_modules\.py"),
        (Flag(), r"inner \(Flag\) stays TorchScript, so it must return a tensor"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_results_without_one_form_are_refused(inner: nn.Module, text: str, tmp_path: Path) -> None:
    name = type(inner).__name__
    with pytest.raises((CaptureError, InputError), match=text):
        export(One(inner), tmp_path / "m.pt", torch.randn(3, 6), name, dynamic=None)


class Counts(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 1000):
            self.calls += 1
        return x + self.calls


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 1000):
            x.mul_(2)
        return x + 1


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 1000):
            x = x + torch.rand_like(x)
        return x


class Numbers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y.mul_(2)  # a value of its own
        return nn.functional.dropout(y, 0.5, self.training)


@pytest.mark.parametrize(("inner", "text"), [(Counts(), "writes into"), (Writes(), "writes into"), (Draws(), "draws")])
def test_modules_that_are_no_functions_are_refused(inner: nn.Module, text: str) -> None:
    with pytest.raises(InputError, match=rf"block \({type(inner).__name__}\) cannot stay TorchScript: it {text}"):
        ScriptedModule(inner, torch.jit.script(inner), "block")


def test_writes_into_values_of_its_own_are_none(tmp_path: Path) -> None:
    model = One(Numbers()).eval()
    check(export(model, tmp_path / "m.pt", EXAMPLE, "Numbers", dynamic=None), model, EXAMPLE)


class Resized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        inner = self.scripted(x, x.shape[0])
        assert isinstance(inner, Tensor)
        return inner

    def __init__(self) -> None:
        super().__init__()
        self.scripted = Sized()


class Sized(nn.Module):
    def forward(self, x: Tensor, n: int) -> Tensor:
        return x * n


def test_a_size_as_an_argument_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scripted \(Sized\) stays TorchScript, so it takes tensors and constants"):
        export(Resized(), tmp_path / "m.pt", EXAMPLE, "Sized")


def test_a_copy_runs_the_module_it_was_made_from() -> None:
    block = GatedBlock(6).eval()
    put = ScriptedModule(block, torch.jit.script(block), "block")
    twin = copy.deepcopy(put).double()
    x = torch.randn(2, 6)
    torch.testing.assert_close(put(x), block(x))
    torch.testing.assert_close(twin(x.double()), block(x).double())
    assert twin.script is put.script
    assert twin.size == 6  # attributes of the module that stood there can be read
    assert next(block.parameters()).dtype == torch.float32
    assert CALL is torch.ops.fxexport_script.call.default
