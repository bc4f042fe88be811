"""Which local variables of a running Python frame are still read after the instruction at which it stands."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FrameType


def live_locals(frame: FrameType) -> frozenset[str]:
    """Names in ``frame.f_locals`` that some way onwards reads before it writes them; cell variables always count."""
    code = frame.f_code
    return _live_at(code, frame.f_lasti) | set(code.co_cellvars) | set(code.co_freevars)


@lru_cache(maxsize=4096)
def _live_at(code: CodeType, offset: int) -> frozenset[str]:
    """Backward analysis by forward search: a name is live where a read of it can be reached without a write."""
    instructions = list(dis.get_instructions(code))
    position = {instruction.offset: i for i, instruction in enumerate(instructions)}
    handlers = list(_handlers(code))
    live: set[str] = set()
    start = max((i for i, at in enumerate(instructions) if at.offset <= offset), default=0)  # it may be in the middle
    seen: dict[int, frozenset[str]] = {}
    todo = [(start, frozenset[str]())]
    while todo:
        i, written = todo.pop()
        before = seen.get(i)
        if before is not None and before <= written:
            continue  # it was looked at with as few names written
        written = written if before is None else before & written
        seen[i] = written
        instruction = instructions[i]
        reads, writes = _effects(instruction)
        live |= reads - written
        after = written | writes
        todo += [(position[target], written) for low, high, target in handlers if low <= instruction.offset < high]
        todo += [(j, after) for j in _successors(instructions, position, i)]
    return frozenset(live)


def _effects(instruction: dis.Instruction) -> tuple[set[str], set[str]]:
    """Local names that an instruction reads, and those that it writes without reading."""
    name, value = instruction.opname, instruction.argval
    if "_FAST" not in name:
        return set(), set()
    names = list(value) if isinstance(value, tuple) else [value]
    if name in ("STORE_FAST", "DELETE_FAST", "STORE_FAST_STORE_FAST"):
        return set(), set(names)
    return set(names), set()  # combined instructions of newer Pythons count as reads, which is the safe side


def _successors(instructions: list[dis.Instruction], position: dict[int, int], i: int) -> Iterator[int]:
    name = instructions[i].opname
    if instructions[i].opcode in (*dis.hasjrel, *dis.hasjabs):
        yield position[instructions[i].argval]
    ends = ("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD")
    if name not in (*ends, "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE") and i + 1 < len(instructions):
        yield i + 1


def _handlers(code: CodeType) -> Iterator[tuple[int, int, int]]:
    """Start, end and handler of every protected range of instructions."""
    for entry in getattr(dis.Bytecode(code), "exception_entries", ()):
        yield entry.start, entry.end, entry.target
