"""Rules of the operators that layers are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from fxexport.capture.rows.rules import RowCall, first, is_tensor, pointwise
from fxexport.capture.rows.values import Filled, Mixed, Rows, formula


def linear(call: RowCall) -> int:
    """``linear``: on the last axis, with weights that all rows share."""
    axis = call.axis("input")
    return axis if axis < call.rank("input") - 1 else int(call.refuse())


def matmul(call: RowCall) -> int:
    """``matmul``: rows among the batches, or as rows of the left or columns of the right matrix alone."""
    left, right = list(call.args)[:2]
    places = {name: call.rank(name) - value.axis for name, value in call.rows().items()}
    ranks = call.rank(left), call.rank(right)
    if set(places) == {left} and places[left] > 1 and ranks[1] == 1:
        return int(call.args[left].axis)
    if all(place > 2 for place in places.values()) and min(ranks) > 1:
        return pointwise(call)
    if places == {left: 2}:
        return len(call.result()) - 2
    if places == {right: 1} and ranks[0] > 1 and ranks[1] > 1:
        return len(call.result()) - 1
    return int(call.refuse())


def addmm(call: RowCall) -> int:
    """``addmm``: as rows of the left matrix."""
    call.only("mat1")
    return call.axis("mat1") if call.axis("mat1") == 0 else int(call.refuse())


def bmm(call: RowCall) -> int:
    """``bmm``: both have the rows first."""
    rows = call.rows()
    ok = set(rows) == {name for name, value in call.given.items() if is_tensor(value)}
    return 0 if ok and all(value.axis == 0 for value in rows.values()) else int(call.refuse())


def batch_norm(call: RowCall) -> int:
    """``batch_norm`` with the statistics of training."""
    axis = call.axis("input")
    if call.args["training"] is not False:
        raise Mixed(f"{call.node.target} takes the mean over the rows")
    return axis if axis != 1 else int(call.refuse())


def layer_norm(call: RowCall) -> int:
    """``layer_norm`` of axes behind the rows."""
    axis = call.axis("input")
    return axis if axis < call.rank("input") - len(call.args["normalized_shape"]) else int(call.refuse())


def per_sample_norm(call: RowCall) -> int:
    """``group_norm`` and ``instance_norm``: of each element of the first axis."""
    ok = call.axis("input") == 0 and call.args.get("use_input_stats", True) is True
    return 0 if ok else int(call.refuse())


def pad(call: RowCall) -> int:
    """``pad`` of axes behind the rows."""
    axis = call.axis("self")
    return axis if axis < call.rank("self") - len(call.args["pad"]) // 2 else int(call.refuse())


def dropout(call: RowCall) -> int:
    """``dropout`` that is switched off."""
    return call.axis("input") if call.args["train"] is False else int(call.refuse())


def embedding(call: RowCall) -> int:
    """``embedding`` with a table that all rows share."""
    return call.axis("indices")


def gather(call: RowCall) -> int:
    """``gather`` and ``scatter`` along another axis, all of them rows."""
    tensors = [name for name in ("self", "index", "src") if is_tensor(call.given.get(name))]
    rows, dim = call.rows(), call.args["dim"] % call.rank("self")
    axes = {value.axis for value in rows.values()}
    return axes.pop() if set(rows) == set(tensors) and len(axes) == 1 and dim not in axes else int(call.refuse())


def index_select(call: RowCall) -> int:
    """``index_select`` along another axis."""
    axis = call.axis("self")
    return axis if call.args["dim"] % call.rank("self") != axis else int(call.refuse())


def attention(call: RowCall) -> int:
    """``scaled_dot_product_attention``: rows among the batches of query, key and value."""
    call.only("query", "key", "value", "attn_mask")
    rows, rank = call.rows(), call.rank("query")
    if not {"query", "key", "value"} <= set(rows) or len({call.rank(name) for name in rows}) > 1:
        return int(call.refuse())
    mask = call.args["attn_mask"]
    axes = {value.axis for value in rows.values()}
    if isinstance(mask, fx.Node | Filled):
        place = call.rank("attn_mask") - rank + min(axes)
        if place >= 0 and formula(call.shape("attn_mask")[place]) != 1:
            return int(call.refuse())
    return axes.pop() if len(axes) == 1 and max(axes) < rank - 2 else int(call.refuse())


def einsum(call: RowCall) -> int:
    """``einsum``: the letter of the rows is in the result, and in no operand that they share."""
    operands: Sequence[Any] = call.args["tensors"]
    left, _, right = str(call.args["equation"]).replace(" ", "").partition("->")
    terms = left.split(",")
    letters = {t[o.axis] for t, o in zip(terms, operands, strict=True) if isinstance(o, Rows) and "." not in t}
    shared = "".join(t for t, o in zip(terms, operands, strict=True) if not isinstance(o, Rows))
    letter = letters.pop() if len(letters) == 1 and right and "." not in left else call.refuse()
    clear = letter in right and letter not in shared and all(term.count(letter) < 2 for term in terms)
    both = all(letter in t for t, o in zip(terms, operands, strict=True) if isinstance(o, Rows))
    return right.index(letter) if clear and both else int(call.refuse())


def convolution(call: RowCall) -> int:
    """``convolution`` in its general form."""
    return first(call.rank("weight"))(call)


def sampled(call: RowCall) -> int:
    """``grid_sampler``: a grid for each row."""
    rows = call.rows()
    ok = set(rows) == {"input", "grid"} and all(value.axis == 0 for value in rows.values())
    return 0 if ok else int(call.refuse())
