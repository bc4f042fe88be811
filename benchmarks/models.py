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


_IMAGE: Axes = {"pixel_values": ["batch", None, None, None]}
_TEXT: Axes = {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"]}

MODELS: dict[str, tuple[Callable[[], Example], Axes]] = {
    "resnet50": (resnet50, _IMAGE),
    "bert_base": (bert_base, _TEXT),
    "convnext_tiny": (convnext_tiny, _IMAGE),
    "llama_100m": (llama_100m, _TEXT),
    "wav2vec2_base": (wav2vec2_base, {"input_values": ["batch", "time"]}),
}
"""Name -> factory, and the axes that stay dynamic."""


def _model(name: str, **sizes: Any) -> nn.Module:
    """The model in eval mode; batchnorm statistics are random, since 0 and 1 would hide a wrong rewrite."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model: nn.Module = kind(kind.config_class(**sizes))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
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
