"""The page of the built-in passes, ``docs/passes.md``: made from their docstrings, so that the two agree."""

from __future__ import annotations

from collections.abc import Sequence

from fxexport.report.pass_list import InstalledPass, limits_of

HEAD = """\
# The built-in passes

This page is what `fxexport passes --markdown` prints: the docstrings of the classes in [passes/](../passes), one a file.
Each draws what becomes what and says when that is exact; what it leaves, and why, is in the ledger
(`fxexport explain model --pass name`). How to write one: [writing_passes.md](writing_passes.md).

`passes="default"` runs those with a number, in this order. Others run where they are named. An option is set as in
`passes="remove-noops,fold-batchnorm{into_next=false}"`, or `FoldBatchnorm(into_next=False)` in Python. The passes that one
must not precede or follow are under it as `after` and `before`, in any pipeline. Those that *repeat* run again at the end,
where others changed the graph after them.
"""


def pass_page(passes: Sequence[InstalledPass]) -> str:
    """``passes`` as a page in Markdown: a table of all, and a section for each with its docstring and options."""
    rows = [f"| {each.place or ''} | [{each.name}](#{each.name}) | {_cell(each)} |" for each in passes]
    table = "\n".join(["| | pass | rewrite |", "|---|---|---|", *rows])
    return "\n".join([HEAD, table, *(f"\n{_section(each)}" for each in passes)]) + "\n"


def _cell(each: InstalledPass) -> str:
    """The first paragraph on one line; a ``|`` in it is no border."""
    return " ".join(_markdown(each.doc).split("\n\n")[0].split()).replace("|", "\\|")


def _section(each: InstalledPass) -> str:
    place = f"default, number {each.place}" if each.place else "not a default: runs where it is named"
    facts = [place, *([limits_of(each)] if limits_of(each) else []), *(["repeats"] if each.repeats else [])]
    lines = [f"## {each.name}", "", _markdown(each.doc), "", f"*{'; '.join(facts)}.*"]
    if each.options:
        lines += ["", "| option | default |", "|---|---|"]
        lines += [f"| `{name}` | `{value}` |" for name, value in each.options.items()]
    return "\n".join(lines)


def _markdown(doc: str) -> str:
    return doc.replace("``", "`")
