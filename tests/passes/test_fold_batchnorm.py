"""What becomes of a batchnorm: into the layer before, into the layer after, a multiply-add, or left alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxexport.passes import FoldBatchnorm, RemoveDropout, RemoveNoops
from fxexport.rewrite import PassManager
from fxexport.testing import assert_rewrites, assert_unchanged

aten = torch.ops.aten
BN, MUL, ADD = aten.batch_norm.default, aten.mul.Tensor, aten.add.Tensor
BATCH = {"x": {0: "batch"}}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def norm(channels: int, dims: int = 2, **options) -> nn.Module:
    """A batchnorm whose statistics and weights are far from 0 and 1."""
    result = NORMS[dims](channels, **options)
    with torch.no_grad():
        for tensor in (result.running_mean, result.bias):
            if tensor is not None:
                tensor.normal_()
        for tensor in (result.running_var, result.weight):
            if tensor is not None:
                tensor.uniform_(0.3, 3.0)
    return result


class Call(nn.Module):
    """A model from modules and a plain function of them and x."""

    def __init__(self, function, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(self, x)


def image(channels: int = 4, dims: int = 2) -> tuple[Tensor]:
    return (torch.randn(2, channels, *(6,) * dims),)


# ---------------------------------------------------------------- into the layer before

LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2), 1),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1), 2),
    "conv3d": (nn.Conv3d(4, 6, 2), 3),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), 2),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, dilation=2), 2),
    "no bias": (nn.Conv2d(4, 6, 3, bias=False), 2),
    "same": (nn.Conv2d(4, 6, 3, padding="same"), 2),
    "valid": (nn.Conv1d(4, 6, 3, padding="valid"), 1),
    "reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), 2),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, groups=2), 1),
    "transposed 2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), 2),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2, groups=2, bias=False), 3),
    "transposed, one group": (nn.ConvTranspose2d(4, 6, 3), 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_folds_into_the_layer_before(name: str) -> None:
    layer, dims = LAYERS[name]
    channels = layer.out_channels
    model = nn.Sequential(layer, norm(channels, dims), nn.ReLU())
    program = assert_rewrites(FoldBatchnorm(), model, None, image(4, dims), gone=[BN], count=1, ops={MUL: 0, ADD: 0})
    assert set(program.constants()) == {"0.weight_folded", "0.bias_folded"}


def test_keeps_a_dynamic_batch() -> None:
    program = assert_rewrites(
        FoldBatchnorm(),
        nn.Sequential(nn.Conv2d(4, 6, 3), norm(6)),
        None,
        image(),
        gone=[BN],
        dynamic={"input": {0: "batch"}},
    )
    assert program.signature.outputs[0].axes[0] == "batch"
    (node,) = program.find(aten.conv2d.default)
    assert not isinstance(node.meta["val"].shape[0], int)


def test_folds_into_linear_before() -> None:
    model = nn.Sequential(nn.Linear(4, 5), norm(5, 1))
    assert_rewrites(FoldBatchnorm(), model, None, (torch.randn(3, 4),), gone=[BN], count=1, ops={MUL: 0})


def test_folds_into_the_general_convolution() -> None:
    def forward(m: Call, x: Tensor) -> Tensor:
        x = torch.convolution(x, m.a.weight, m.a.bias, [1, 1], [1, 1], [1, 1], False, [0, 0], 2)
        x = torch.convolution(m.na(x), m.b.weight, None, [2, 2], [0, 0], [1, 1], True, [0, 0], 2)
        return m.nb(x)

    model = Call(
        forward,
        a=nn.Conv2d(4, 6, 3, groups=2),
        na=norm(6),
        b=nn.ConvTranspose2d(6, 4, 3, groups=2),
        nb=norm(4),
    )
    assert_rewrites(
        FoldBatchnorm(), model, None, image(), gone=[BN], count=2, ops={aten.convolution.default: 2, MUL: 0}
    )


def test_one_conv_called_twice_gets_two_sets_of_constants() -> None:
    model = Call(lambda m, x: m.b1(m.conv(x)) + m.b2(m.conv(x * 2)), conv=nn.Conv2d(4, 4, 3), b1=norm(4), b2=norm(4))
    program = assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], count=2, ops={aten.conv2d.default: 2})
    assert len(program.constants()) == 4


def test_one_pair_called_twice_shares_its_constants() -> None:
    model = Call(lambda m, x: m.bn(m.conv(x)) + m.bn(m.conv(x * 2)), conv=nn.Conv2d(4, 4, 3), bn=norm(4))
    program = assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], count=2)
    assert len(program.constants()) == 2


def test_one_weight_in_a_conv_and_a_transposed_conv() -> None:
    """The channels of the same weight are its rows in one and its columns in the other."""
    model = Call(
        lambda m, x: m.bn(m.conv(x)).mean((2, 3)) + m.bn(F.conv_transpose2d(x, m.conv.weight)).mean((2, 3)),
        conv=nn.Conv2d(4, 4, 3, bias=False),
        bn=norm(4),
    )
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], count=2, ops={MUL: 0})


def test_one_conv_called_twice_with_and_without_batchnorm() -> None:
    model = Call(lambda m, x: m.bn(m.conv(x)) + m.conv(x * 2), conv=nn.Conv2d(4, 4, 3), bn=norm(4))
    program = assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], count=1)
    assert "conv.weight" in program.constants()


def test_one_batchnorm_shared_by_two_convs() -> None:
    model = Call(
        lambda m, x: m.bn(m.a(x)) + m.bn(m.b(x)),
        a=nn.Conv2d(4, 4, 3),
        b=nn.Conv2d(4, 4, 3, bias=False),
        bn=norm(4),
    )
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], count=2, ops={MUL: 0})


def test_two_batchnorms_in_a_row() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), norm(6), norm(6))
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], count=2, ops={MUL: 0, ADD: 0})


def test_through_dropout_and_identity() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Dropout(0.5), nn.Identity(), norm(6))
    assert_rewrites(
        FoldBatchnorm(), model, None, image(), gone=[BN], ops={MUL: 0}, first=[RemoveDropout(), RemoveNoops()]
    )


def test_reading_the_shape_of_the_conv_does_not_hinder() -> None:
    def forward(m: Call, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.bn(y).reshape(-1, y.shape[1], y.shape[2] * y.shape[3])

    model = Call(forward, conv=nn.Conv2d(4, 6, 3, stride=2), bn=norm(6))
    dynamic = {"x": {2: "height", 3: "width"}}
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], ops={MUL: 0, ADD: 0}, dynamic=dynamic)


@pytest.mark.parametrize("options", [{"affine": False}, {"momentum": None}, {"eps": 0.1}], ids=str)
def test_options_of_batchnorm(options: dict) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), norm(6, **options))
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], count=1, ops={MUL: 0})


def test_functional_batchnorm_with_constant_tensors() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3)
            self.register_buffer("mean", torch.randn(6))
            self.register_buffer("var", torch.rand(6) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(self.conv(x), self.mean, self.var, None, None, False, 0.1, 1e-3)

    assert_rewrites(FoldBatchnorm(), Functional(), None, image(), gone=[BN], count=1, ops={MUL: 0})


def test_batchnorm_without_its_saved_statistics() -> None:
    """The form in which torch's own functionalisation leaves it."""

    def forward(m: Call, x: Tensor) -> Tensor:
        parts = (m.bn.weight, m.bn.bias, m.bn.running_mean, m.bn.running_var, 0.1, 1e-5)
        return aten._native_batch_norm_legit_no_training.default(m.conv(x), *parts)[0].relu()

    model = Call(forward, conv=nn.Conv2d(4, 6, 3), bn=norm(6))
    gone = [aten._native_batch_norm_legit_no_training.default]
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=gone, count=1, ops={MUL: 0})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_constants_are_rounded_once_from_float64(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), norm(6)).to(dtype).eval()
    program = assert_rewrites(FoldBatchnorm(), model, None, (torch.randn(2, 4, 6, 6).to(dtype),), gone=[BN], count=1)
    conv, bn = model
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    weight = program.constants()["0.weight_folded"]
    assert torch.equal(weight, (conv.weight.double() * scale[:, None, None, None]).to(dtype))
    assert program.output_nodes[0].meta["val"].dtype == dtype


