"""``record``: one real run of the model, or of the user's driver, and what it says about the parts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxexport.capture.binding import bind_example, named_leaves
from fxexport.capture.nesting import flatten
from fxexport.capture.private_copy import preserved_process_state, private_copy, seed_everything, unwrap
from fxexport.control_flow import eager_control_flow
from fxexport.errors import InputError
from fxexport.exportable.copying import configured_copy, copy_for_hooks
from fxexport.exportable.example import hook_example
from fxexport.exportable.reading import has_hook
from fxexport.exportable.typecheck import typecheck_off
from fxexport.signature import show_path
from fxexport.subnets.part_hooks import PartHooks
from fxexport.subnets.parts import Parts, part_names
from fxexport.subnets.recorder import Recorder
from fxexport.subnets.tape import Leaf, RecordedCall, Tape

Driver = Callable[..., Any]
Example = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Recording:
    """What happened in each run.

    Attributes:
        owner: class name of the model.
        parts: name -> class name of each part, also of those never called.
        runs: one tape a run.
    """

    owner: str
    parts: dict[str, str]
    runs: list[Tape] = field(repr=False)

    def calls(self, part: str) -> list[RecordedCall]:
        """The calls of a part in all runs, in order. InputError for an unknown part."""
        if part not in self.parts:
            raise InputError(f"the recording has no part {part!r}; it has {list(self.parts)}")
        return [call for tape in self.runs for call in tape.calls(part)]

    def repeated(self, part: str) -> bool:
        """Whether some run called the part more than once."""
        return any(len(tape.calls(part)) > 1 for tape in self.runs)

    @property
    def uncalled(self) -> list[str]:
        """The parts that no run called."""
        return [part for part in self.parts if not self.calls(part)]

    @property
    def notes(self) -> list[str]:
        """What the reader should know, once each."""
        never = [
            f"{part} was never called as a module: the model does its work through other methods, or the run went another "
            "way; give a driver that calls it"
            for part in self.uncalled
        ]
        return [*never, *dict.fromkeys(note for tape in self.runs for note in tape.notes)]

    def example(self, part: str) -> Example:
        """``(args, kwargs)`` of the call to export from: most tensors, no axis of size 0 or 1 if possible, largest.

        Raises InputError for a part that was never called.
        """
        return _given(self._best(part))

    def _best(self, part: str) -> RecordedCall:
        calls = self.calls(part)
        if not calls:
            raise InputError(f"no example of {part}: {' '.join(n for n in self.notes if n.startswith(part))}")
        return min(calls, key=_rank)

    def further_examples(self, part: str, limit: int = 8) -> list[Example]:
        """Other calls worth checking: the first, the second, the last, and those of other shapes; at most ``limit``."""
        calls = self.calls(part)
        if not calls:
            return []
        seen = {_shapes(best := self._best(part))}
        chosen = [call for call in (*calls[:2], calls[-1]) if call is not best]
        seen |= {_shapes(call) for call in chosen}
        for call in calls:
            if _shapes(call) not in seen:
                seen.add(_shapes(call))
                chosen.append(call)
        unique = {id(call): call for call in chosen}
        example = self.example(part)
        return [_ordered_like(_given(call), example) for call in list(unique.values())[:limit]]

    def varying_axes(self, part: str) -> dict[str, frozenset[int]]:
        """Leaf path of an input -> positions of the axes whose size differs between calls, where there are any."""
        shapes: dict[str, list[tuple[int, ...]]] = {}
        for call in self.calls(part):
            for path, leaf in call.inputs.items():
                shapes.setdefault(path, []).append(tuple(leaf.tensor.shape))
        varying = {path: _varying(found) for path, found in shapes.items()}
        return {path: axes for path, axes in varying.items() if axes}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"recording of {self.owner}: {len(self.runs)} run{'s' if len(self.runs) != 1 else ''}"
        for part, kind in self.parts.items():
            counts = [len(tape.calls(part)) for tape in self.runs]
            times = f"{' + '.join(map(str, counts))} times"
            yield f"  {part} ({kind}): " + {0: "never called", 1: "called once"}.get(sum(counts), f"called {times}")
            calls = self.calls(part)
            for title, sides in (("in ", [c.inputs for c in calls]), ("out", [c.outputs for c in calls])):
                for path in dict.fromkeys(path for side in sides for path in side):
                    yield f"    {title} {path}: {_summary([side[path].tensor for side in sides if path in side])}"
        yield from (f"  note: {note}" for note in self.notes)


def record(
    model: nn.Module,
    driver: Driver | Sequence[Driver] | None = None,
    example_inputs: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    subnets: Sequence[str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Recording:
    """Runs ``driver(copy, *example_inputs, **kwargs)`` on a private copy of ``model`` and records its parts.

    Args:
        driver: what uses the model, such as a decoding loop; several are several runs; None calls the model itself.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments; None with ``driver=None`` asks
            the model's ``input_example()``.
        subnets: names of the parts, or paths of submodules; default: the model's ``list_export_subnets()``.
        config: given to ``set_export_config`` of the copy: parts may depend on it.

    The copy is in eval mode without gradients; each run starts from the same state and random seed, and nothing of the
    model, the arguments or the process is changed. Raises InputError where the arguments do not fit, where a
    part does not exist, or where the driver called none of them. Errors of the driver are the driver's own.
    """
    model, _ = unwrap(model)
    drivers = [driver] if driver is None or callable(driver) else list(driver)
    if not drivers:
        raise InputError("driver is an empty sequence: there is nothing to run")
    with preserved_process_state(), torch.no_grad(), eager_control_flow():
        names = part_names(model, subnets, config)
        base, _ = configured_copy(model, config)
        args, keywords = arguments(base, drivers[0], example_inputs, kwargs)
        parts = Parts(base.eval(), names).modules
        with typecheck_off(base, *parts.values()):
            runs = [_run(base, names, one, args, keywords, f"run {i}") for i, one in enumerate(drivers, 1)]
        kinds = {name: type(module).__name__ for name, module in parts.items()}
    recording = Recording(type(model).__name__, kinds, runs)
    if driver is not None and len(recording.uncalled) == len(kinds):
        raise InputError(
            f"nothing to record: the driver called none of {', '.join(kinds)} as a module; it has to call "
            "the parts of the model that it is given as its first argument"
        )
    return recording


def arguments(
    model: nn.Module, driver: Driver | None, example: Any, kwargs: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of a run, from the forms that ``record`` accepts."""
    if driver is None:
        hooked = example is None and kwargs is None
        if hooked:
            # Of a copy: the hook may change the model that it is asked of.
            example = hook_example(copy_for_hooks(model)[0]) if has_hook(model, "input_example") else ()
            if example is None:
                raise InputError(f"{type(model).__name__}.input_example() returned None; return a tensor or a tuple")
        call = bind_example(model, () if example is None else example, kwargs, from_hook=hooked)
        return pytree.tree_unflatten([leaf.value for leaf in call.leaves], call.spec)  # type: ignore[no-any-return]
    if example is None or isinstance(example, torch.Tensor):
        return () if example is None else (example,), dict(kwargs or {})
    if isinstance(example, Mapping) and kwargs is None:
        return (), dict(example)
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), dict(kwargs or {})


