"""The networks of the paper that timm lacks, for 32x32 images: ResNet-20/32/56/110, DenseNet-40, VGG-16-BN.

Usable by name: ``edp-fx compress examples.networks:resnet56 --data fashion-mnist --macs 0.4 …``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the shape changes, a 1x1 convolution (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of 6n+2 layers in three stages of ``width``, 2·``width`` and 4·``width`` channels."""

    def __init__(self, blocks: int, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        inputs = width
        for stage in range(3):
            outputs = width * 2**stage
            for block in range(blocks):
                stages.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.head(out.mean((2, 3)))


class DenseLayer(nn.Module):
    """Norm, ReLU, 3x3 convolution; its output is appended to its input (Huang et al., 2017)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], dim=1)


class CifarDenseNet(nn.Module):
    """DenseNet without bottlenecks or compression: three blocks of (depth - 4) / 3 layers."""

    def __init__(self, depth: int = 40, growth: int = 12, num_classes: int = 10) -> None:
        super().__init__()
        inputs = 16
        self.stem = nn.Conv2d(3, inputs, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        for block in range(3):
            for _ in range((depth - 4) // 3):
                layers.append(DenseLayer(inputs, growth))
                inputs += growth
            if block < 2:
                layers += [
                    nn.BatchNorm2d(inputs),
                    nn.ReLU(),
                    nn.Conv2d(inputs, inputs, 1, bias=False),
                    nn.AvgPool2d(2),
                ]
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(out.mean((2, 3)))


class CifarVGG(nn.Module):
    """VGG-16 with batch norm and one linear layer, as used on CIFAR (13 convolutions)."""

    def __init__(self, plan: Sequence[int | str], num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for entry in plan:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(inputs, entry, 3, 1, 1, bias=False), nn.BatchNorm2d(entry), nn.ReLU()]
            inputs = entry
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)


def resnet20(num_classes: int = 10) -> CifarResNet:
    """ResNet-20."""
    return CifarResNet(3, num_classes)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """ResNet-32."""
    return CifarResNet(5, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """ResNet-56."""
    return CifarResNet(9, num_classes)


def resnet110(num_classes: int = 10) -> CifarResNet:
    """ResNet-110."""
    return CifarResNet(18, num_classes)


def densenet40(num_classes: int = 10) -> CifarDenseNet:
    """DenseNet-40, growth 12."""
    return CifarDenseNet(40, 12, num_classes)


def vgg16_bn(num_classes: int = 10) -> CifarVGG:
    """VGG-16 with batch norm."""
    return CifarVGG(VGG16, num_classes)


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
