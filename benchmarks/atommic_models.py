"""Whole models of ATOMMIC, the MRI toolbox this project was born in: every family, small, with seeded random weights.

Each is built by ATOMMIC's own constructor from a configuration written here; nothing is downloaded and nothing is
simplified: what is exported is the Lightning module that its users train. ``MODELS`` maps a name to an
:class:`AtommicModel`. Sizes are small since coverage is what is measured, not speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import atommic_import
import atommic_inputs as inputs
import torch
from torch import Generator, Tensor, nn

Config = dict[str, Any]


@dataclass(frozen=True)
class AtommicModel:
    """One model, and how to call it.

    ``unset`` are positions of outputs that ATOMMIC returns as ``torch.empty``: they hold no value to compare. ``only``
    is the one batch size at which ATOMMIC's own forward runs, where it is not any.
    """

    name: str
    path: str
    config: Config
    make: inputs.Maker
    only: int | None = None
    unset: tuple[int, ...] = ()

    def build(self) -> nn.Module:
        """The model in eval mode; batchnorm statistics are random, since 0 and 1 would hide a wrong rewrite."""
        cls = atommic_import.model_class(self.path)
        from omegaconf import OmegaConf

        torch.manual_seed(0)
        model: nn.Module = cls(OmegaConf.create(self.config), trainer=None)
        generator = Generator().manual_seed(1)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.normal_(0.0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
        return model.eval().requires_grad_(False)

    def example(self, batch: int | None = None, seed: int = 0) -> tuple[Tensor, ...]:
        """Arguments at a batch size (the smallest that is not special where none is given)."""
        made = self.make(batch or self.only or 2, Generator().manual_seed(100 + seed))
        return tuple(tensor for tensor, _ in made)

    def batch_axes(self) -> tuple[int | None, ...]:
        """For each argument its batch axis, None where it has none."""
        return tuple(axis for _, axis in self.make(2, Generator().manual_seed(0)))


FFT: Config = {"fft_centered": True, "fft_normalization": "ortho", "spatial_dims": [-2, -1]}
PLAIN_FFT: Config = {"fft_centered": False, "fft_normalization": "backward", "spatial_dims": [-2, -1]}
SENSE: Config = {"coil_combination_method": "SENSE", "use_sens_net": False}
RECONSTRUCTION: Config = {**FFT, **SENSE, "coil_dim": 1, "reconstruction_loss": {"l1": 1.0}}
QUANTITATIVE: Config = {
    **FFT, **SENSE, "coil_dim": 2, "reconstruction_loss": "ssim", "quantitative_module_dimensionality": 2,
    "quantitative_module_signal_forward_model_sequence": "MEGRE", "shift_B0_input": False,
    "quantitative_module_gamma_regularization_factors": [150.0, 150.0, 1000.0, 150.0],
    "quantitative_parameters_regularization_factors": [{"R2star": 3.0}, {"S0": 1.0}, {"B0": 1.0}, {"phi": 1.0}],
}  # fmt: skip
SEGMENTATION: Config = {
    **PLAIN_FFT, **SENSE, "coil_dim": 1, "use_reconstruction_module": False, "segmentation_loss": {"dice": 1.0},
    "magnitude_input": True, "segmentation_module_input_channels": 1, "segmentation_module_output_channels": 3,
    "consecutive_slices": 1, "dimensionality": 2,
}  # fmt: skip
JOINT: Config = {
    **PLAIN_FFT, **SENSE, "coil_dim": 1, "use_reconstruction_module": True, "reconstruction_loss": {"l1": 1.0},
    "segmentation_loss": {"dice": 1.0}, "consecutive_slices": 1, "dimensionality": 2,
    "segmentation_module_output_channels": 3,
}  # fmt: skip


def _unet(prefix: str = "", **changes: Any) -> Config:
    """Options of a normalised U-Net under a prefix such as ``kspace_unet_``."""
    options = {
        "num_filters": 4, "num_pool_layers": 2, "dropout_probability": 0.0, "padding_size": 11, "normalize": True,
        **changes,
    }  # fmt: skip
    return {prefix + key: value for key, value in options.items()}


def _rim(prefix: str = "", layer: str = "GRU", channels: int = 2, dimensions: int = 2, **changes: Any) -> Config:
    """Options of a recurrent inference machine of two convolutional layers with recurrence, and a last one without."""
    options = {
        "recurrent_layer": layer, "conv_filters": [6, 6, channels], "conv_kernels": [5, 3, 3],
        "conv_dilations": [1, 2, 1], "conv_bias": [True, True, False], "recurrent_filters": [6, 6, 0],
        "recurrent_kernels": [1, 1, 0], "recurrent_dilations": [1, 1, 0], "recurrent_bias": [True, True, False],
        "depth": 2, "time_steps": 8, "conv_dim": dimensions, "dimensionality": dimensions, "num_cascades": 1,
        "no_dc": True, "keep_prediction": True, "accumulate_predictions": True, **changes,
    }  # fmt: skip
    return {prefix + key: value for key, value in options.items()}


def _reconstruction() -> Iterator[AtommicModel]:
    def model(
        name: str, path: str, config: Config, make: inputs.Maker = inputs.from_image, **more: Any
    ) -> AtommicModel:
        return AtommicModel(name, f"reconstruction.nn.{path}", {**RECONSTRUCTION, **config}, make, **more)

    yield model("zf-sense", "zf.ZF", {})
    yield model("zf-rss", "zf.ZF", {"coil_combination_method": "RSS"})
    conv = {"num_cascades": 2, "hidden_channels": 6, "n_convs": 3, "batchnorm": False, "no_dc": False}
    yield model("cascadenet", "ccnn.CascadeNet", conv)
    yield model("cascadenet-batchnorm", "ccnn.CascadeNet", {**conv, "batchnorm": True})
    yield model("cascadenet-no-dc", "ccnn.CascadeNet", {**conv, **PLAIN_FFT, "no_dc": True})
    yield model("crnn", "crnn.CRNNet", {**conv, "num_iterations": 2})
    yield model("crnn-batchnorm", "crnn.CRNNet", {**conv, "num_iterations": 3, "batchnorm": True, "no_dc": True})
    for layer in ("GRU", "MGU", "IndRNN"):
        yield model(f"rim-{layer.lower()}", "cirim.CIRIM", _rim(layer=layer))
    dc = _rim(layer="IndRNN", no_dc=False)  # explicit data consistency runs in one cascade only
    yield model("rim-dc", "cirim.CIRIM", dc, inputs.from_image_and_flags)
    yield model("cirim-forget", "cirim.CIRIM", _rim(layer="GRU", num_cascades=2, keep_prediction=False))
    yield model("cirim-3d", "cirim.CIRIM", _rim(layer="IndRNN", dimensions=3, num_cascades=2), inputs.volume)
    didn = {"didn_hidden_channels": 6, "didn_num_dubs": 2, "didn_num_convs_recon": 1}
    dunet = {**didn, **_unet("unet_"), "num_iter": 2, "data_consistency_lambda_init": 0.1,
             "data_consistency_iterations": 3, "shared_params": False}  # fmt: skip
    for net, term in (("DIDN", "GD"), ("DIDN", "VS"), ("DIDN", "PROX"), ("UNET", "GD"), ("UNET", "PROX")):
        config = {**dunet, "reg_model_architecture": net, "data_consistency_term": term}
        only = 1 if term == "PROX" else None  # its conjugate gradient sums over the batch
        yield model(f"dunet-{net.lower()}-{term.lower()}", "dunet.DUNet", config, inputs.from_coils, only=only)
    shared = {"reg_model_architecture": "UNET", "data_consistency_term": "VS", "shared_params": True}
    yield model("dunet-shared", "dunet.DUNet", {**dunet, **shared}, inputs.from_coils)
    nets = {**_unet("kspace_unet_"), **_unet("imspace_unet_"), **_unet("sens_unet_"), "num_iter": 2}
    yield model("jointicnet", "jointicnet.JointICNet", {**nets, "sens_unet_mask_center": True}, inputs.from_coils)
    plain = {**nets, "sens_unet_normalize": False, "sens_unet_mask_center": False}
    yield model("jointicnet-plain", "jointicnet.JointICNet", plain, inputs.from_coils)
    kiki = {**nets, "imspace_model_architecture": "UNET", "kspace_model_architecture": "UNET"}
    yield model("kikinet-unet", "kikinet.KIKINet", kiki, inputs.from_coils)
    yield model("kikinet-no-dc", "kikinet.KIKINet", {**kiki, "no_dc": True}, inputs.from_coils)
    kspace_didn = {f"kspace_{key}": value for key, value in didn.items()}
    kspace_conv = {"kspace_conv_hidden_channels": 6, "kspace_conv_n_convs": 3, "kspace_conv_batchnorm": True}
    yield model("kikinet-didn", "kikinet.KIKINet", {**kiki, **kspace_didn, "kspace_model_architecture": "DIDN"})
    yield model("kikinet-conv", "kikinet.KIKINet", {**kiki, **kspace_conv, "kspace_model_architecture": "CONV"})
    mwcnn = {"mwcnn_hidden_channels": 4, "mwcnn_num_scales": 2, "mwcnn_bias": True, "mwcnn_batchnorm": False}
    lpd = {**_unet("primal_unet_"), **_unet("dual_unet_"), **kspace_didn, **kspace_conv, "num_iter": 2,
           **{f"primal_{key}": value for key, value in mwcnn.items()}, "num_primal": 2, "num_dual": 2,
           **{f"{side}_{end}_channels": 2 for side in ("primal", "dual") for end in ("in", "out")}}  # fmt: skip
    for primal, dual in (("UNET", "UNET"), ("MWCNN", "CONV"), ("UNET", "DIDN")):
        config = {**lpd, "primal_model_architecture": primal, "dual_model_architecture": dual}
        yield model(f"lpdnet-{primal.lower()}-{dual.lower()}", "lpd.LPDNet", config)
    modl = {"unrolled_iterations": 2, "residual_blocks": 2, "channels": 6, "penalization_weight": 0.05,
            "regularization_factor": 0.1, "conjugate_gradient_iterations": 3}  # fmt: skip
    yield model("modl", "modl.MoDL", {**modl, "conjugate_gradient_dc": False})
    yield model("modl-cg", "modl.MoDL", {**modl, "conjugate_gradient_dc": True})
    yield model("proximal-gradient", "proximal_gradient.ProximalGradient", modl)
    domains = {"num_filters": 4, "num_pool_layers": 2, "dropout_probability": 0.0}
    for name, standardization in (("multidomainnet", True), ("multidomainnet-plain", False)):
        yield model(name, "multidomainnet.MultiDomainNet", {**domains, "standardization": standardization})
    recurrent = {"in_channels": 2, "recurrent_hidden_channels": 6, "recurrent_num_layers": 2, "num_steps": 8,
                 "no_parameter_sharing": False, "learned_initializer": True, "initializer_channels": [4, 4, 6, 6],
                 "initializer_dilations": [1, 1, 2, 4], "initializer_multiscale": 1}  # fmt: skip
    path = "recurrentvarnet.RecurrentVarNet"
    for start in ("sense", "zero_filled"):
        name = f"recurrentvarnet-{start.replace('_', '-')}"
        yield model(name, path, {**recurrent, "initializer_initialization": start, "initializer_multiscale": 2})
    yield model("recurrentvarnet-plain", path, {**recurrent, "learned_initializer": False, "num_steps": 2})
    unet = {"channels": 4, "pooling_layers": 2, "padding_size": 11, "normalize": True, "num_cascades": 2}
    yield model("unet", "unet.UNet", unet)
    yield model("unet-plain", "unet.UNet", {**unet, "normalize": False})
    magnitude = {"in_channels": 1, "out_channels": 1, "normalize": False}
    yield model("unet-magnitude", "unet.UNet", {**unet, **magnitude})
    yield model("varnet", "varnet.VarNet", {**unet, "no_dc": False})
    yield model("varnet-no-dc", "varnet.VarNet", {**unet, **PLAIN_FFT, "no_dc": True})
    vsnet = {"num_cascades": 2, "imspace_conv_hidden_channels": 6, "imspace_conv_n_convs": 3, **_unet("imspace_unet_"),
             "imspace_conv_batchnorm": True, **{f"image_{key}": value for key, value in mwcnn.items()}}  # fmt: skip
    for net in ("CONV", "UNET", "MWCNN"):
        config = {**vsnet, "imspace_model_architecture": net}
        yield model(f"vsnet-{net.lower()}", "vsnet.VSNet", config, only=1)  # it broadcasts the batch against the coils
    xpdnet = {**mwcnn, **_unet("imspace_unet_"), "num_primal": 2, "num_dual": 1, "num_iter": 2, "use_primal_only": True,
              **{f"{side}_{end}_channels": 2 for side in ("imspace", "kspace") for end in ("in", "out")}}  # fmt: skip
    yield model(
        "xpdnet-mwcnn", "xpdnet.XPDNet", {**xpdnet, "image_model_architecture": "MWCNN", "normalize_image": False}
    )
    yield model("xpdnet-unet", "xpdnet.XPDNet", {**xpdnet, "image_model_architecture": "UNET", "normalize_image": True})


def _quantitative() -> Iterator[AtommicModel]:
    def model(name: str, path: str, config: Config, make: inputs.Maker = inputs.echoes, **more: Any) -> AtommicModel:
        return AtommicModel(name, f"quantitative.nn.{path}", {**QUANTITATIVE, **config}, make, **more)

    alone, joint = {"use_reconstruction_module": False}, {"use_reconstruction_module": True}
    yield model("qzf", "qzf.qZF", alone)
    yield model("qzf-joint", "qzf.qZF", joint)
    for layer in ("GRU", "MGU", "IndRNN"):
        config = {**alone, **_rim("quantitative_module_", layer, channels=4, time_steps=2)}
        yield model(f"qrim-{layer.lower()}", "qcirim.qCIRIM", config, unset=(0,))
    cascades = _rim("quantitative_module_", "GRU", channels=4, time_steps=1, num_cascades=2)
    config = {**joint, **cascades, **_rim("reconstruction_module_"), "quantitative_maps_scaling_factor": 1e-3}
    yield model("qcirim-joint", "qcirim.qCIRIM", config, inputs.echoes_of_one_body, only=1)
    part = {"num_cascades": 2, "channels": 4, "pooling_layers": 2, "padding_size": 11, "normalize": True,
            "no_dc": False, "accumulate_predictions": False, "dimensionality": 2}  # fmt: skip
    maps = {f"quantitative_module_{key}": value for key, value in {**part, "in_channels": 8, "out_channels": 8}.items()}
    images = {
        f"reconstruction_module_{key}": value for key, value in {**part, "in_channels": 2, "out_channels": 2}.items()
    }
    yield model("qvarnet", "qvarnet.qVarNet", {**alone, **maps}, unset=(0,), only=1)
    yield model(
        "qvarnet-no-dc", "qvarnet.qVarNet", {**alone, **maps, "quantitative_module_no_dc": True}, unset=(0,), only=1
    )
    yield model("qvarnet-joint", "qvarnet.qVarNet", {**joint, **maps, **images}, inputs.echoes_of_one_body, only=1)


def _segmentation() -> Iterator[AtommicModel]:
    def model(name: str, path: str, config: Config, make: inputs.Maker) -> AtommicModel:
        prefixed = {f"segmentation_module_{key}": value for key, value in config.items() if key not in SEGMENTATION}
        own = {key: value for key, value in config.items() if key in SEGMENTATION}
        return AtommicModel(name, f"segmentation.nn.{path}", {**SEGMENTATION, **prefixed, **own}, make)

    unet = {"channels": 6, "pooling_layers": 2}
    slices = {"consecutive_slices": 4}
    yield model("seg-unet", "unet.SegmentationUNet", unet, inputs.magnitudes(24, 20))
    yield model("seg-unet-slices", "unet.SegmentationUNet", {**unet, **slices}, inputs.magnitudes(4, 24, 20))
    channels = {"magnitude_input": False, "segmentation_module_input_channels": 2}
    yield model("seg-unet-complex", "unet.SegmentationUNet", {**unet, **channels}, inputs.pairs(24, 20))
    yield model("seg-unet-magnitude", "unet.SegmentationUNet", unet, inputs.pairs(24, 20))
    yield model("seg-unet3d", "unet3d.Segmentation3DUNet", unet, inputs.magnitudes(3, 1, 24, 20))
    path = "attentionunet.SegmentationAttentionUNet"
    yield model("seg-attention-unet", path, {**unet, **slices}, inputs.magnitudes(4, 24, 20))
    depth = {"query_depth": 4, "intra_depth": 2, "temporal_kernel": 1}
    for kernel in (1, 3):
        config = {**unet, **depth, "receptive_kernel": kernel}
        yield model(
            f"seg-lambda-unet-{kernel}", "lambdaunet.SegmentationLambdaUNet", config, inputs.magnitudes(1, 24, 20)
        )
    dynamic = {"channels": [4, 8, 12, 16], "kernel_size": [3, 3, 3, 1], "strides": [1, 1, 1, 1],
               "norm": "instance", "activation": "leakyrelu", "deep_supervision_levels": 1}  # fmt: skip
    for name, deep in (("seg-dynunet", False), ("seg-dynunet-deep", True)):
        config = {**dynamic, "deep_supervision": deep}
        yield model(name, "dynunet.SegmentationDYNUNet", config, inputs.magnitudes(24, 20))
    config = {**dynamic, "strides": [1, 2, 2, 1], "norm": "batch", "deep_supervision": False}
    yield model("seg-dynunet-strided", "dynunet.SegmentationDYNUNet", config, inputs.magnitudes(24, 20))
    for activation in ("elu", "relu"):
        config = {"activation": activation, "bias": activation == "relu", "padding_size": 15}
        yield model(f"seg-vnet-{activation}", "vnet.SegmentationVNet", config, inputs.magnitudes(24, 20))
    transformer = {"img_size": [32, 32], "channels": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 3,
                   "norm_name": "instance", "pos_embed": "conv", "conv_block": True, "res_block": True}  # fmt: skip
    yield model("seg-unetr", "unetr.SegmentationUNetR", {**transformer, **slices}, inputs.magnitudes(4, 32, 32))
    perceptron = {**transformer, **slices, "pos_embed": "perceptron", "qkv_bias": True, "res_block": False}
    yield model("seg-unetr-perceptron", "unetr.SegmentationUNetR", perceptron, inputs.magnitudes(4, 32, 32))


def _joint() -> Iterator[AtommicModel]:
    def model(name: str, path: str, config: Config) -> AtommicModel:
        return AtommicModel(name, f"multitask.rs.nn.{path}", {**JOINT, **config}, inputs.with_target)

    coils = {"input_channels": 6, "reconstruction_module_output_channels": 6, "channels": 4, "num_pools": 2,
             "padding_size": 11, "drop_prob": 0.0, "normalize": True, "padding": True, "num_iters": 2}  # fmt: skip
    yield model("idslr", "idslr.IDSLR", coils)
    more = {"input_channels": 8, "reconstruction_module_output_channels": 8}  # a coil of zeros is added
    yield model("idslr-more-coils", "idslr.IDSLR", {**coils, **more})
    yield model("idslr-unet", "idslr_unet.IDSLRUNet", coils)
    final = {"segmentation_final_layer_kernel_size": 3, "segmentation_final_layer_nonlinear": "relu", "num_cascades": 2}
    yield model("segnet", "segnet.SegNet", {**coils, **final})
    small = {f"{part}_module_{key}": value for part in ("reconstruction", "segmentation", "recurrent") for key, value in
             {"channels": 4, "pooling_layers": 2, "dropout": 0.0}.items()}  # fmt: skip
    one = {"input_channels": 1, "reconstruction_module_output_channels": 1, "magnitude_input": True}
    two = {"input_channels": 2, "reconstruction_module_output_channels": 2, "magnitude_input": False}
    yield model("recsegunet", "recseg_unet.RecSegUNet", {**small, **one})
    yield model("recsegunet-complex", "recseg_unet.RecSegUNet", {**small, **two})
    attention = {"recurrent_module_attention_channels": 4, "recurrent_module_iterations": 2,
                 "segmentation_module_input_channels": 3}  # fmt: skip
    yield model("seranet-unet", "seranet.SERANet", {**small, **two, **attention, "reconstruction_module": "unet"})
    recurrent = {**_rim("reconstruction_module_", "IndRNN", num_cascades=2, time_steps=2), "magnitude_input": True,
                 "joint_reconstruction_segmentation_module_cascades": 2, "segmentation_module_input_channels": 1,
                 "task_adaption_type": "multi_task_learning", **small}  # fmt: skip
    for net in ("unet", "attentionunet", "lambdaunet", "convlayer"):
        yield model(f"mtlrs-{net}", "mtlrs.MTLRS", {**recurrent, "segmentation_module": net})


MODELS = {model.name: model for part in (_reconstruction, _quantitative, _segmentation, _joint) for model in part()}
"""Name -> model, by collection: reconstruction, quantitative maps, segmentation, both at once."""
