"""Example inputs, in every form a user may give them, bound to the signature of ``forward``."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import nn

from fxexport.capture import bind_example
from fxexport.errors import InputError

X = torch.zeros(2, 3)
State = namedtuple("State", "h c")


class Free(nn.Module):
    """Any signature: ``forward`` is the function given."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.forward = forward


def bind(forward: Any, example: Any = (), kwargs: Any = None, **options: Any) -> Any:
    return bind_example(Free(forward), example, kwargs, **options)


def test_a_bare_tensor_is_one_argument() -> None:
    call = bind(lambda x: x, X)
    assert call.names == ["x"]
    assert call.tensors[0] is X


def test_names_come_from_parameters_and_keys_and_fields() -> None:
    call = bind(lambda batch, states: 0, ({"im": X, "z z": X}, [X, State(X, (X,))]))
    assert call.names == ["batch_im", "batch_z_z", "states_0", "states_1_h", "states_1_c_0"]
    assert call.paths == ["batch['im']", "batch['z z']", "states[0]", "states[1]['h']", "states[1]['c'][0]"]


def test_names_that_would_collide_get_a_number() -> None:
    assert bind(lambda a, a_b: 0, ({"b": X}, X)).names == ["a_b", "a_b_1"]


def test_a_keyword_of_python_is_no_name() -> None:
    assert bind(lambda d: 0, ({"class": X, 1: X},)).names == ["d_class", "d_1"]
    assert bind(lambda **d: 0, {"class": X}).names == ["class_"]


def test_varargs_and_keywords() -> None:
    call = bind(lambda *xs, **more: 0, (X, X), {"bias": X})
    assert call.names == ["xs_0", "xs_1", "bias"]


def test_keyword_only_parameters() -> None:
    def forward(*, x: Any, y: Any = None) -> Any:
        return x

    assert bind(forward, None or (), {"x": X}).names == ["x"]
    assert bind(forward, {"x": X, "y": X}).names == ["x", "y"]


def test_a_dict_is_keywords_only_where_its_keys_are_parameters() -> None:
    assert bind(lambda x, y: 0, {"x": X, "y": X}).names == ["x", "y"]
    assert bind(lambda batch: 0, {"x": X, "y": X}).names == ["batch_x", "batch_y"]


def test_a_last_dict_is_read_the_one_way_that_fits() -> None:
    assert bind(lambda x, st: 0, (X, {"h": X})).names == ["x", "st_h"]
    assert bind(lambda x, *, h: 0, (X, {"h": X})).names == ["x", "h"]


def test_a_last_dict_that_can_be_both_is_refused_and_kwargs_decides() -> None:
    def forward(x: Any, st: Any = None, h: Any = None) -> Any:
        return x

    with pytest.raises(InputError, match=r"kwargs=\{\} makes it positional"):
        bind(forward, (X, {"h": X}))
    assert bind(forward, (X, {"h": X}), {}).names == ["x", "st_h"]
    assert bind(forward, (X,), {"h": X}).names == ["x", "h"]
    assert bind(forward, (X, {"h": X}), from_hook=True).names == ["x", "h"], "a hook's last dict is keywords"


def test_python_values_are_fixed_and_listed() -> None:
    call = bind(lambda x, mask, k, flag: 0, (X, None, 2, True))
    assert call.names == ["x"]
    assert [(b.path, b.value) for b in call.baked] == [("mask", "None"), ("k", "2"), ("flag", "True")]


@pytest.mark.parametrize(("value", "dtype"), [(2, torch.int64), (0.5, torch.float32), (True, torch.bool)])
def test_as_input_promotes_a_number(value: Any, dtype: torch.dtype) -> None:
    call = bind(lambda x, k: 0, (X, value), as_input=("k",))
    assert call.names == ["x", "k"]
    assert (call.tensors[1].dtype, call.tensors[1].shape, call.tensors[1].item()) == (dtype, (), value)
    assert call.baked == ()


def test_as_input_takes_a_nested_path_and_refuses_what_is_no_number() -> None:
    assert bind(lambda o: 0, ({"k": 3, "n": 4},), as_input=("o['k']",)).names == ["o_k"]
    with pytest.raises(InputError, match=r"as_input names \['y'\].*\['k'\]"):
        bind(lambda x, k: 0, (X, 3), as_input=("y",))
    with pytest.raises(InputError, match=r"as_input names \['x'\]"):
        bind(lambda x, k: 0, (X, 3), as_input=("x",))


@pytest.mark.parametrize("example", [(), (X, X), (X, {"y": X})])
def test_a_mismatch_shows_signature_and_given(example: Any) -> None:
    with pytest.raises(InputError) as caught:
        bind(lambda x: x, example)
    assert "forward(x)" in str(caught.value)
    assert ("Tensor[2, 3] float32" in str(caught.value)) == bool(example)


def test_neither_tensor_nor_tuple() -> None:
    with pytest.raises(InputError, match="got str"):
        bind(lambda x: x, "hello")
