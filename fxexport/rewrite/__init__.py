"""Rewriting programs: what a pass is, the manager that runs passes safely, the registry that finds them."""

from fxexport.rewrite.base import Pass, PassResult, arguments
from fxexport.rewrite.ledger import NearMiss, PassRecord, Rewrite
from fxexport.rewrite.manager import PassManager
from fxexport.rewrite.match import Match
from fxexport.rewrite.node_pass import NodePass, first_result
from fxexport.rewrite.pattern_arguments import Constant
from fxexport.rewrite.pattern_pass import PatternPass, PatternSet
from fxexport.rewrite.registry import PassSpec, available, resolve
from fxexport.rewrite.rule_pass import RulePass

__all__ = [
    "Constant",
    "Match",
    "NearMiss",
    "NodePass",
    "Pass",
    "PassManager",
    "PassRecord",
    "PassResult",
    "PassSpec",
    "PatternPass",
    "PatternSet",
    "Rewrite",
    "RulePass",
    "arguments",
    "available",
    "first_result",
    "resolve",
]
