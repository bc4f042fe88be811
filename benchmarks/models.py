"""Full-size architectures with seeded random weights, for the demo and the benchmarks. Nothing is downloaded.

Each factory returns ``(model, (), kwargs)``, as ``fxexport compile benchmarks.models:bert_base`` wants it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch import Tensor, nn

Example = tuple[nn.Module, tuple[()], dict[str, Tensor]]
Axes = dict[str, list[str | None]]


def resnet50() -> Example:
    """ResNet-50 classifier, images of 224 x 224 (25.6 M parameters)."""
    return _model("ResNetForImageClassification", num_labels=1000), (), _images()


def convnext_tiny() -> Example:
    """ConvNeXt-T, images of 224 x 224 (27.8 M parameters)."""
    return _model("ConvNextModel"), (), _images()


def bert_base() -> Example:
    """BERT-base encoder, 128 tokens, the last row padded (109.5 M parameters)."""
    return _model("BertModel"), (), _tokens(30522, 128)


def llama_100m() -> Example:
    """A Llama of 12 layers with grouped key and value heads, 128 tokens (100 M parameters)."""
    config: dict[str, Any] = dict(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=2048,
        tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return _model("LlamaForCausalLM", **config), (), _tokens(32000, 128)


def wav2vec2_base() -> Example:
    """Wav2Vec2-base with a CTC head, one second of sound at 16 kHz (94.4 M parameters)."""
    torch.manual_seed(1)
    sound = {"input_values": torch.randn(2, 16000)}
    return _model("Wav2Vec2ForCTC"), (), sound


def citrinet() -> Example:
    """A Citrinet of 9 blocks, two times three seconds of features, nothing padded (1.6 M parameters)."""
    torch.manual_seed(0)
    model = _with_statistics(Citrinet())
    return model, (), {"audio_signal": torch.randn(2, 80, 304), "length": torch.tensor([304, 304])}


_IMAGE: Axes = {"pixel_values": ["batch", None, None, None]}
_TEXT: Axes = {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"]}

MODELS: dict[str, tuple[Callable[[], Example], Axes]] = {
    "resnet50": (resnet50, _IMAGE),
    "bert_base": (bert_base, _TEXT),
    "convnext_tiny": (convnext_tiny, _IMAGE),
    "llama_100m": (llama_100m, _TEXT),
    "wav2vec2_base": (wav2vec2_base, {"input_values": ["batch", "time"]}),
    "citrinet": (citrinet, {"audio_signal": ["batch", None, "time"], "length": ["batch"]}),
}
"""Name -> factory, and the axes that stay dynamic."""


def _model(name: str, **sizes: Any) -> nn.Module:
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    return _with_statistics(kind(kind.config_class(**sizes)))


def _with_statistics(model: nn.Module) -> nn.Module:
    """``model`` in eval mode; batchnorm statistics are random, since 0 and 1 would hide a wrong rewrite."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0.0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def _images() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"pixel_values": torch.randn(2, 3, 224, 224)}


def _tokens(vocabulary: int, length: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[-1, length // 2 :] = 0
    return {"input_ids": torch.randint(0, vocabulary, (2, length)), "attention_mask": mask}


# ---------------------------------------------------------------- a speech encoder with masks


class MaskedConv(nn.Module):
    """A convolution along time that first sets the frames beyond ``lengths`` to 0; returns the new lengths, too."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.arange(x.shape[-1], device=x.device)[None] >= lengths[:, None]
        x = x.masked_fill(mask[:, None], 0.0)
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        return self.conv(x), (lengths + 2 * (kernel // 2) - kernel) // stride + 1


class SqueezeExcite(nn.Module):
    """Channels weighted by what a small network makes of their mean over the frames that count."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(channels, channels // 8), nn.ReLU(), nn.Linear(channels // 8, channels))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = (torch.arange(x.shape[-1], device=x.device)[None] < lengths[:, None]).to(x.dtype)[:, None]
        mean = (x * mask).sum(-1) / mask.sum(-1)
        return x * self.gate(mean).sigmoid()[..., None]


class Block(nn.Module):
    """``repeats`` separable convolutions with batchnorm, squeeze-excite, and the way around them."""

    def __init__(self, channels: int, kernel: int, stride: int, repeats: int) -> None:
        super().__init__()
        self.depthwise = nn.ModuleList(
            MaskedConv(channels, channels, kernel, stride if i == repeats - 1 else 1, channels) for i in range(repeats)
        )
        self.pointwise = nn.ModuleList(MaskedConv(channels, channels, 1) for _ in range(repeats))
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(repeats))
        self.excite, self.around = SqueezeExcite(channels), MaskedConv(channels, channels, 1, stride)
        self.around_norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y, kept = x, lengths
        for depthwise, pointwise, norm in zip(self.depthwise, self.pointwise, self.norms, strict=True):
            y, kept = depthwise(y.relu(), kept)
            y, kept = pointwise(y, kept)
            y = norm(y)
        around, _ = self.around(x, lengths)
        return (self.excite(y, kept) + self.around_norm(around)).relu(), kept


class Citrinet(nn.Module):
    """Masked convolutions with masked squeeze-excite (Majumdar et al. 2021, arXiv:2104.01721).

    ``forward(audio_signal [batch, 80, frames], length [batch]) -> log-probabilities, lengths``; 3 times 2 frames to 1.
    """

    def __init__(self, channels: int = 192, blocks: int = 9, tokens: int = 257) -> None:
        super().__init__()
        self.first = MaskedConv(80, channels, 5)
        strides = [2 if i % (blocks // 3) == 0 else 1 for i in range(blocks)]
        self.blocks = nn.ModuleList(Block(channels, 11 + 2 * (i // 2), strides[i], 3) for i in range(blocks))
        self.head = MaskedConv(channels, tokens, 1)

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        x, length = self.first(audio_signal, length)
        for block in self.blocks:
            x, length = block(x, length)
        x, length = self.head(x, length)
        return x.transpose(1, 2).log_softmax(-1), length
