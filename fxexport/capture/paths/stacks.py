"""What a suspended Python frame holds on its evaluation stack, under the operands of the instruction it is at.

``x + (a if p else b) * f(y)``: while ``f`` runs, Python holds ``x`` and one of ``a`` and ``b`` in no variable. The stack
cannot be read, but the bytecode tells how each of its entries came about.
"""

from __future__ import annotations

import dis
from collections.abc import Sequence
from functools import lru_cache
from types import CodeType, FrameType

OPAQUE = "?"
ITERATOR = "@"
_SAFE = ""
_UNSEEN = "*"  # what a handler of errors finds, before it is known from another way
_PUSHES_NOTHING = (
    *("STORE_", "POP_", "DELETE_", "RETURN_", "RAISE_", "RERAISE", "JUMP_", "LIST_APPEND", "LIST_EXTEND", "SET_"),
    *("DICT_", "MAP_ADD", "NOP", "RESUME", "CACHE", "KW_NAMES", "PRECALL", "COPY_FREE_VARS", "MAKE_CELL"),
    *("EXTENDED_ARG", "SETUP_ANNOTATIONS"),
)
_LOADS_VARIABLE = ("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_DEREF", "LOAD_CLOSURE")
_SAFE_LOADS = ("LOAD_CONST", "LOAD_GLOBAL", "LOAD_NAME", "PUSH_NULL", "LOAD_BUILD_CLASS", "LOAD_SMALL_INT")

Stack = tuple[str, ...]


def hidden(frame: FrameType) -> Stack:
    """The entries under the operands of the present instruction, lowest first.

    An entry is the name of the variable whose value it is; ``""`` where it is a constant, an attribute of a module or the
    exit of a ``with`` block; ``"@"`` where it is an iterator; ``"?"`` where it is a value of its own.
    """
    stacks = _stacks(frame.f_code)
    reached = [offset for offset in stacks if offset <= frame.f_lasti]  # which may be in the middle of an instruction
    found = stacks[max(reached)] if reached else (OPAQUE,)
    return tuple(OPAQUE if entry == _UNSEEN else entry for entry in found)


@lru_cache(maxsize=2048)
def loop_variables(code: CodeType) -> frozenset[str]:
    """The variables that ``for`` loops of some code set."""
    found: set[str] = set()
    setting = False
    for instruction in dis.get_instructions(code):
        setting = instruction.opname == "FOR_ITER" or (setting and instruction.opname.startswith(("STORE_", "UNPACK_")))
        if setting and instruction.opname in ("STORE_FAST", "STORE_DEREF"):
            found.add(str(instruction.argval))
    return frozenset(found)


@lru_cache(maxsize=2048)
def _stacks(code: CodeType) -> dict[int, Stack]:
    """For each instruction, the entries of the stack that it leaves alone."""
    instructions = [i for i in dis.get_instructions(code) if i.opname != "CACHE"]
    position = {instruction.offset: n for n, instruction in enumerate(instructions)}
    before: dict[int, Stack] = {0: ()}
    todo = [0]
    for entry in getattr(dis.Bytecode(code), "exception_entries", ()):
        before[position[entry.target]] = (*[_UNSEEN] * entry.depth, *[OPAQUE] * (int(entry.lasti) + 1))
        todo.append(position[entry.target])
    kept: dict[int, Stack] = {}
    while todo:
        n = todo.pop()
        instruction, stack = instructions[n], before[n]
        kept[instruction.offset] = stack[: max(len(stack) - _operands(instruction), 0)]
        for target, jump in _next(instructions, position, n):
            after = _after(instruction, stack, jump)
            known = before.get(target)
            merged = after if known is None else _merged(known, after)
            if merged != known:
                before[target] = merged
                todo.append(target)
    return kept


def _merged(a: Stack, b: Stack) -> Stack:
    pairs = zip(a, b, strict=False)
    same = [y if x == _UNSEEN else x if y in (x, _UNSEEN) else OPAQUE for x, y in pairs]
    return (*same, *[OPAQUE] * (max(len(a), len(b)) - len(same)))


def _operands(instruction: dis.Instruction) -> int:
    """How many entries an instruction takes off the stack, at most."""
    name = instruction.opname
    effect = dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
    if name.startswith(_PUSHES_NOTHING):
        return max(-effect, 0)
    if name in (*_LOADS_VARIABLE, *_SAFE_LOADS):
        return 0
    return max(1 - effect, 1)


def _after(instruction: dis.Instruction, stack: Stack, jump: bool) -> Stack:
    name = instruction.opname
    effect = dis.stack_effect(instruction.opcode, instruction.arg, jump=jump)
    depth = max(len(stack) + effect, 0)
    if name in _LOADS_VARIABLE:
        return (*stack, str(instruction.argval))
    if name in _SAFE_LOADS:
        return (*stack, *[_SAFE] * effect)
    if name == "GET_ITER":
        return (*stack[:-1], ITERATOR)
    if name in ("LOAD_ATTR", "LOAD_METHOD") and stack[-1:] in (("self",), (_SAFE,)):
        return (*stack[:-1], *[_SAFE] * (effect + 1))  # parts of modules are found through the modules
    if name == "LOAD_METHOD":
        return (*stack[:-1], _SAFE, stack[-1])
    if name == "BEFORE_WITH":
        return (*stack[:-1], _SAFE, OPAQUE)
    if name == "FOR_ITER" and not jump:
        return (*stack, OPAQUE)
    if name.startswith(_PUSHES_NOTHING) or name.startswith("FOR_ITER"):
        return stack[:depth]
    kept = min(max(len(stack) - _operands(instruction), 0), depth)
    return (*stack[:kept], *[OPAQUE] * (depth - kept))


def _next(instructions: Sequence[dis.Instruction], position: dict[int, int], n: int) -> list[tuple[int, bool]]:
    instruction = instructions[n]
    name, found = instruction.opname, list[tuple[int, bool]]()
    if instruction.opcode in (*dis.hasjrel, *dis.hasjabs):
        found.append((position[instruction.argval], True))
    ends = name.startswith(("RETURN_VALUE", "RETURN_CONST", "RAISE_", "RERAISE"))
    always = name.startswith(("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "JUMP_NO_INTERRUPT"))
    if not ends and not always and n + 1 < len(instructions):
        found.append((n + 1, False))
    return found
