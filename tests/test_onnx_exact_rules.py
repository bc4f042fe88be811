"""The rewrite rules for the translated graph: exact, and of a cost that grows with the graph and no faster."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnxscript import rewriter
from onnxscript.rewriter.pattern import SimplePatternMatcher

from fxexport.lowering.onnx_exact_rules import rewrite_rules


def slices(count: int) -> ir.Model:
    """``count`` slices in a row, each with an operator after it that no rule is about."""
    body = "\n".join(f"s{i} = Slice (a{i}, zero, three, one, one)  a{i + 1} = Sigmoid (s{i})" for i in range(count))
    constants = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] three = {3}"
    head = '<ir_version: 9, opset_import: ["": 18]>'
    text = f"{head} g (float[2,3] a0) => (float[2,3] a{count}) <{constants}> {{ {body} }}"
    return ir.serde.deserialize_model(onnx.parser.parse_model(text))


def attempts(count: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many times a rule starts to look whether it fits, for :func:`slices` of ``count``."""
    number, start = 0, SimplePatternMatcher._init_match

    def counting(self: SimplePatternMatcher, *args: Any) -> None:
        nonlocal number
        number += 1
        start(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SimplePatternMatcher, "_init_match", counting)
        rewriter.rewrite(slices(count), rewrite_rules())
    return number


def test_ten_times_the_slices_take_ten_times_the_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = attempts(5, monkeypatch), attempts(50, monkeypatch)
    assert few > 0
    assert many <= 11 * few