def test_float16_weights_with_float32_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3).half(), norm(6), nn.ReLU())
    inputs = (torch.randn(2, 4, 6, 6).half(),)
    program = assert_rewrites(FoldBatchnorm(), model, None, inputs, gone=[BN], count=1)
    assert {t.dtype for t in program.constants().values()} == {torch.float16}


# ---------------------------------------------------------------- into the layer after


def test_folds_into_an_unpadded_conv_after() -> None:
    model = nn.Sequential(norm(4), nn.Conv2d(4, 6, 3, groups=2))
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], count=1, ops={MUL: 0, ADD: 0})


@pytest.mark.parametrize("bias", [True, False])
def test_folds_into_linear_after(bias: bool) -> None:
    model = nn.Sequential(norm(4, 1), nn.Linear(4, 6, bias=bias))
    assert_rewrites(FoldBatchnorm(), model, None, (torch.randn(3, 4),), gone=[BN], count=1, ops={MUL: 0})


def test_a_padded_zero_is_not_shifted() -> None:
    model = nn.Sequential(norm(4), nn.Conv2d(4, 6, 3, padding=1))
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], count=1, ops={MUL: 1, ADD: 1})


def test_padding_does_not_matter_without_a_shift() -> None:
    bn = norm(4)
    with torch.no_grad():
        bn.running_mean.zero_()
        bn.bias.zero_()
    model = nn.Sequential(bn, nn.Conv2d(4, 6, 3, padding="same"))
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], count=1, ops={MUL: 0, ADD: 0})


