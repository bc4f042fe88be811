"""A hypothesis strategy that draws random ATen programs with inputs, to try a pass on programs nobody thought of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import Tensor, fx, nn

from fxexport.capture import capture
from fxexport.errors import InputError
from fxexport.program import Program
from fxexport.signature import Axis, TensorSpec, dtype_name
from fxexport.testing.draft import Draft, dtype_of
from fxexport.testing.operators import GROUPS, OPERATORS, Operator

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Layout = tuple[tuple[torch.dtype, tuple[Axis, ...]], ...]
"""dtype and axes of each input; the axes ``batch`` and ``time`` are dynamic."""

F32, F64, I64, BOOL = torch.float32, torch.float64, torch.int64, torch.bool
LAYOUTS: tuple[Layout, ...] = (
    ((F32, (3, 4)),),
    ((F32, (6,)),),
    ((F32, ("batch", 4)),),
    ((F32, (2, 3, 4)), (F32, (4,)), (I64, (2, 3))),
    ((F32, (2, 4, 6, 6)),),
    ((F32, ("batch", 4)), (F32, ("batch", 4))),
    ((F32, ("batch", 4, 5, 5)),),
    ((F64, (3, 4)), (BOOL, (3, 4))),
    ((I64, (3, 4)), (F32, (3, 4))),
    ((F32, ("batch", 3, 4)), (I64, ("batch", 3))),
    ((F32, (1, 2, 5)), (F32, (2, 1, 5))),
    ((F32, ("batch", "time", 4)),),
    ((F32, (5, 1, 6, 1)),),
    ((F32, (2, 2, 2, 2)), (F32, (2, 2))),
)
"""What the inputs of a random program may be, the simplest first."""

SIZES = {"batch": (3, 5), "time": (5, 2)}
"""Dynamic axis -> its size in ``inputs`` and in ``other_inputs``."""


@dataclass(frozen=True)
class RandomProgram:
    """A random program and inputs on which it is known to run.

    Attributes:
        program: two steps or twenty; may have dead code, shared constants, unused inputs, one value returned twice.
        inputs: one tensor for each of ``program.signature.inputs``.
        other_inputs: the same with other values, and with other sizes along dynamic axes.
        operators: the names of the operators drawn that were accepted, in order.
    """

    program: Program
    inputs: list[Tensor]
    other_inputs: list[Tensor]
    operators: tuple[str, ...]

    def __repr__(self) -> str:
        shown = [f"{s.name}: {_form(t)}" for s, t in zip(self.program.signature.inputs, self.inputs, strict=True)]
        shown += [f"{name}: {_form(value)}" for name, value in self.program.constants().items()]
        return "\n  ".join([f"{self.program}", *shown])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How hypothesis prints a counterexample."""
        printer.text(repr(self))