def _run(base: nn.Module, names: Sequence[str], driver: Driver | None, args: Any, kwargs: Any, label: str) -> Tape:
    copy, _ = private_copy(base, share_parameters=True)
    parts = Parts(copy, names)
    leaves, spec = flatten((args, kwargs))
    args, kwargs = pytree.tree_unflatten([_copied(leaf.value) for leaf in leaves], spec)
    weights = {**dict(copy.named_parameters()), **dict(copy.named_buffers())}
    tape = Tape(label)
    recorder = Recorder(tape, named_tensors(copy, driver, args, kwargs), weights)
    seed_everything(0)
    with PartHooks(recorder, parts).attached(), recorder:
        try:
            result = copy(*args, **kwargs) if driver is None else driver(copy, *args, **kwargs)
        except Exception as error:
            who = "the model" if driver is None else f"the driver {getattr(driver, '__name__', driver)}"
            error.add_note(f"fxexport: {who} itself raised this, while its parts were recorded")
            raise
    for leaf in flatten(result)[0]:
        if leaf.is_tensor:
            path = show_path(("output", *leaf.path))
            tape.result.append(Leaf(path, recorder.value_of(leaf.value), leaf.value.detach().clone()))
    return tape


def named_tensors(model: nn.Module, driver: Driver | None, args: Any, kwargs: Any) -> dict[str, Tensor]:
    """The tensors among the arguments, by the names that the driver's parameters give them."""
    given = args if driver is None else (model, *args)
    signature = inspect.signature(model.forward if driver is None else driver)
    try:
        bound = signature.bind(*given, **kwargs)
    except TypeError as error:
        told = "forward" if driver is None else f"the driver {getattr(driver, '__name__', driver)}"
        given = "example_inputs and kwargs are its arguments" + (" after the model" if driver is not None else "")
        raise InputError(f"{told}{signature} cannot be called: {error}; {given}") from error
    leaves, _ = flatten((bound.args, bound.kwargs))
    return {show_path(leaf.path): leaf.value for leaf in named_leaves(signature, bound, leaves) if leaf.is_tensor}


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _given(call: RecordedCall) -> Example:
    """Copies, so that whoever runs the example cannot change the recording."""
    leaves, spec = flatten((call.args, call.kwargs))
    args, kwargs = pytree.tree_unflatten([_copied(leaf.value) for leaf in leaves], spec)
    return args, kwargs


def _ordered_like(given: Any, first: Any) -> Any:
    """``given`` with its dicts in the order of those in ``first``: a driver may fill a dict of states in any order."""
    if type(given) is dict and type(first) is dict and given.keys() == first.keys():
        return {key: _ordered_like(given[key], value) for key, value in first.items()}
    if type(given) in (list, tuple) and type(first) is type(given) and len(first) == len(given):
        return type(given)(_ordered_like(one, other) for one, other in zip(given, first, strict=True))
    return given


def _shapes(call: RecordedCall) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((path, tuple(leaf.tensor.shape)) for path, leaf in call.inputs.items())


def _rank(call: RecordedCall) -> tuple[int, int, int, int]:
    sizes = [size for leaf in call.inputs.values() for size in leaf.tensor.shape]
    numbers = sum(leaf.tensor.numel() for leaf in call.inputs.values())
    return -len(call.inputs), sizes.count(0), sizes.count(1), -numbers


def _varying(shapes: Sequence[tuple[int, ...]]) -> frozenset[int]:
    return frozenset(axis for axis, sizes in enumerate(zip(*shapes, strict=False)) if len(set(sizes)) > 1)


def _summary(tensors: Sequence[Tensor]) -> str:
    """``float32 [1, 0..7, 8]``: an axis that varies shows its range."""
    dtypes = dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    if len({tensor.ndim for tensor in tensors}) > 1:
        return f"{'/'.join(dtypes)} of different ranks"
    columns = zip(*(tensor.shape for tensor in tensors), strict=True)
    axes = [str(min(c)) if min(c) == max(c) else f"{min(c)}..{max(c)}" for c in columns]
    return f"{'/'.join(dtypes)} [{', '.join(axes)}]"
