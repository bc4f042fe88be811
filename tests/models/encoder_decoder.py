"""Encoder-decoder models as subnets: T5 of transformers with its key/value cache as a state, and a chain without a loop.

``Translator`` wraps a T5 built from its configuration. Its encoder also gives the keys and values of the cross-attention,
which are made once; its decoder takes one token, and the keys and values so far: none at first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fxexport

START, END, PAD = 0, 7, 0
Tensors = tuple[Tensor, ...]


def t5(seed: int = 4) -> Any:
    """A T5 with tied embeddings and weights that are livelier than they are drawn, in eval mode."""
    import transformers

    config = transformers.T5Config(
        vocab_size=20, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.1,
        decoder_start_token_id=START, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.T5ForConditionalGeneration(config)
        for name, weight in model.named_parameters():
            if name.endswith((".v.weight", ".o.weight", ".wi.weight")):
                weight.mul_(5.0)
    return model.eval()


def whisper(seed: int = 0) -> Any:
    """A Whisper of the same kind; its sound has a fixed length."""
    import transformers

    config = transformers.WhisperConfig(
        vocab_size=20, num_mel_bins=16, d_model=32, max_source_positions=20, max_target_positions=64,
        encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64, decoder_layers=2, decoder_attention_heads=4,
        decoder_ffn_dim=64, pad_token_id=PAD, bos_token_id=1, eos_token_id=END, decoder_start_token_id=START,
        begin_suppress_tokens=None, init_std=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.WhisperForConditionalGeneration(config).eval()


def _keys_and_values(hidden: Tensor, heads: int, projections: list[nn.Module]) -> Tensors:
    """Keys and values [batch, heads, time, size] of a cross-attention over ``hidden`` [batch, time, width]."""
    rows, time, _ = hidden.shape
    return tuple(project(hidden).view(rows, time, heads, -1).transpose(1, 2) for project in projections)


class TranslatorEncoder(nn.Module):
    """T5's encoder, and the keys and values that the decoder's cross-attention makes of it: two for each layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.stack, self.heads = model.encoder, model.config.num_heads
        self.attention = nn.ModuleList(block.layer[1].EncDecAttention for block in model.decoder.block)

    input_types = {  # noqa: RUF012 - hooks may be plain attributes
        "input_ids": fxexport.Tensor("batch", "time", dtype=torch.int64),
        "attention_mask": fxexport.Tensor("batch", "time", dtype=torch.int64),
    }

    @property
    def output_types(self) -> dict[str, Any]:
        return {"cross": (fxexport.Tensor("batch", "channel", "time", "dimension"),) * (2 * len(self.attention))}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensors]:
        hidden = self.stack(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        projections = [project for layer in self.attention for project in (layer.k, layer.v)]
        return (_keys_and_values(hidden, self.heads, projections),)


class ListenerEncoder(nn.Module):
    """The same of Whisper."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.stack, self.heads = model.model.encoder, model.config.decoder_attention_heads
        self.attention = nn.ModuleList(layer.encoder_attn for layer in model.model.decoder.layers)

    input_types = {"input_features": fxexport.Tensor("batch", "channel", "feature")}  # noqa: RUF012

    def forward(self, input_features: Tensor) -> dict[str, Tensors]:
        hidden = self.stack(input_features).last_hidden_state
        projections = [project for layer in self.attention for project in (layer.k_proj, layer.v_proj)]
        return {"cross": _keys_and_values(hidden, self.heads, projections)}


class TranslatorDecoder(nn.Module):
    """One step of T5's decoder: the scores of the next token, and the keys and values with this step's."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.stack, self.head = model.decoder, model.lm_head
        self.scale = model.config.d_model**-0.5

    @property
    def input_types(self) -> dict[str, Any]:
        count = 2 * len(self.stack.block)
        return {
            "token": fxexport.Tensor("batch", "one", dtype=torch.int64),
            "attention_mask": fxexport.Tensor("batch", "time", dtype=torch.int64),
            "cross": (fxexport.Tensor("batch", "channel", "time", "dimension"),) * count,
            "past": (fxexport.Tensor("batch", "channel", "past", "dimension"),) * count,
        }

    @property
    def output_types(self) -> dict[str, Any]:
        count = 2 * len(self.stack.block)
        return {
            "logits": fxexport.Tensor("batch", "one", "dimension"),
            "past": (fxexport.Tensor("batch", "channel", "any", "dimension"),) * count,
        }

    def forward(self, token: Tensor, attention_mask: Tensor, cross: Tensors, past: Tensors) -> tuple[Tensor, Tensors]:
        hidden, after = _decode(self.stack, token, cross, past, encoder_attention_mask=attention_mask)
        return self.head(hidden * self.scale), after


class ListenerDecoder(nn.Module):
    """The same of Whisper, whose positions are counted from the length of what is cached."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.stack, self.head = model.model.decoder, model.proj_out

    @property
    def input_types(self) -> dict[str, Any]:
        count = 2 * len(self.stack.layers)
        return {
            "token": fxexport.Tensor("batch", 1, dtype=torch.int64),
            "cross": (fxexport.Tensor("batch", "channel", "feature", "dimension"),) * count,
            "past": (fxexport.Tensor("batch", "channel", "past", "dimension"),) * count,
        }

    def forward(self, token: Tensor, cross: Tensors, past: Tensors) -> dict[str, Any]:
        hidden, after = _decode(self.stack, token, cross, past)
        return {"logits": self.head(hidden), "past": after}


def _decode(stack: nn.Module, token: Tensor, cross: Tensors, past: Tensors, **masks: Tensor) -> tuple[Tensor, Tensors]:
    """One step of a decoder of the library, with its own cache made of ``past`` and ``cross``."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    cache = EncoderDecoderCache(DynamicCache(_pairs(past)), DynamicCache(_pairs(cross)))
    result = stack(
        input_ids=token,
        encoder_hidden_states=cross[0].transpose(1, 2).flatten(2),  # only its shape is used: the cache has the rest
        past_key_values=cache,
        use_cache=True,
        **masks,
    )
    after = tuple(kind for layer in cache.self_attention_cache.layers for kind in (layer.keys, layer.values))
    return result.last_hidden_state, after


def _pairs(tensors: Tensors) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


class Translator(nn.Module):
    """The two parts of a T5, with hooks."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = TranslatorEncoder(model), TranslatorDecoder(model)
        self.config = model.config

    def list_export_subnets(self) -> list[str]:
        return ["encoder", "decoder"]

    def no_past(self, rows: int) -> Tensors:
        """Keys and values of length 0."""
        empty = torch.zeros(rows, self.config.num_heads, 0, self.config.d_kv)
        return tuple(empty.clone() for _ in range(2 * self.config.num_layers))


def translate(model: Translator, input_ids: Tensor, attention_mask: Tensor, most: int = 8) -> Tensor:
    """Greedy decoding [B, steps]: rows that found the end give padding from then on; stops when all did."""
    (cross,) = model.encoder(input_ids, attention_mask)
    past, token = model.no_past(len(input_ids)), torch.full_like(input_ids[:, :1], START)
    going, found = torch.ones_like(token, dtype=torch.bool), []
    for _ in range(most):
        logits, past = model.decoder(token, attention_mask, cross, past)
        token = torch.where(going, logits.argmax(-1), PAD)
        found.append(token)
        going = going & (token != END)
        if not bool(going.any()):
            break
    return torch.cat(found, 1)


class Listener(Translator):
    """The two parts of a Whisper."""

    def __init__(self, model: Any) -> None:
        nn.Module.__init__(self)
        self.encoder, self.decoder = ListenerEncoder(model), ListenerDecoder(model)
        self.config = model.config

    def no_past(self, rows: int) -> Tensors:
        heads, width = self.config.decoder_attention_heads, self.config.d_model
        return (torch.zeros(rows, heads, 0, width // heads),) * (2 * self.config.decoder_layers)


def listen(model: Listener, input_features: Tensor, most: int = 8) -> Tensor:
    """Greedy decoding [B, steps] as ``translate``, each row to the last step."""
    cross = model.encoder(input_features)["cross"]
    token, found = torch.full((len(input_features), 1), START), []
    past = model.no_past(len(input_features))
    for _ in range(most):
        result = model.decoder(token, cross, past)
        token, past = result["logits"].argmax(-1), result["past"]
        found.append(token)
    return torch.cat(found, 1)


def sentences(*lengths: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids and their mask; rows shorter than the longest are padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(8, 20, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


# ---------------------------------------------------------------- a chain


class Reader(nn.Module):
    """Embeds tokens and mixes neighbours; its one argument is a dict."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table, self.mix = table, nn.Conv1d(table.embedding_dim, table.embedding_dim, 3, padding=1)

    input_types = {  # noqa: RUF012
        "tokens": fxexport.Tensor("batch", "time", dtype=torch.int64),
        "mask": fxexport.Tensor("batch", "time", dtype=torch.bool),
    }

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.table(batch["tokens"]) * batch["mask"][:, :, None]
        return {"hidden": self.mix(x.transpose(1, 2)), "lengths": batch["mask"].sum(1)}


class Writer(nn.Module):
    """Scores of five classes; embeds a prompt with the reader's table. Arguments by keyword only."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table, self.head = table, nn.Linear(table.embedding_dim, 5)

    input_types = {  # noqa: RUF012
        "hidden": fxexport.Tensor("batch", "time", "dimension"),
        "lengths": fxexport.Tensor("batch", dtype=torch.int64),
        "prompt": fxexport.Tensor("batch", dtype=torch.int64),
    }

    def forward(self, *, hidden: Tensor, lengths: Tensor, prompt: Tensor) -> dict[str, Tensor]:
        scores = self.head((hidden + self.table(prompt)[:, None]).relu())
        own = torch.arange(hidden.size(1)) < lengths[:, None]
        return {"scores": scores.masked_fill(~own[:, :, None], 0.0), "best": scores.argmax(-1)}


class Chain(nn.Module):
    """Reader and writer with one table of weights, called by ``forward``, by keyword only."""

    TOKENS, WIDTH = 600, 32

    def __init__(self) -> None:
        super().__init__()
        table = nn.Embedding(self.TOKENS, self.WIDTH)
        self.reader, self.writer = Reader(table), Writer(table)

    def list_export_subnets(self) -> list[str]:
        return ["reader", "writer"]

    def forward(self, *, tokens: Tensor, mask: Tensor, prompt: Tensor) -> dict[str, Tensor]:
        read = self.reader({"tokens": tokens, "mask": mask})
        hidden = read["hidden"].transpose(1, 2)
        written: dict[str, Tensor] = self.writer(hidden=hidden, lengths=read["lengths"], prompt=prompt)
        return written

    @classmethod
    def inputs(cls, *lengths: int, seed: int = 0) -> dict[str, Tensor]:
        """Keyword arguments for rows of those lengths."""
        generator = torch.Generator().manual_seed(seed)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        tokens = torch.randint(0, cls.TOKENS, mask.shape, generator=generator)
        return {"tokens": tokens, "mask": mask, "prompt": torch.arange(len(lengths))}
