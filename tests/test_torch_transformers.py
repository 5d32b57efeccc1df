"""Hugging Face's models as they are, with random weights from their configurations: the same outputs and gradients."""

import copy

import pytest

from tests.support import require

torch = require("torch")
transformers = require("transformers")
nn = torch.nn

from fastconv.backends import torch as fct  # noqa: E402  # needs PyTorch

# name -> the model's and its configuration's class, without "Model" and "Config"; the configuration; the input's shape
TRANSFORMER = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
SPEECH = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
MODELS = {
    "ResNet, basic blocks": ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type":
                                        "basic"}, (2, 3, 40, 40)),
    "ResNet, bottlenecks": ("ResNet", {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2]},
                            (1, 3, 40, 40)),
    "ConvNeXt": ("ConvNext", TRANSFORMER, (2, 3, 32, 32)),
    "MobileNetV2, padded as in TensorFlow": ("MobileNetV2", {"depth_multiplier": 0.35}, (1, 3, 64, 64)),
    "MobileNetV2": ("MobileNetV2", {"depth_multiplier": 0.35, "tf_padding": False}, (1, 3, 64, 64)),
    "SegFormer": ("Segformer", {**TRANSFORMER, "num_attention_heads": [1, 1, 2, 2]}, (1, 3, 64, 64)),
    "Whisper's encoder": ("Whisper", {
        "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 8,
        "max_source_positions": 20, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16,
        "vocab_size": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    }, (2, 8, 40)),
    "wav2vec2": ("Wav2Vec2", {**SPEECH, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16,
                              "num_conv_pos_embedding_groups": 2}, (2, 1600)),
}  # fmt: skip


def make(name):
    kind, parameters, shape = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**parameters)).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):  # as after training, so that a fold that is wrong, or missing, shows
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
    return (model.encoder if kind == "Whisper" else model), torch.randn(shape)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients(name):
    theirs, x = make(name)
    ours = fct.convert(copy.deepcopy(theirs))
    with torch.no_grad():
        expected = theirs(x)
        with fct.use() as used:
            inside = theirs(x)
        converted = ours(x)
    assert type(converted) is type(expected)
    for y in (inside, converted):
        assert off(y[0], expected[0]) < 1e-5
    assert used.calls
    assert not used.fallbacks
    gradients, weights = [], torch.randn_like(expected[0])
    for model in (ours, theirs):
        given = x.clone().requires_grad_()
        parameters = [p for p in model.parameters() if p.requires_grad]
        loss = (model(given)[0] * weights).sum()
        gradients.append(torch.autograd.grad(loss, [given, *parameters], allow_unused=True))
    largest = max(g.abs().max() for g in gradients[1][1:] if g is not None)
    assert off(gradients[0][0], gradients[1][0]) < 1e-4
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() <= 1e-5 * largest
    lines = str(fct.explain(ours)).splitlines()
    assert not [line for line in lines if " PyTorch" in line and "computed" not in line and "BatchNorm" not in line]


def off(a, b):
    return float((a - b).abs().max() / b.abs().max())
