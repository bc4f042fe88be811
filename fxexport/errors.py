"""The one family of errors: each message says what happened, where (file:line of the user's code), and the way out."""

from __future__ import annotations

from typing import Any


class ExportError(Exception):
    """Base of every error that fxexport raises on purpose."""


class InputError(ExportError, ValueError):
    """What was asked is inconsistent: path, names, examples, options. Raised before any work starts."""


class CaptureError(ExportError):
    """The model could not be captured as a graph; names the line of the user's code that stopped it."""


class PassError(ExportError):
    """A pass raised or left an invalid program; names the pass and the node."""


class VerifyError(PassError):
    """A program breaks an invariant (graph lint, signature, shapes of ``meta["val"]``)."""


class LoweringError(ExportError):
    """The program cannot be expressed in the target format; lists every operator that is missing."""


class ValidationError(ExportError):
    """The artifact ran wrong, crashed, or disagrees with the user's eager model.

    ``blame`` is the first wrong rewrite (``fxexport.blame.Blame``), None where none was looked for or found.
    """

    blame: Any = None


class PublishError(ExportError):
    """The artifact was right but could not be put at the requested path; the old file is intact."""