@pytest.mark.parametrize(
    ("padding", "kernel", "multiplies"),
    [("same", 1, 0), ("same", 3, 1), ("valid", 3, 0), ((0, 1), (1, 3), 1)],
)
def test_padding_that_pads_nothing_does_not_hinder(padding, kernel, multiplies: int) -> None:
    model = nn.Sequential(norm(4), nn.Conv2d(4, 6, kernel, padding=padding))
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], ops={MUL: multiplies})


def test_not_into_a_transposed_conv_after() -> None:
    """Its border outputs sum fewer taps, so a shift of its input is no constant."""
    model = nn.Sequential(norm(4), nn.ConvTranspose2d(4, 6, 3))
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], ops={MUL: 1, ADD: 1})


def test_not_into_the_layer_after_when_told_not_to() -> None:
    model = nn.Sequential(norm(4), nn.Conv2d(4, 6, 3))
    assert_rewrites(FoldBatchnorm(into_next=False), model, None, image(), gone=[BN], ops={MUL: 1, ADD: 1})


def test_not_into_the_layer_after_when_its_input_is_read_elsewhere() -> None:
    model = Call(lambda m, x: (m.conv(m.bn(x)), m.bn(x).relu()), bn=norm(4), conv=nn.Conv2d(4, 4, 3))
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], count=2, ops={MUL: 1})

    def forward(m: Call, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.bn(x)
        return m.conv(y), y

    model = Call(forward, bn=norm(4), conv=nn.Conv2d(4, 4, 3))
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], count=1, ops={MUL: 1, ADD: 1})


def test_a_normalized_value_used_as_weight_is_not_an_input() -> None:
    model = Call(lambda m, x: F.conv2d(x, m.bn(x)), bn=norm(2))
    assert_rewrites(FoldBatchnorm(), model, None, (torch.randn(2, 2, 3, 3),), gone=[BN], ops={MUL: 1, ADD: 1})


