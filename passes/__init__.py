if __name__ != "fxexport.passes":
    raise ImportError(f"this folder is the package 'fxexport.passes' and cannot be imported as {__name__!r}")

# The built-in passes, one a file, in the order of the default pipeline.
from fxexport.passes.add_casts_around_norms import AddCastsAroundNorms
from fxexport.passes.cancel_casts import CancelCasts
from fxexport.passes.cancel_reshapes import CancelReshapes
from fxexport.passes.cancel_transposes import CancelTransposes
from fxexport.passes.decompose_complex import DecomposeComplex
from fxexport.passes.decompose_grouped_mm import DecomposeGroupedMm
from fxexport.passes.decompose_istft import DecomposeIstft
from fxexport.passes.decompose_stft import DecomposeStft
from fxexport.passes.disable_masks import DisableMasks
from fxexport.passes.fold_affine import FoldAffine
from fxexport.passes.fold_batchnorm import FoldBatchnorm
from fxexport.passes.fold_constants import FoldConstants
from fxexport.passes.fold_norm_affine import FoldNormAffine
from fxexport.passes.merge_common_subexpressions import MergeCommonSubexpressions
from fxexport.passes.remove_assertions import RemoveAssertions
from fxexport.passes.remove_dropout import RemoveDropout
from fxexport.passes.remove_noops import RemoveNoops
from fxexport.passes.replace_group_norm import ReplaceGroupNorm
from fxexport.passes.replace_instance_norm import ReplaceInstanceNorm
from fxexport.passes.replace_l2_normalize import ReplaceL2Normalize
from fxexport.passes.replace_layer_norm import ReplaceLayerNorm
from fxexport.passes.replace_rms_norm import ReplaceRmsNorm
from fxexport.passes.simplify_arithmetic import SimplifyArithmetic
from fxexport.passes.simplify_shapes import SimplifyShapes
from fxexport.passes.simplify_slices import SimplifySlices

PASSES = (
    DecomposeGroupedMm,
    DecomposeIstft,
    DecomposeStft,
    DecomposeComplex,
    RemoveDropout,
    RemoveNoops,
    RemoveAssertions,
    DisableMasks,
    ReplaceRmsNorm,
    ReplaceInstanceNorm,
    ReplaceLayerNorm,
    ReplaceGroupNorm,
    FoldNormAffine,
    ReplaceL2Normalize,
    FoldConstants,
    FoldBatchnorm,
    FoldAffine,
    SimplifyShapes,
    SimplifyArithmetic,
    CancelCasts,
    SimplifySlices,
    CancelReshapes,
    CancelTransposes,
    MergeCommonSubexpressions,
    AddCastsAroundNorms,
)

__all__ = [
    "PASSES",
    "AddCastsAroundNorms",
    "CancelCasts",
    "CancelReshapes",
    "CancelTransposes",
    "DecomposeComplex",
    "DecomposeGroupedMm",
    "DecomposeIstft",
    "DecomposeStft",
    "DisableMasks",
    "FoldAffine",
    "FoldBatchnorm",
    "FoldConstants",
    "FoldNormAffine",
    "MergeCommonSubexpressions",
    "RemoveAssertions",
    "RemoveDropout",
    "RemoveNoops",
    "ReplaceGroupNorm",
    "ReplaceInstanceNorm",
    "ReplaceL2Normalize",
    "ReplaceLayerNorm",
    "ReplaceRmsNorm",
    "SimplifyArithmetic",
    "SimplifyShapes",
    "SimplifySlices",
]
