"""What went wrong in a pass as one error: which pass, at which call, and the way out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from fxexport.errors import PassError, VerifyError
from fxexport.rewrite.base import Pass, PassResult
from fxexport.rewrite.ledger import describe_call


def explained(pass_: Pass, error: Exception, result: PassResult | None, on_error: str) -> PassError:
    """``error`` as a PassError (a VerifyError stays one) that names the pass, and the match or node it worked on.

    The way out is named only where it was not taken: a record says itself that the pass was rolled back.
    """
    node = _node_at_fault(error)
    what = str(error) if isinstance(error, PassError) else f"{type(error).__name__}: {error}"
    where = f" at {describe_call(node)}" if node is not None and node.name not in what else ""
    made = [r for r in result.rewrites if _names(what, r.made)] if isinstance(result, PassResult) else []
    whose = f" (made by {made[-1]})" if made else ""
    kind = VerifyError if isinstance(error, VerifyError) else PassError
    way_out = "" if on_error == "skip" else '; the program was rolled back (on_error="skip" goes on without it)'
    return kind(f"pass {pass_}{where}: {what}{whose}{way_out}")


def _names(text: str, made: Sequence[str]) -> bool:
    words = set(text.replace(",", " ").split())
    return not words.isdisjoint(made)


def _node_at_fault(error: Exception) -> fx.Node | None:
    """The local variable ``node`` of the innermost frame that has one: what was worked on when it failed."""
    found, trace = None, error.__traceback__
    while trace is not None:
        candidate = trace.tb_frame.f_locals.get("node")
        if isinstance(candidate, fx.Node):
            found = candidate
        trace = trace.tb_next
    return found
