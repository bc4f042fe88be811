"""The casts that PyTorch's operators make silently and ONNX's do not: written out before the translation.

torch.onnx's pass for it computes the shape of every node anew, which for thousands of nodes is a quarter of the
translation. A program knows them: what is computed here is the casts, and the operators that read one.
"""

from __future__ import annotations

from typing import Any

from torch import fx


def write_out_casts(graph_module: fx.GraphModule) -> None:
    """Inserts a cast before each operand, and after each result, whose dtype its operator changes; in sub-graphs too.

    Every node has its value in ``meta["val"]``, before and after. Private to torch: see ``onnx_translation``.
    """
    from torch.onnx._internal.fx.passes import type_promotion

    class Interpreter(type_promotion._TypePromotionInterpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n.op != "call_function" or "val" not in n.meta:
                return super().run_node(n)
            with self._set_current_node(n):
                rule = type_promotion.get_type_promotion_rule(n, self.type_promotion_table)
                if rule is not None:
                    self._maybe_promote_node(n, rule)
            return n.meta["val"]

    for module in graph_module.modules():
        assert isinstance(module, fx.GraphModule), f"a program calls operators, not {type(module)}"
        promotion = type_promotion.InsertTypePromotion(module)
        promotion.interpreter = Interpreter(module, promotion.interpreter.type_promotion_table)
        promotion.run()
