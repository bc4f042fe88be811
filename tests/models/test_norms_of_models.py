"""Every normalization module of real models is one operator, in float32 and in half precision."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

import fxexport
from fxexport.rewrite import PassManager, resolve

aten = torch.ops.aten
PASSES = "remove-noops,replace-rms-norm,replace-instance-norm,replace-layer-norm,replace-group-norm,fold-norm-affine"
DECODER = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 32, "use_cache": False},
}
T5 = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
MODELS = {
    **{name: (f"{name}Model", f"{name}Config", DECODER) for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma")},
    "T5": ("T5EncoderModel", "T5Config", T5),
    "ConvNext": ("ConvNextModel", "ConvNextConfig", {"hidden_sizes": [8] * 4, "depths": [1] * 4}),
}


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    model, config, options = MODELS[name]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    image = name == "ConvNext"
    return made, torch.randn(2, 3, 32, 32) if image else torch.randint(0, 32, (2, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_one_operator_for_each_module(name: str, dtype: torch.dtype) -> None:
    model, x = build(name)
    model.to(dtype)
    modules = sum("Norm" in type(module).__name__ for module in model.modules())
    example = (x.to(dtype) if x.is_floating_point() else x,)
    captured = fxexport.capture(model, example)
    program, records = PassManager(resolve(PASSES)).run(captured)
    norms = list(program.find(aten.rms_norm.default, aten.layer_norm.default))
    assert len(norms) == modules
    assert not any(miss for record in records if record.name.startswith("replace") for miss in record.near_misses)
    spelled = (aten.rsqrt.default, aten.var.correction, aten.var.dim)
    assert not list(program.find(*spelled))
    if name != "ConvNext":
        assert {node.meta["val"].dtype for node in norms} == {torch.float32}
    torch.testing.assert_close(program.run(*example)[0], captured.run(*example)[0])
