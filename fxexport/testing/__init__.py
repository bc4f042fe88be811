"""For pass authors: what a rewrite must do, and must not do, in one call each; and random programs to try it on.

assert_rewrites(FuseMine(), before, after, (torch.randn(2, 4),))          # fires, makes the graph of `after`, same numbers
assert_unchanged(FuseMine(), lookalike, (torch.randn(2, 4),), reason="is read elsewhere")

@given(programs())                                                        # needs fxexport[testing] (hypothesis)
def test_never_wrong(sample):
    assert_preserves(FuseMine(), sample)
"""

from fxexport.testing.assertions import assert_rewrites, assert_unchanged, random_like
from fxexport.testing.draft import Draft, Refused
from fxexport.testing.graph_comparison import TOLERANCES, first_difference
from fxexport.testing.operators import GROUPS, OPERATORS
from fxexport.testing.preserving import assert_preserves
from fxexport.testing.random_programs import RandomProgram, programs

__all__ = [
    "GROUPS",
    "OPERATORS",
    "TOLERANCES",
    "Draft",
    "RandomProgram",
    "Refused",
    "assert_preserves",
    "assert_rewrites",
    "assert_unchanged",
    "first_difference",
    "programs",
    "random_like",
]
