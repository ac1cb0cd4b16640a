"""Norms and activations."""

from __future__ import annotations

from tests.fuzz.blocks.convolutions import conv
from tests.fuzz.writer import Feature, Scope, block


@block
def norm(s: Scope) -> Feature:
    c = s.c
    layer = s.pick(
        f"nn.BatchNorm2d({c})",
        f"nn.BatchNorm2d({c}, affine=False)",
        f"nn.GroupNorm({s.divisor(c)}, {c})",
        f"nn.InstanceNorm2d({c}, affine=True)",
    )
    if "Instance" in layer and min(s.h, s.w) < 2:
        layer = f"nn.BatchNorm2d({c})"
    return s.feature(f"{s.module(layer, 'norm')}({s.x})", c)


@block
def layer_norm_of_channels(s: Scope) -> Feature:
    kind = s.pick("nn.LayerNorm({})", "nn.RMSNorm({})", "nn.LayerNorm({}, elementwise_affine=False)")
    layer = s.module(kind.format(s.c), "ln")
    after = conv(s, s.c, s.c, 1)
    return s.feature(f"{after}({layer}({s.x}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))", s.c)


@block
def functional_norm(s: Scope) -> Feature:
    g, b = s.parameter(s.c), s.parameter(s.c)
    how = s.pick(
        f"F.layer_norm({s.x}.permute(0, 2, 3, 1), ({s.c},), {g}, {b}).permute(0, 3, 1, 2)",
        f"F.group_norm({s.x}, {s.divisor(s.c)}, {g}, {b})",
        f"F.instance_norm({s.x}, weight={g}, bias={b})",
        f"F.layer_norm({s.x}, {s.x}.shape[1:])",
        f"F.normalize({s.x}, dim=1) * {g}.view(1, -1, 1, 1) + {b}.view(1, -1, 1, 1)",
    )
    return s.feature(how, s.c)


@block
def hand_written_norm(s: Scope) -> Feature:
    s.source.define("""
class LayerNorm2d(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))
    def forward(self, x):
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]
""")
    s.source.define("""
class GlobalResponseNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(1, c, 1, 1)), nn.Parameter(torch.zeros(1, c, 1, 1))
    def forward(self, x):
        g = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
        return self.gamma * (x * (g / (g.mean(1, keepdim=True) + 1e-6))) + self.beta + x
""")
    s.source.define("""
class FrozenNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("mean", 0.1), ("var", 1.0)):
            self.register_buffer(name, torch.full((c,), value) + 0.1 * torch.rand(c))
    def forward(self, x):
        scale = (self.weight * (self.var + 1e-5).rsqrt()).reshape(1, -1, 1, 1)
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.mean.reshape(1, -1, 1, 1) * scale)
""")
    layer = s.module(f"{s.pick('LayerNorm2d', 'GlobalResponseNorm', 'FrozenNorm')}({s.c})", "norm")
    return s.feature(f"{conv(s, s.c, s.c, 3)}({layer}({s.x}))", s.c)


@block
def activation(s: Scope) -> Feature:
    how = s.pick(
        f"{s.module('nn.ReLU(inplace=True)', 'act')}({s.x} * 1.5)",
        f"{s.module(f'nn.PReLU({s.c})', 'act')}({s.x})",
        f"{s.module('nn.Hardswish()', 'act')}({s.x})",
        f"F.relu({s.x}.clone(), inplace=True)",
        f"{s.x} * torch.sigmoid(1.7 * {s.x})",
        f"{s.x} * F.softplus({s.x}).tanh()",
        f"{s.x}.clamp(-1, 2) + 0.1",
        f"F.softmax({s.x}, dim=1)",
        f"{s.x}.abs().add(1).log()",
        f"torch.maximum({s.x}, {s.x}.mean((2, 3), keepdim=True))",
        f"torch.where({s.x} > 0, {s.x}, 0.2 * {s.x})",
        f"{s.x}.cos()",
    )
    return s.feature(how, s.c)


@block
def gated_unit(s: Scope) -> Feature:
    out = s.channels()
    wide = conv(s, s.c, 2 * out, s.number(1, 3))
    y = s.let(f"{wide}({s.x})")
    if s.chance(0.3):
        return s.feature(f"F.glu({y}, dim=1)", out)
    a, b = s.source.fresh("v"), s.source.fresh("v")
    split = s.pick(f"{y}.chunk(2, dim=1)", f"torch.split({y}, {out}, 1)", f"{y}.tensor_split(2, 1)",
                   f"({y}[:, :{out}], {y}[:, {out}:])", f"{y}.unflatten(1, (2, {out})).unbind(1)")  # fmt: skip
    s.say(f"{a}, {b} = {split}")
    return s.feature(f"{a} * F.gelu({b})", out)
