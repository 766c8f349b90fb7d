"""Networks of other libraries for the support table: a name, and a function that builds a module and its samples.

torchvision's, timm's and transformers' networks are as small as their constructors allow, so that every measure runs in
seconds; what they are built of is what their large forms are built of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CLASSES", "Build", "networks"]

Build = Callable[[], tuple[nn.Module, Tensor]]
SAMPLES, CLASSES = 6, 5


def networks() -> dict[str, Build]:
    """All networks by name, "library/network"; libraries that are not installed are left out."""
    available: dict[str, Build] = {}
    for library in (_torchvision, _timm, _transformers):
        try:
            available |= library()
        except ImportError as error:
            print(f"left out: {error}")
    return available


def _images(build: Callable[[], nn.Module], size: int = 32) -> Build:
    return lambda: (build(), torch.randn(SAMPLES, 3, size, size))


class _Tokens(nn.Module):
    """A classifier of token ids, which come as numbers."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.long()).logits


class _Pixels(nn.Module):
    """The logits of a classifier of images that returns several things."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


# -- torchvision ------------------------------------------------------------------------------------------------------


def _import_torchvision() -> Any:
    """torchvision, also beside a torch that its build does not fit: what it misses is declared, without a body."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for signature in (f"nms{boxes}", f"qnms{boxes}"):
        if not hasattr(torch.ops.torchvision, signature.partition("(")[0]):
            library.define(signature)
    import torchvision

    return torchvision


def _torchvision() -> dict[str, Build]:
    models = _import_torchvision().models
    few = {"num_classes": CLASSES, "weights": None}

    def named(name: str, **params: Any) -> Callable[[], nn.Module]:
        return lambda: getattr(models, name)(**few, **params)

    vit = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    window = {"patch_size": [2, 2], "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
    v2 = {"block": models.swin_transformer.SwinTransformerBlockV2} | {
        "downsample_layer": models.swin_transformer.PatchMergingV2
    }
    dense = {"growth_rate": 8, "block_config": (2, 2), "num_init_features": 16}
    grid = {"input_size": (32, 32), "stem_channels": 8, "partition_size": 4, "block_channels": [8, 16]}
    grid |= {"block_layers": [1, 1], "head_dim": 4, "stochastic_depth_prob": 0.1}
    inception = {"init_weights": False, "aux_logits": False}
    builds = {
        "squeezenet": _images(named("squeezenet1_1")),
        "resnext": _images(lambda: models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], CLASSES, False, 4, 8)),
        "densenet": _images(lambda: models.DenseNet(**dense, num_classes=CLASSES)),
        "googlenet": _images(named("googlenet", **inception)),
        "mobilenet_v2": _images(lambda: models.MobileNetV2(CLASSES, 0.25)),
        "mobilenet_v3": _images(named("mobilenet_v3_small", width_mult=0.25)),
        "shufflenet_v2": _images(named("shufflenet_v2_x0_5")),
        "mnasnet": _images(lambda: models.MNASNet(0.25, CLASSES)),
        "efficientnet": _images(named("efficientnet_b0")),
        "regnet": _images(named("regnet_y_400mf")),
        "convnext": _images(lambda: models.ConvNeXt(_convnext_blocks(models), num_classes=CLASSES)),
        "vit": _images(lambda: models.VisionTransformer(**vit, num_classes=CLASSES)),
        "swin": _images(lambda: models.SwinTransformer(**window, num_classes=CLASSES)),
        "swin_v2": _images(lambda: models.SwinTransformer(**window, **v2, num_classes=CLASSES)),
        "maxvit": _images(lambda: models.MaxVit(**grid, num_classes=CLASSES)),
    }
    return {f"torchvision/{name}": build for name, build in builds.items()}


def _convnext_blocks(models: Any) -> list[Any]:
    block = models.convnext.CNBlockConfig
    return [block(8, 16, 1), block(16, 32, 1), block(32, None, 1)]


# -- timm -------------------------------------------------------------------------------------------------------------


def _timm() -> dict[str, Build]:
    _import_torchvision()
    import timm

    def built(name: str) -> Build:
        size = {"img_size": 64} if "vit" in name or "coatnet" in name else {}  # others take images of any size
        return _images(lambda: timm.create_model(name, num_classes=CLASSES, **size), 64)

    return {f"timm/{name}": built(name) for name in timm.list_models("test_*")}


# -- transformers -----------------------------------------------------------------------------------------------------


def _transformers() -> dict[str, Build]:
    import transformers as hf

    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    common = {"num_labels": CLASSES}
    text = {"vocab_size": 50, "max_position_embeddings": 16, "pad_token_id": 0}
    image = {"image_size": 32, "patch_size": 8, "num_channels": 3}
    short = {"vocab_size": 50, "pad_token_id": 0}

    def ids(model: str, config: Any) -> Build:
        return lambda: (_Tokens(getattr(hf, model)(config)), torch.randint(1, 50, (SAMPLES, 8)).float())

    def pixels(model: str, config: Any) -> Build:
        return lambda: (_Pixels(getattr(hf, model)(config)), torch.randn(SAMPLES, 3, 32, 32))

    distil = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    gpt2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    swin = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2, "patch_size": 4, "image_size": 32}
    stages = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    builds = {
        "bert": ids("BertForSequenceClassification", hf.BertConfig(**size, **text, **common)),
        "roberta": ids("RobertaForSequenceClassification", hf.RobertaConfig(**size, **text, **common)),
        "distilbert": ids("DistilBertForSequenceClassification", hf.DistilBertConfig(**distil, **text, **common)),
        "gpt2": ids("GPT2ForSequenceClassification", hf.GPT2Config(**gpt2, **short, **common)),
        "llama": ids("LlamaForSequenceClassification", hf.LlamaConfig(**size, **text, **common)),
        "vit": pixels("ViTForImageClassification", hf.ViTConfig(**size, **image, **common)),
        "deit": pixels("DeiTForImageClassification", hf.DeiTConfig(**size, **image, **common)),
        "swin": pixels("SwinForImageClassification", hf.SwinConfig(**swin, **common)),
        "convnext": pixels(
            "ConvNextForImageClassification",
            hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, **common),
        ),
        "resnet": pixels("ResNetForImageClassification", hf.ResNetConfig(**stages, layer_type="basic", **common)),
    }
    return {f"transformers/{name}": build for name, build in builds.items()}
