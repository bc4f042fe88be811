"""Real architectures with random weights and small sizes: what the whole road is tested on.

Nothing is downloaded: every model is built from its library's configuration, or from plain torch layers, with
a fixed seed. Models of `transformers` are used as they are, with keyword arguments and ModelOutput results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]
Axes = dict[str, list[str | None]]
Sizes = dict[str, Any]
BATCH, LENGTH = 2, 12
BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Zoo:
    """One architecture: how to build it, how to call it, and what must stay dynamic.

    ``inputs(batch, length)`` gives the keyword arguments of ``forward``; ``dynamic`` is the argument of
    ``fxexport.compile``; ``outputs`` are names the artifact must have.
    """

    name: str
    kind: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]
    dynamic: Axes
    outputs: tuple[str, ...]

    @property
    def length(self) -> bool:
        """Whether a dimension besides the batch is dynamic."""
        return any(name not in (None, "batch") for axes in self.dynamic.values() for name in axes)

    def build(self) -> nn.Module:
        """The model in eval mode, the same weights each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return unsettle(self.make()).eval()

    def example(self, batch: int = BATCH, length: int = LENGTH, seed: int = 0) -> Inputs:
        """Keyword arguments of the given sizes, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.inputs(batch, length)


def unsettle(model: nn.Module, seed: int = 1) -> nn.Module:
    """Random batchnorm statistics, and noise on every tensor that was initialised to one value (zero biases,
    unit gains, zero heads): a rewrite that gets these wrong would not show on them as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BATCHNORMS) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.copy_(0.2 * torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
        for parameter in model.parameters():
            flat = parameter.flatten()
            if parameter.is_floating_point() and flat.numel() > 1 and bool((flat == flat[0]).all()):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


# ---------------------------------------------------------------- inputs


def image(name: str, size: int, channels: int = 3) -> Callable[[int, int], Inputs]:
    """A square image."""
    return lambda batch, length: {name: torch.randn(batch, channels, size, size)}


def tokens(vocabulary: int = 100, mask: bool = True) -> Callable[[int, int], Inputs]:
    """Token ids, and a mask in which the last row is padded."""

    def make(batch: int, length: int) -> Inputs:
        ids = {"input_ids": torch.randint(5, vocabulary, (batch, length))}
        if mask:
            ids["attention_mask"] = torch.ones(batch, length, dtype=torch.int64)
            ids["attention_mask"][-1, length - length // 4 :] = 0
        return ids

    return make


TEXT: Axes = {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"]}
PIXELS: Axes = {"pixel_values": ["batch", None, None, None]}


# ---------------------------------------------------------------- plain torch


class Tagger(nn.Module):
    """Embedding, two-layer bidirectional LSTM, a tag for each token."""

    def __init__(self, vocabulary: int = 100, width: int = 24, tags: int = 7) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)
        self.head = nn.Linear(2 * width, tags)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        features, state = self.lstm(self.embedding(input_ids))
        return self.head(features).log_softmax(-1), state


class Recommender(nn.Module):
    """Pairwise products of embedded categories and dense features, as in DLRM (arXiv:1906.00091)."""

    def __init__(self, sizes: tuple[int, ...] = (40, 30, 20, 10), dense: int = 7, width: int = 16) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(size, width, mode="sum") for size in sizes)
        self.bottom = nn.Sequential(nn.Linear(dense, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, width))
        pairs = (len(sizes) + 1) * len(sizes) // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))
        count = len(sizes) + 1
        self.register_buffer("pairs", torch.tril_indices(count, count, -1), persistent=False)
        self.pairs: Tensor

    def forward(self, dense: Tensor, categories: Tensor) -> dict[str, Tensor]:
        x = self.bottom(dense)
        rows = [table(categories[:, i : i + 1]) for i, table in enumerate(self.tables)]
        features = torch.stack([x, *rows], 1)
        products = torch.bmm(features, features.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return {"click": self.top(torch.cat([x, products], 1)).sigmoid().squeeze(1)}


class UNet(nn.Module):
    """Two levels down by strided convolutions, up by transposed ones, with skips; batchnorm everywhere."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.stem = self._block(nn.Conv2d(1, width, 3, padding=1), width)
        self.down1 = self._block(nn.Conv2d(width, 2 * width, 3, 2, padding=1), 2 * width)
        self.down2 = self._block(nn.Conv2d(2 * width, 4 * width, 3, 2, padding=1, groups=2), 4 * width)
        self.up2 = self._block(nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), 2 * width)
        self.up1 = self._block(nn.ConvTranspose2d(4 * width, width, 2, 2, groups=2), width)
        self.head = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(2 * width, classes, 1))

    @staticmethod
    def _block(layer: nn.Module, width: int) -> nn.Sequential:
        return nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU(inplace=True))

    def forward(self, scan: Tensor) -> Tensor:
        a = self.stem(scan)
        b = self.down1(a)
        c = torch.cat([self.up2(self.down2(b)), b], 1)
        classes: Tensor = self.head(torch.cat([self.up1(c), a], 1))
        return classes


# ---------------------------------------------------------------- transformers


def hf(model: str, **sizes: Any) -> Callable[[], nn.Module]:
    """``model`` of transformers with its configuration class called with ``sizes``."""

    def make() -> nn.Module:
        import transformers

        cls = getattr(transformers, model)
        made: nn.Module = cls(cls.config_class(**sizes))
        return made

    return make


def detr() -> nn.Module:
    """DETR over a small ResNet backbone of the same library."""
    import transformers

    sizes = dict(RESNET, layer_type="basic", out_features=["stage4"])
    backbone = transformers.ResNetConfig(**sizes)
    return hf("DetrForObjectDetection", backbone_config=backbone, **DETR)()


def t5_inputs(batch: int, length: int) -> Inputs:
    """Encoder tokens with a mask, and decoder tokens."""
    return {**tokens()(batch, length), "decoder_input_ids": torch.randint(5, 100, (batch, 5))}


def whisper_inputs(batch: int, length: int) -> Inputs:
    """A spectrogram of the fixed size Whisper wants, and decoder tokens."""
    spectrogram = torch.randn(batch, 16, 40)
    return {"input_features": spectrogram, "decoder_input_ids": torch.randint(5, 100, (batch, length))}


def clip_inputs(batch: int, length: int) -> Inputs:
    """Texts and as many images."""
    return {**tokens()(batch, length), "pixel_values": torch.randn(batch, 3, 32, 32)}


def sound(batch: int, length: int) -> Inputs:
    """A waveform, 50 samples for each unit of length."""
    return {"input_values": torch.randn(batch, 50 * length)}


def click_inputs(batch: int, length: int) -> Inputs:
    """Dense features and four categories."""
    return {"dense": torch.randn(batch, 7), "categories": torch.randint(0, 10, (batch, 4))}


BERT: Sizes = dict(
    vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
)  # fmt: skip
DECODER: Sizes = dict(BERT, num_key_value_heads=2, max_position_embeddings=64, use_cache=False)
MIXTRAL: Sizes = dict(DECODER, num_local_experts=4)
DEBERTA: Sizes = dict(
    BERT, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8, max_relative_positions=-1,
    norm_rel_ebd="layer_norm", share_att_key=True, max_position_embeddings=64,
)  # fmt: skip
GPT2: Sizes = dict(
    vocab_size=100, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, use_cache=False,
)  # fmt: skip
MAMBA: Sizes = dict(vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=4, use_cache=False)
T5: Sizes = dict(
    vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0,
    use_cache=False,
)  # fmt: skip
RESNET: Sizes = dict(embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 2, 1, 1])
EFFICIENT: Sizes = dict(
    image_size=32, hidden_dim=1280, width_coefficient=1.0, depth_coefficient=1.0, kernel_sizes=[3, 3, 5],
    in_channels=[32, 8, 16], out_channels=[8, 16, 24], depthwise_padding=[], strides=[1, 2, 2],
    num_block_repeats=[1, 2, 1], expand_ratios=[1, 4, 4],
)  # fmt: skip
CONVNEXT: Sizes = dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
SWIN: Sizes = dict(image_size=32, patch_size=2, embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4)
DETR: Sizes = dict(
    use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=32, num_queries=6,
    encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=64,
    decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64, num_labels=4,
)  # fmt: skip
WHISPER: Sizes = dict(
    vocab_size=100, num_mel_bins=16, d_model=32, max_source_positions=20, max_target_positions=64,
    encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64,
    decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, use_cache=False,
)  # fmt: skip
WAV2VEC2: Sizes = dict(
    vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    conv_dim=(16, 16, 16), conv_stride=(5, 2, 2), conv_kernel=(10, 3, 3),
    num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
)  # fmt: skip
CLIP: Sizes = dict(
    text_config=dict(BERT, max_position_embeddings=32, eos_token_id=99, bos_token_id=98, pad_token_id=1),
    vision_config=dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8,
    ),
    projection_dim=16,
)  # fmt: skip


# ---------------------------------------------------------------- the list


def vision(name: str, kind: str, make: Callable[[], nn.Module], *outputs: str, size: int = 32) -> Zoo:
    """A model of square colour images."""
    return Zoo(name, kind, make, image("pixel_values", size), PIXELS, outputs)


def text(name: str, kind: str, make: Callable[[], nn.Module], *outputs: str) -> Zoo:
    """A model of token ids with a mask."""
    return Zoo(name, kind, make, tokens(), TEXT, outputs)


CNN, POOLED = "convolutional", ("last_hidden_state", "pooler_output")
ROWS: list[str | None] = ["batch", None]

ENTRIES = (
    vision("resnet", CNN, hf("ResNetForImageClassification", **RESNET), "logits"),
    vision("efficientnet", CNN, hf("EfficientNetModel", **EFFICIENT), *POOLED),
    vision("convnext", CNN, hf("ConvNextModel", **CONVNEXT), *POOLED),
    Zoo("unet", CNN, UNet, image("scan", 16, 1), {"scan": ["batch", None, None, None]}, ("output",)),
    vision("swin", "vision transformer", hf("SwinModel", **SWIN), *POOLED),
    vision("detr", "detection", detr, "logits", "pred_boxes", size=64),
    text("bert", "encoder", hf("BertModel", **BERT), *POOLED),
    text("deberta", "encoder", hf("DebertaV2Model", **DEBERTA), "last_hidden_state"),
    text("gpt2", "decoder", hf("GPT2LMHeadModel", **GPT2), "logits"),
    text("llama", "decoder", hf("LlamaForCausalLM", **DECODER), "logits"),
    text("mixtral", "mixture of experts", hf("MixtralForCausalLM", **MIXTRAL), "logits"),
    Zoo("mamba", "state space", hf("MambaForCausalLM", **MAMBA), tokens(mask=False), {"input_ids": ROWS},
        ("logits",)),
    Zoo("t5", "encoder-decoder", hf("T5ForConditionalGeneration", **T5), t5_inputs,
        {**TEXT, "decoder_input_ids": ROWS}, ("logits", "encoder_last_hidden_state")),
    Zoo("whisper", "speech", hf("WhisperForConditionalGeneration", **WHISPER), whisper_inputs,
        {"input_features": ["batch", None, None], "decoder_input_ids": ["batch", "length"]}, ("logits",)),
    Zoo("wav2vec2", "speech", hf("Wav2Vec2ForCTC", **WAV2VEC2), sound, {"input_values": ["batch", "time"]},
        ("logits",)),
    Zoo("clip", "multimodal", hf("CLIPModel", **CLIP), clip_inputs, {**TEXT, **PIXELS},
        ("logits_per_image", "text_embeds", "image_embeds")),
    Zoo("tagger", "recurrent", Tagger, tokens(mask=False), {"input_ids": ROWS}, ("output_0", "output_1_0")),
    Zoo("recommender", "recommendation", Recommender, click_inputs, {"dense": ROWS, "categories": ROWS},
        ("click",)),
)  # fmt: skip
ZOO = {entry.name: entry for entry in ENTRIES}
