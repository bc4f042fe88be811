"""Views, sizes and values on their own; views are compared with torch's."""

from typing import Any

import numpy as np
import pytest
import torch

from fxexport.errors import InputError
from fxexport.pipeline.sizes import Sizes, axis_size
from fxexport.pipeline.spec import Port, View, short_names
from fxexport.pipeline.values import to_array
from fxexport.pipeline.views import apply_views, dtype_of

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 1, 3, 4) - 11.5


@pytest.mark.parametrize(
    ("view", "same"),
    [
        (View("slice", (2, 0, 1, 1)), lambda x: x[:, :, 0:1]),
        (View("slice", (-1, -3, 9223372036854775807, 2)), lambda x: x[..., -3::2]),
        (View("slice", (3, None, -1, None)), lambda x: x[..., :-1]),
        (View("slice", (3, 3, 1, 1)), lambda x: x[..., 3:1]),
        (View("select", (2, -1)), lambda x: x.select(2, -1)),
        (View("permute", (3, 0, 2, 1)), lambda x: x.permute(3, 0, 2, 1)),
        (View("unsqueeze", (-1,)), lambda x: x.unsqueeze(-1)),
        (View("unsqueeze", (1,)), lambda x: x.unsqueeze(1)),
        (View("squeeze", (1,)), lambda x: x.squeeze(1)),
        (View("squeeze", (0,)), lambda x: x.squeeze(0)),
        (View("cast", ("int32",)), lambda x: x.to(torch.int32)),
        (View("cast", ("bool",)), lambda x: x.to(torch.bool)),
        (View("cast", ("float16",)), lambda x: x.to(torch.float16)),
        (View("flip", (2, -1)), lambda x: x.flip(2, -1)),
    ],
    ids=lambda value: str(value) if isinstance(value, View) else "torch",
)
def test_views_are_those_of_torch(view: View, same: Any) -> None:
    found, wanted = apply_views(ARRAY, [view], "wire"), same(torch.from_numpy(ARRAY)).numpy()
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_a_view_that_does_not_fit_is_told_with_its_wire() -> None:
    for view in (View("select", (0, 7)), View("squeeze", (9,)), View("permute", (0, 1)), View("slice", (0, 0, 1, -1))):
        with pytest.raises(InputError, match=r"the wire a\.b -> c\.d: .* does not fit shape \[2, 1, 3, 4\]"):
            apply_views(ARRAY, [view], "the wire a.b -> c.d")


@pytest.mark.parametrize(
    ("axis", "size"),
    [
        (7, 7),
        ("time", 10),
        ("2*time", 20),
        ("(time - 1)//2 + 1", 5),
        ("time/2", 5),
        ("time/3", None),
        ("floor(time/3)", 3),
        ("ceiling(time/3)", 4),
        ("Max(1, time - 20)", 1),
        ("Mod(time, 4)", 2),
        ("-time", None),
        ("other", None),
        ("2*other", None),
        ("time//0", None),
        ("time +", None),
        ("a b", None),
        ("floor(1, 2)", None),
        ("time.real", None),
        ("__import__('os').getpid()", None),
        ("*".join(["time"] * 400), None),
        ("9**9**9", None),
    ],
)
def test_formulas_of_axes(axis: int | str, size: int | None) -> None:
    assert axis_size(axis, {"time": 10}) == size


def test_sizes_are_checked_in_any_order() -> None:
    sizes = Sizes()
    sizes.bind([("y", ("2*time",), (8,)), ("x", ("batch", "time"), (3, 4))])
    assert sizes.known == {"batch": 3, "time": 4}
    with pytest.raises(InputError, match=r"z has axes \[2\*time\], got shape \[9\]: '2\*time' is 8, here 9"):
        sizes.bind([("z", ("2*time",), (9,))])
    sizes.learn([("out", ("batch", "new"), (99, 5))])
    assert sizes.known == {"batch": 3, "time": 4, "new": 5}


@pytest.mark.parametrize(
    ("value", "dtype", "wanted"),
    [
        (3, "float32", 3.0),
        (True, "int64", 1),
        ([[1, 2]], "uint8", [[1, 2]]),
        ([], "int64", []),
        (1.5, "bfloat16", 1.5),
        ([True], "bool", [True]),
    ],
)
def test_python_numbers_take_the_declared_dtype(value: Any, dtype: str, wanted: Any) -> None:
    found = to_array(value, dtype, "x")
    assert found.dtype == dtype_of(dtype)
    assert found.tolist() == wanted


@pytest.mark.parametrize(
    ("value", "dtype"), [(1.5, "int32"), (-1, "uint8"), (300, "uint8"), (1, "bool"), (1j, "float32"), (2**40, "int32")]
)
def test_numbers_that_a_dtype_cannot_hold_are_refused(value: Any, dtype: str) -> None:
    with pytest.raises(InputError, match=f"x is {dtype}, which cannot hold"):
        to_array(value, dtype, "x")


def test_torch_tensors_of_every_kind_become_arrays() -> None:
    for tensor in (torch.ones(2, requires_grad=True), torch.ones(2, dtype=torch.bfloat16), torch.ones(2).conj()):
        name = str(tensor.dtype).removeprefix("torch.")
        assert to_array(tensor, name, "x").tolist() == [1.0, 1.0]


def test_short_names_are_whole_where_two_are_alike() -> None:
    ports = [Port("a", "x"), Port("b", "x"), Port("b", "y"), Port("b", "z"), Port("b", "y")]
    assert list(short_names(ports, ["z"]).values()) == ["a.x", "b.x", "y", "b.z"]
