"""What a reader of the artifact should know of its inputs and outputs: which are not read, and which are one value."""

from __future__ import annotations

from fxexport.program import Program


def interface_notes(program: Program) -> list[str]:
    """One sentence for each input that nothing reads, and for outputs that are one value or an input as it is."""
    unread = [
        f"nothing reads the input {spec.name!r}: it is no input of the artifact" for spec in program.signature.unread
    ]
    inputs = dict(zip(program.input_nodes, (spec.name for spec in program.signature.inputs), strict=True))
    ignored = [
        f"nothing reads the input {name!r}: it stays an input of the artifact, and changes nothing"
        for node, name in inputs.items()
        if not node.users
    ]
    names: dict[object, list[str]] = {}
    for node, spec in zip(program.output_nodes, program.signature.outputs, strict=True):
        names.setdefault(node, []).append(spec.name)
    equal = [
        f"the outputs {', '.join(map(repr, group[:-1]))} and {group[-1]!r} are one value, computed once"
        for group in names.values()
        if len(group) > 1
    ]
    passed = [
        f"the output {group[0]!r} is the input {inputs[node]!r} as it is"
        for node, group in names.items()
        if node in inputs
    ]
    return [*unread, *ignored, *equal, *passed]
