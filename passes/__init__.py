if __name__ != "fxexport.passes":
    raise ImportError(f"this folder is the package 'fxexport.passes' and cannot be imported as {__name__!r}")

# The built-in passes, one a file, in the order of the default pipeline.
from fxexport.passes.decompose_complex import DecomposeComplex
from fxexport.passes.decompose_grouped_mm import DecomposeGroupedMm
from fxexport.passes.decompose_istft import DecomposeIstft
from fxexport.passes.decompose_stft import DecomposeStft
from fxexport.passes.fold_batchnorm import FoldBatchnorm
from fxexport.passes.remove_assertions import RemoveAssertions
from fxexport.passes.remove_dropout import RemoveDropout
from fxexport.passes.remove_noops import RemoveNoops

PASSES = (
    DecomposeGroupedMm,
    DecomposeIstft,
    DecomposeStft,
    DecomposeComplex,
    RemoveDropout,
    RemoveNoops,
    RemoveAssertions,
    FoldBatchnorm,
)

__all__ = [
    "PASSES",
    "DecomposeComplex",
    "DecomposeGroupedMm",
    "DecomposeIstft",
    "DecomposeStft",
    "FoldBatchnorm",
    "RemoveAssertions",
    "RemoveDropout",
    "RemoveNoops",
]
