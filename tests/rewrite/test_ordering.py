"""Order constraints: kept where they speak, silent where they do not, a contradiction shown as the chain."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import pytest

from fxexport.errors import InputError
from fxexport.program import Program
from fxexport.rewrite import Pass, PassResult, resolve
from fxexport.rewrite.ordering import moves, ordered
from fxexport.rewrite.registry import requested


@dataclass(frozen=True)
class Step(Pass):
    tag: int = 0

    def run(self, program: Program) -> PassResult:
        return PassResult(0)


def step(name: str, *, after: object = (), before: object = ()) -> type[Step]:
    return type(name.title(), (Step,), {"name": name, "after": after, "before": before, "__module__": __name__})


def names(passes: list[Pass]) -> str:
    return " ".join(map(str, passes))


A, B, C = step("a"), step("b"), step("c")


@pytest.mark.parametrize("given", [[], [A()], [B(), A(), C(), A()], [C(), B(), A()]])
def test_without_constraints_the_order_is_as_given(given: list[Pass]) -> None:
    assert ordered(given) == given
    assert moves(given) == []


@pytest.mark.parametrize(
    ("classes", "expected", "said"),
    [
        ([step("x", after=("b",)), A, B, C], "a b x c", ["b runs before x: x.after names it"]),
        ([A, B, step("x", before=("a",)), C], "x a b c", ["x runs before a: x.before names a"]),
        (
            [A, B, C, step("x", before=("y",)), step("y", before=("b",))],
            "a x y b c",
            ["y runs before b: y.before names b"],
        ),
        ([A, step("x", after=("a",), before=("c",)), C], "a x c", []),
        ([step("x", after=("unknown",), before=("missing",)), A], "x a", []),
        (
            [step("z", after=("y",)), A, step("y", after=("x",)), step("x")],
            "a x y z",
            ["y runs before z: z.after names it", "x runs before y: y.after names it"],
        ),
        (
            [step("x", after=("y",)), step("y", before=("x",))],
            "y x",
            ["y runs before x: x.after names it", "y runs before x: y.before names x"],
        ),
    ],
)
def test_constraints_move_no_more_than_they_must(classes: list[type[Step]], expected: str, said: list[str]) -> None:
    given = [cls() for cls in classes]
    assert names(ordered(given)) == expected
    assert moves(given) == said
    assert ordered(ordered(given)) == ordered(given)
    assert moves(ordered(given)) == []


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_every_constraint_holds_whatever_the_order(order: tuple[int, ...]) -> None:
    classes = [step("p"), step("q", after=("p",)), step("r", before=("p",)), step("s", after=("p", "r"), before=("q",))]
    given = [classes[i]() for i in order]
    assert names(ordered(given)) == "r p s q"
    assert bool(moves(given)) == (names(given) != "r p s q")


def test_the_first_of_several_instances_decides() -> None:
    late, early = step("late", after=("a",)), step("early", before=("a",))
    again = [A(), late(), A(tag=1), late(tag=1)]
    assert ordered(again) == again
    assert ordered([late(), late(tag=1), A(), A(tag=1)]) == [A(), late(), late(tag=1), A(tag=1)]
    assert ordered([A(), A(tag=1), early(), early(tag=1)]) == [early(), A(), A(tag=1), early(tag=1)]
    assert moves([late(), late(tag=1), A()]) == ["a runs before late: late.after names it"]


def test_a_cycle_is_shown_as_the_chain() -> None:
    x, y, z = step("x", after=("y",)), step("y", after=("z",)), step("z", after=("x",))
    here = __name__
    with pytest.raises(InputError) as caught:
        ordered([A(), x(), y(), z(), B()])
    said = [f"x after y ({here}.X)", f"y after z ({here}.Y)", f"z after x ({here}.Z)"]
    turns = [", ".join(said[i:] + said[:i]) for i in range(3)]
    assert any(f"contradict each other: {turn}; leave one" in str(caught.value) for turn in turns)
    assert ordered([y(), x()]) == [y(), x()]  # without the third there is no contradiction


def test_a_cycle_of_before_and_of_one_is_shown() -> None:
    x, y = step("x", before=("y",)), step("y", before=("x",))
    with pytest.raises(InputError, match=r"before . .*X\), . before|before . .*Y\), . before"):
        ordered([x(), y()])
    with pytest.raises(InputError, match=r": me after me \(.*\.Me\); leave"):
        ordered([step("me", after=("me",))()])


@pytest.mark.parametrize("wrong", ["fuse-b", None, (B,), ["b"]])
def test_what_is_no_tuple_of_names_is_refused(wrong: object) -> None:
    with pytest.raises(InputError, match=r"test_ordering.X.before must be a tuple of pass names, such as"):
        ordered([step("x", before=wrong)()])


def test_resolve_orders_what_was_requested() -> None:
    late = step("late", after=("fold-batchnorm",))
    spec = [late, "fold-batchnorm", ["remove-noops"]]
    assert names(requested(spec)) == "late fold-batchnorm remove-noops"
    assert names(resolve(spec)) == "fold-batchnorm late remove-noops"
    assert moves(requested(spec)) == ["fold-batchnorm runs before late: late.after names it"]