# ---------------------------------------------------------------- a multiply and an add


def test_conv_output_used_by_batchnorm_and_add() -> None:
    def forward(m: Call, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.bn(y) - y

    model = Call(forward, conv=nn.Conv2d(4, 4, 3), bn=norm(4))
    program = assert_rewrites(
        FoldBatchnorm(), model, None, image(), gone=[BN], count=1, ops={MUL: 1, ADD: 1}, dynamic=BATCH
    )
    assert {"bn.scale", "bn.shift", "conv.weight", "conv.bias"} == set(program.constants())
    assert program.constants()["bn.scale"].shape == (4, 1, 1)


def test_conv_output_that_is_also_returned() -> None:
    def forward(m: Call, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.conv(x)
        return y, m.bn(y)

    model = Call(forward, conv=nn.Conv2d(4, 4, 3), bn=norm(4))
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], count=1, ops={MUL: 1, ADD: 1})


def test_preactivation_as_in_densenet() -> None:
    def forward(m: Call, x: Tensor) -> Tensor:
        y = m.conv1(m.norm1(x).relu())
        z = m.conv2(m.norm2(y).relu())
        return torch.cat([x, z], 1)

    model = Call(
        forward,
        norm1=norm(4),
        conv1=nn.Conv2d(4, 8, 1, bias=False),
        norm2=norm(8),
        conv2=nn.Conv2d(8, 4, 3, padding=1),
    )
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], count=2, ops={MUL: 1, ADD: 1})


@pytest.mark.parametrize(("shape", "dims"), [((3, 4), 1), ((2, 4, 5), 1), ((2, 4, 5, 5), 2), ((2, 4, 3, 3, 3), 3)])
def test_batchnorm_alone(shape: tuple[int, ...], dims: int) -> None:
    program = assert_rewrites(
        FoldBatchnorm(), norm(4, dims), None, (torch.randn(shape),), gone=[BN], ops={MUL: 1, ADD: 1}
    )
    assert all(t.shape == (4,) + (1,) * (len(shape) - 2) for t in program.constants().values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_batchnorm_alone_in_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    bn = norm(4)
    bn.running_mean.add_(300)  # x * scale + shift cancels: rounding the product to 8 or 11 bits would lose the result
    inputs = (300 + torch.randn(2, 4, 5, 5)).to(dtype)
    program = assert_rewrites(FoldBatchnorm(), bn, None, (inputs,), gone=[BN], ops={aten._to_copy.default: 2})
    assert program.output_nodes[0].meta["val"].dtype == dtype
    reference = bn.double().eval()(inputs.double())
    unit = torch.finfo(dtype).eps * reference.abs() + 1e-4
    assert ((program.run(inputs)[0].double() - reference).abs() <= unit).all()


def test_linear_on_sequences_normalizes_another_axis() -> None:
    """On [batch, time, features] axis 1 of the output is time, not the rows of the weight."""
    model = nn.Sequential(nn.Linear(4, 5), norm(3, 1))
    assert_rewrites(FoldBatchnorm(), model, None, (torch.randn(2, 3, 4),), gone=[BN], ops={MUL: 1, ADD: 1})


def test_linear_on_sequences_of_as_many_steps_as_features() -> None:
    model = nn.Sequential(nn.Linear(5, 5), norm(5, 1), nn.Linear(5, 5))
    assert_rewrites(FoldBatchnorm(), model, None, (torch.randn(2, 5, 5),), gone=[BN], ops={MUL: 1, ADD: 1})


def test_linear_then_transpose_then_batchnorm() -> None:
    model = Call(lambda m, x: m.bn(m.linear(x).transpose(1, 2)), linear=nn.Linear(4, 5), bn=norm(5, 1))
    program = assert_rewrites(FoldBatchnorm(), model, None, (torch.randn(2, 3, 4),), gone=[BN], ops={MUL: 0, ADD: 0})
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [
        aten.linear.default,
        aten.transpose.int,
    ]


def test_conv_without_a_batch_axis() -> None:
    """On [channels, time] axis 1 of the output is time."""
    model = nn.Sequential(nn.Conv1d(4, 6, 1), norm(6, 1))
    assert_rewrites(FoldBatchnorm(), model, None, (torch.randn(4, 6),), gone=[BN], ops={MUL: 1, ADD: 1})


def test_computed_weight_is_not_folded_into() -> None:
    model = Call(lambda m, x: m.bn(F.conv2d(x, m.conv.weight.tanh())), conv=nn.Conv2d(4, 6, 3), bn=norm(6))
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], ops={MUL: 1, ADD: 1})


