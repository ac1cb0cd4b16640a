"""One line of the table: which network, method, target and seed, and the setting that all lines share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edp_fx
from edp_fx.compressor import Budget, Method, Schedule
from edp_fx.data import ArrayDataset, make_loader
from edp_fx.data.idx import read_fashion_mnist
from edp_fx.train import Recipe, Teacher
from examples import networks

SIDE, CLASSES, BATCH = 28, 10, 128
DATA_SEED = 0


@dataclass(frozen=True)
class Task:
    """What one line is about; ``target`` is the share of the dense network's MACs."""

    network: str
    method: str
    target: float
    seed: int


@dataclass(frozen=True)
class Setting:
    """How long: epochs in all, for every method, and how many images of train and test (None: all)."""

    epochs: int = 10
    train_images: int | None = None
    test_images: int | None = None


def mobilenetv2() -> nn.Module:
    """MobileNetV2 whose stem keeps the resolution, as usual on images this small."""
    model = timm.create_model("mobilenetv2_050", num_classes=CLASSES)
    model.conv_stem.stride = (1, 1)
    return model


def narrow_vgg16() -> nn.Module:
    """VGG-16-BN at a quarter of its width."""
    plan = [entry if isinstance(entry, str) else entry // 4 for entry in networks.VGG16]
    return networks.CifarVGG(plan, CLASSES)


def resnet(blocks: int, width: int) -> nn.Module:
    """ResNet of 6n+2 layers, its 1x1 convolutions of stride 2 written as subsampling and one of stride 1: the same
    function.

    torch 2.14.1 on a processor without AVX-512 writes past its memory in the backward pass of a float32 1x1
    convolution of stride 2 from 7 to 28 channels, channels innermost.
    """
    model = networks.CifarResNet(blocks, CLASSES, width)
    for block in model.modules():
        if isinstance(block, networks.BasicBlock) and isinstance(block.shortcut, nn.Sequential):
            convolution = block.shortcut[0]
            stride, convolution.stride = convolution.stride, (1, 1)
            block.shortcut = nn.Sequential(nn.MaxPool2d(1, stride), *block.shortcut)
    return model


NETWORKS = {
    "resnet20": lambda: resnet(3, width=16),
    "resnet56": lambda: resnet(9, width=8),
    "vgg16_bn": narrow_vgg16,
    "densenet22": lambda: networks.CifarDenseNet(22, 6, CLASSES),
    "mobilenetv2": mobilenetv2,
}
# Channels go in blocks, since they are computed in blocks: of 16 in bfloat16 on a processor, where layers of 12 take
# longer than of 16, of 8 in float16 by TensorRT. In blocks of 4 where many layers have no more than 8
ALIGN = {name: 4 if name in ("resnet56", "densenet22") else Method().align for name in NETWORKS}
DESCRIPTIONS = {
    "resnet20": "width 16",
    "resnet56": "width 8",
    "vgg16_bn": "a quarter of the width",
    "densenet22": "DenseNet-40 at depth 22, growth 6",
    "mobilenetv2": "width 0.5, stem of stride 1",
}


@dataclass(frozen=True)
class Images:
    """Fashion-MNIST: normalised, train shifted by up to two pixels and mirrored, test as it is."""

    train: ArrayDataset
    test: ArrayDataset

    @classmethod
    def load(cls, setting: Setting) -> Images:
        train, test, _ = read_fashion_mnist()
        mean, std = float(train[0].mean()) / 255, float(train[0].std()) / 255

        def part(split: Any, count: int | None, **augmentation: Any) -> ArrayDataset:
            images = torch.from_numpy(split[0][:count]).unsqueeze(1) / 255
            return ArrayDataset(images, torch.from_numpy(split[1][:count]), mean=(mean,), std=(std,), **augmentation)

        return cls(
            part(train, setting.train_images, shift=2, flip=True, seed=DATA_SEED), part(test, setting.test_images)
        )


class Trial:
    """What a method is given: a fresh network, the recipe, the cost not to exceed, the images, and whoever teaches."""

    teacher: Teacher | None = None

    def __init__(self, task: Task, setting: Setting, images: Images) -> None:
        self.task = task
        self.recipe = Recipe(
            epochs=setting.epochs,
            optimizer="sgd",
            lr=0.15,
            weight_decay=5e-4,
            seed=task.seed,
            mixed_precision=precision(),
        )
        self.train = make_loader(images.train, BATCH, train=True, seed=task.seed)
        self.test = make_loader(images.test, 500, train=False)
        self.example = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        self.dense = edp_fx.measure(self.network(), self.example)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.recipe.epochs * len(self.train)

    @property
    def method(self) -> Method:
        """The default, in blocks that fit the network; what a decision removed is gone before the one after the next,
        on a GPU, too."""
        budget, align = Budget(macs=self.task.target), ALIGN[self.task.network]
        return Method(budget=budget, align=align, removals=Method().decisions)

    @property
    def schedule(self) -> Schedule:
        """When whoever removes step by step decides."""
        return self.method.schedule(self.steps)

    @property
    def goal(self) -> float:
        """MACs that the result may have."""
        return self.task.target * self.dense.macs

    def network(self) -> nn.Module:
        """The dense network with this seed's weights."""
        torch.manual_seed(self.task.seed)
        return NETWORKS[self.task.network]()

    def loss(self, outputs: Any, labels: Tensor) -> Tensor:
        """What is minimised: cross entropy."""
        return F.cross_entropy(outputs, labels, label_smoothing=self.recipe.label_smoothing)

    def is_head(self, layer: nn.Module) -> bool:
        """Whether a layer gives the classes: its outputs stay."""
        return isinstance(layer, nn.Linear) and layer.out_features == CLASSES

    def macs(self, model: nn.Module) -> float:
        """Multiply-accumulates of one image."""
        return edp_fx.measure(model, self.example).macs


def precision() -> str:
    """``bf16`` where the processor multiplies in it, else ``fp32``: emulated it is ten times slower."""
    if torch.cuda.is_available():
        return "bf16"
    return "bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "fp32"