def programs(
    operators: Iterable[str | Operator] | Mapping[str | Operator, int] | None = None, *, max_steps: int = 24
) -> SearchStrategy[RandomProgram]:
    """Random programs of up to ``max_steps`` operators, as a strategy for ``hypothesis.given``.

    ``operators`` restricts what is drawn: names of operators or of groups (``fxexport.testing.OPERATORS``, ``GROUPS``),
    or functions of a ``Draft`` of your own; as a mapping, with a weight for each. Default: everything.

    Sizes are 1 to 6, ranks 0 to 5, inputs float32, float64, int64 and bool, some with a dynamic batch; weights are
    constants, sometimes shared. One program in eight may compute infinities and NaN. Operators that draw random numbers
    are not drawn. Counterexamples shrink to the fewest operators, and print as the graph.

        from hypothesis import given, settings
        from fxexport.testing import Draft, assert_preserves, programs

        def residual(draft: Draft):                       # what FuseMine looks for, so that it is often there
            x = draft.tensor("float", rank=[2, 3])
            return draft.call(torch.ops.aten.add.Tensor, x, draft.call(torch.ops.aten.relu.default, x))

        @settings(max_examples=500, deadline=None)
        @given(programs({"elementwise": 1, "shapes": 1, residual: 3}))
        def test_fuse_mine_is_never_wrong(sample):
            assert_preserves(FuseMine(), sample)

    Raises InputError for an unknown operator, and where hypothesis is not installed.
    """
    try:
        from hypothesis import strategies as st
    except ImportError as error:
        raise InputError("fxexport.testing.programs needs hypothesis: pip install 'fxexport[testing]'") from error
    named = _weighted(operators)
    step = st.tuples(st.sampled_from(named), st.binary(min_size=12, max_size=12))
    # Two lists: one alone is short most of the time.
    half = st.lists(step, max_size=max_steps // 2)

    @st.composite
    def draw_program(draw: Callable[[SearchStrategy[Any]], Any]) -> RandomProgram:
        layout = draw(st.sampled_from(LAYOUTS))
        steps = draw(half) + draw(half)
        returned = draw(st.lists(st.integers(0, 11), min_size=1, max_size=3))
        seed, wild = draw(st.integers(0, 999)), draw(st.integers(0, 7)) == 7
        return build(layout, steps, returned, seed=seed, wild=wild)

    return draw_program()


def build(
    layout: Layout,
    steps: Sequence[tuple[tuple[str, Operator], bytes]],
    returned: Sequence[int],
    *,
    seed: int,
    wild: bool,
) -> RandomProgram:
    """The program that calls each operator of ``steps`` by its choices; ``returned`` counts back from the last value."""
    skeleton = _skeleton(layout, len(returned))
    if _is_fixed(skeleton):  # by a pass that was wrong about a dynamic size, which all clones share
        _skeleton.cache_clear()
        skeleton = _skeleton(layout, len(returned))
    program = skeleton.clone()
    stems = list(program.find(torch.ops.aten.clone.default))
    generator = torch.Generator().manual_seed(seed)
    inputs, others = (_examples(layout, which, generator) for which in (0, 1))
    draft = Draft(program, [inputs, others], seed=seed, wild=wild)
    accepted = [name for (name, make), choices in steps if draft.step(make, choices)]
    outputs = [draft.values[-1 - (i % len(draft.values))] for i in returned]
    program.graph.output_node().args = (tuple(outputs),)
    program.signature = replace(
        program.signature,
        outputs=tuple(map(functools.partial(_spec, program), program.signature.outputs, outputs)),
    )
    for node in stems:
        program.graph.erase_node(node)
    return RandomProgram(program, inputs, others, tuple(accepted))


class _Stem(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors[0].clone() for _ in range(self.outputs))


@functools.cache
def _skeleton(layout: Layout, outputs: int) -> Program:
    """A captured program of the given inputs that returns copies of the first: what random programs start from."""
    names = ["x", "y", "z"][: len(layout)]
    dynamic = {
        name: {i: axis for i, axis in enumerate(axes) if isinstance(axis, str)}
        for name, (_, axes) in zip(names, layout, strict=True)
    }
    examples = tuple(_examples(layout, 0, torch.Generator().manual_seed(0)))
    wanted = {name: axes for name, axes in dynamic.items() if axes}
    return capture(_Stem(outputs).eval(), examples, dynamic=wanted or None, input_names=names)


def _is_fixed(program: Program) -> bool:
    env = program.fake_mode.shape_env
    return bool(env and env.replacements)


def _examples(layout: Layout, which: int, generator: torch.Generator) -> list[Tensor]:
    """Normal reals, integers from 0 to 3, coins; dynamic sizes by SIZES."""
    made = []
    for dtype, axes in layout:
        shape = [SIZES[axis][which] if isinstance(axis, str) else axis for axis in axes]
        if dtype.is_floating_point:
            made.append(torch.randn(*shape, dtype=dtype, generator=generator))
        else:
            made.append(torch.randint(0, 2 if dtype == BOOL else 4, shape, generator=generator).to(dtype))
    return made


def _spec(program: Program, old: TensorSpec, node: fx.Node) -> TensorSpec:
    labels = {
        size.node.expr: sympy.Symbol(str(axis))
        for given, spec in zip(program.input_nodes, program.signature.inputs, strict=True)
        for size, axis in zip(given.meta["val"].shape, spec.axes, strict=True)
        if isinstance(size, torch.SymInt)
    }
    sizes = [size if isinstance(size, int) else size.node.expr.xreplace(labels) for size in node.meta["val"].shape]
    axes = tuple(int(size) if sympy.sympify(size).is_Integer else str(size).replace(" ", "") for size in sizes)
    return replace(old, dtype=dtype_of(node), axes=axes)


def _weighted(operators: Any) -> list[tuple[str, Operator]]:
    """Every operator asked for, as often as its weight; all with weight 1 by default."""
    weights = operators if isinstance(operators, Mapping) else dict.fromkeys(operators or GROUPS, 1)
    found: list[tuple[str, Operator]] = []
    for item, weight in weights.items():
        if callable(item):
            found += [(getattr(item, "__name__", str(item)), item)] * weight
        elif item in GROUPS:
            found += list(GROUPS[item].items()) * weight
        elif item in OPERATORS:
            found += [(item, OPERATORS[item])] * weight
        else:
            raise InputError(f"no operator {item!r}; groups: {', '.join(GROUPS)}; operators: {', '.join(OPERATORS)}")
    return found


def _form(tensor: Tensor) -> str:
    return f"{dtype_name(tensor.dtype)}{list(tensor.shape)}"
