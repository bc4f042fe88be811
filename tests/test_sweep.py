"""The points at which an artifact is checked."""

from __future__ import annotations

import pytest
import torch

from fxexport.errors import InputError
from fxexport.signature import Dimension, Signature, TensorSpec
from fxexport.validation.sweep import draw, evaluate, other_sizes, points


def signature(*axes: tuple[int | str, ...], dimensions: tuple[Dimension, ...]) -> Signature:
    inputs = tuple(TensorSpec(f"x{i}", torch.float32, a) for i, a in enumerate(axes))
    return Signature(inputs, (), dimensions=dimensions)


@pytest.mark.parametrize(
    ("axis", "size"),
    [
        (7, 7),
        ("t", 5),
        ("2*t", 10),
        ("2*t + 1", 11),
        ("(t + 1)//2", 3),
        ("-t + n", 4),
        ("t**2", 25),
        ("(t % 3)", 2),
    ],
)
def test_evaluate(axis: int | str, size: int) -> None:
    assert evaluate(axis, {"t": 5, "n": 9}) == size


@pytest.mark.parametrize("axis", ["u0", "__import__('os')", "t.real", "t if t else t", "'t'*3", "f(t)"])
def test_evaluate_refuses_what_is_no_formula(axis: str) -> None:
    with pytest.raises(InputError, match="no size for"):
        evaluate(axis, {"t": 5})


@pytest.mark.parametrize("own", [1, 2, 4, 9, 100])
@pytest.mark.parametrize(("minimum", "maximum"), [(0, None), (2, None), (0, 100), (1, 9), (4, 4)])
def test_other_sizes(own: int, minimum: int, maximum: int | None) -> None:
    if not minimum <= own <= (maximum or own):
        pytest.skip("the example's own size is always allowed")
    sizes = other_sizes(Dimension("n", own, minimum, maximum), {"n": own})
    allowed = range(minimum, (maximum or 10**6) + 1)
    assert set(sizes) <= set(allowed) - {own}
    assert {1, 2} & set(allowed) - {own} <= set(sizes), "the sizes at which code breaks"
    if maximum is None or maximum > own:
        assert max(sizes) > own, "nothing the example has is enough to hold a larger size"


def test_all_sizes_are_tried_and_all_at_once() -> None:
    known = signature(("n", "t"), ("n", 3), dimensions=(Dimension("n", 2), Dimension("t", 7)))
    examples = [torch.randn(2, 7), torch.randn(2, 3)]
    tried = points(known, examples)
    assert tried[0].label == "example"
    sizes = {(p.sizes["n"], p.sizes["t"]) for p in tried}
    assert {(2, 7), (1, 7), (2, 1), (2, 2)} <= sizes
    assert any(n > 2 for n, _ in sizes)
    assert any(t > 7 for _, t in sizes)
    assert any(n != 2 and t != 7 for n, t in sizes), "all dimensions changed at once"
    for point in tried:
        n, t = point.sizes["n"], point.sizes["t"]
        assert [tuple(x.shape) for x in point.inputs] == [(n, t), (n, 3)]
    fixed = points(known, examples, sizes=False)
    assert {(p.sizes["n"], p.sizes["t"]) for p in fixed} == {(2, 7)}
    assert not torch.equal(fixed[-1].inputs[0], examples[0]), "the same sizes with other values"


def test_the_example_is_used_as_it_was_given() -> None:
    example = torch.randn(2, 7)
    tried = points(signature(("n", 7), dimensions=(Dimension("n", 4),)), [example])
    assert tried[0].inputs[0] is example
    assert tried[0].sizes == {"n": 2}, "its own sizes, not those of the private example of capture"


def test_drawn_values_are_fresh_legal_and_repeatable() -> None:
    known = signature(("n", 3), ("n",), ("n",), dimensions=(Dimension("n", 4),))
    example = [
        torch.tensor([[0.0, 0.5, -1e9]] * 4),
        torch.tensor([3, 1, 0, 2]),
        torch.tensor([True, False, True, True]),
    ]
    a, b, other = (draw(known, example, {"n": 9}, seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, a, b))
    assert not torch.equal(a[0], other[0])
    values, ids, mask = a
    assert values.shape == (9, 3)
    assert len({tuple(row.tolist()) for row in values}) == 9, "repeated rows differ"
    assert (values[:, 0] == 0).all(), "zeros stay"
    assert values[:, 1].gt(0).all(), "signs stay"
    assert values.abs().max() <= 1e9, "and bounds"
    assert set(ids.tolist()) == {0, 1, 2, 3}, "ids stay in range"
    assert ids.tolist() != [3, 1, 0, 2, 3, 1, 0, 2, 3], "and are not where the example has them"
    assert mask.dtype == torch.bool
