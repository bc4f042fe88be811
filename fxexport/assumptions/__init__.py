"""Partial evaluation under what the user guarantees of inputs: lengths that are full, masks of ones or zeros."""

from fxexport.assumptions.asking import check_names, split
from fxexport.assumptions.binding import bind
from fxexport.assumptions.disabling import Disabled, disable

__all__ = ["Disabled", "bind", "check_names", "disable", "split"]
