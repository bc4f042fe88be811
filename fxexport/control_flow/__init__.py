"""Branches and loops in captured graphs: ``torch.cond`` and ``torch.while_loop`` as calls of graphs of their own.

    y = cond(predicate, true_graph, false_graph, (a, b))          ->  y[0], y[1], ...
    y = while_loop(condition, body, (carried, ...), (other, ...)) ->  y[0], y[1], ...

The graphs are sub-modules of the graph module, read by ``get_attr``. Their placeholders are the operands in order, their
output is a tuple (of a loop's condition: one bool tensor); they see nothing else, weights included.
"""

from fxexport.control_flow.agreement import copied_outputs, own_outputs
from fxexport.control_flow.checking import check_call
from fxexport.control_flow.eager import eager_control_flow, run_watched
from fxexport.control_flow.inserting import insert_cond, insert_while_loop
from fxexport.control_flow.operands import add_operand, append_placeholder, erase_dead
from fxexport.control_flow.reading import (
    COND,
    WHILE_LOOP,
    SubGraph,
    control_flow,
    graphs_of,
    inside,
    nested_graphs,
    operands_of,
    read_attribute,
)

__all__ = [
    "COND",
    "WHILE_LOOP",
    "SubGraph",
    "add_operand",
    "append_placeholder",
    "check_call",
    "control_flow",
    "copied_outputs",
    "eager_control_flow",
    "erase_dead",
    "graphs_of",
    "insert_cond",
    "insert_while_loop",
    "inside",
    "nested_graphs",
    "operands_of",
    "own_outputs",
    "read_attribute",
    "run_watched",
]