def test_computed_bias_is_not_folded_into() -> None:
    model = Call(lambda m, x: m.bn(F.conv2d(x, m.conv.weight, m.conv.bias.tanh())), conv=nn.Conv2d(4, 6, 3), bn=norm(6))
    assert_rewrites(FoldBatchnorm(), model, None, image(), gone=[BN], ops={MUL: 1, ADD: 1})


def test_a_rounding_that_would_lose_the_weight_is_not_done() -> None:
    """scale * W is subnormal in float16: the product in float32 is kept instead."""
    bn = norm(6)
    bn.running_var.fill_(1e10)
    bn.bias.data.normal_()
    model = nn.Sequential(nn.Conv2d(4, 6, 3).half(), bn)
    inputs = (torch.randn(2, 4, 6, 6).half(),)
    assert_rewrites(FoldBatchnorm(), model, None, inputs, gone=[BN], ops={MUL: 1, ADD: 1}, atol=1e-3, rtol=1e-3)


# ---------------------------------------------------------------- left alone


def test_statistics_of_the_batch_stay() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False))
    assert_unchanged(FoldBatchnorm(), model, image(), reason="statistics of the batch")


def test_training_true_stays() -> None:
    model = Call(
        lambda m, x: F.batch_norm(m.conv(x), None, None, m.bn.weight, m.bn.bias, True),
        conv=nn.Conv2d(4, 6, 3),
        bn=norm(6),
    )
    assert_unchanged(FoldBatchnorm(), model, image(), reason="statistics of the batch")


@pytest.mark.parametrize("part", ["weight", "running_var"])
def test_computed_statistics_stay(part: str) -> None:
    def forward(m: Call, x: Tensor) -> Tensor:
        values = {k: getattr(m.bn, k) for k in ("running_mean", "running_var", "weight", "bias")}
        values[part] = values[part] * (1 + x.square().mean())
        return F.batch_norm(m.conv(x), **values)

    model = Call(forward, conv=nn.Conv2d(4, 6, 3), bn=norm(6))
    assert_unchanged(FoldBatchnorm(), model, image(), reason="are computed")


def test_infinite_scale_stays() -> None:
    bn = norm(4, eps=0.0)
    bn.running_var[0] = 0
    model = nn.Sequential(nn.Conv2d(4, 4, 3), bn)
    # Not through assert_unchanged: capture refuses a model whose outputs are not finite.
    bn.weight.data[0] = 0
    from fxexport.capture import capture_model

    program = capture_model(model, image(), allow_nan=True).program
    after, (record,) = PassManager([FoldBatchnorm()]).run(program)
    assert record.count == 0
    assert "not finite" in record.near_misses[0].reason
    assert any(node.target == BN for node in after.graph.nodes)


def test_saved_statistics_that_are_read_stay() -> None:
    def forward(m: Call, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = (m.bn.weight, m.bn.bias, m.bn.running_mean, m.bn.running_var, 0.1, 1e-5)
        result = aten._native_batch_norm_legit_no_training.default(x, *parts)
        return result[0], result[1]

    assert_unchanged(FoldBatchnorm(), Call(forward, bn=norm(4)), image(), reason="saved statistics are read")


def test_no_batchnorm_no_change() -> None:
    assert_unchanged(FoldBatchnorm(), nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU()), image())
