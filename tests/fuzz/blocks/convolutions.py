"""Convolution layers of every kind, as modules."""

from __future__ import annotations

from math import gcd

from tests.fuzz.writer import Feature, Scope, block


def conv(s: Scope, c: int, out: int, k: int = 3, groups: int = 1, extra: str = "") -> str:
    """A convolution that keeps height and width."""
    return s.module(f"nn.Conv2d({c}, {out}, {k}, padding={k // 2}, groups={groups}{extra})", "conv")


def act(s: Scope) -> str:
    """A function of one tensor, as text that can be called."""
    return s.pick("F.relu", "F.silu", "F.gelu", "torch.tanh", "F.hardswish", "torch.sigmoid", "F.leaky_relu", "F.elu")


@block
def plain_conv(s: Scope) -> Feature:
    out = s.channels()
    kh, kw = s.rng.choice([(1, 1), (3, 3), (1, 3), (3, 1), (2, 2)])
    stride = s.number(1, 1, 2) if min(s.h, s.w) >= 4 else 1
    ph, pw, groups = kh // 2, kw // 2, s.divisor(gcd(s.c, out))
    mode = s.pick("zeros", "zeros", "zeros", "reflect", "circular", "replicate")
    layer = s.module(
        f"nn.Conv2d({s.c}, {out}, ({kh}, {kw}), stride={stride}, padding=({ph}, {pw}), groups={groups}, "
        f"bias={s.chance(0.6)}, padding_mode={mode!r})",
        "conv",
    )
    return s.feature(f"{layer}({s.x})", out, (s.h + 2 * ph - kh) // stride + 1, (s.w + 2 * pw - kw) // stride + 1)


@block
def conv_norm_act(s: Scope) -> Feature:
    out = s.channels()
    layer, norm = conv(s, s.c, out, s.number(1, 3), extra=", bias=False"), s.module(f"nn.BatchNorm2d({out})", "bn")
    return s.feature(f"{act(s)}({norm}({layer}({s.x})))", out)


@block
def depthwise_separable(s: Scope) -> Feature:
    out, times = s.channels(), s.number(1, 1, 2)
    deep, point = conv(s, s.c, s.c * times, 3, s.c), conv(s, s.c * times, out, 1)
    norm = s.module(f"nn.BatchNorm2d({s.c * times})", "bn")
    return s.feature(f"{point}({act(s)}({norm}({deep}({s.x}))))", out)


@block
def inverted_residual(s: Scope) -> Feature:
    wide = s.c * 2
    up, deep, down = conv(s, s.c, wide, 1), conv(s, wide, wide, 3, wide), conv(s, wide, s.c, 1)
    norms = [s.module(f"nn.BatchNorm2d({n})", "bn") for n in (wide, wide, s.c)]
    y = s.let(f"F.relu6({norms[0]}({up}({s.x})))")
    y = s.let(f"F.relu6({norms[1]}({deep}({y})))")
    return s.feature(f"{s.x} + {norms[2]}({down}({y}))", s.c)


@block
def transposed_conv(s: Scope) -> Feature:
    out = s.channels()
    stride = 2 if s.h <= 6 and s.chance(0.5) else 1
    groups = s.divisor(gcd(s.c, out))
    layer = s.module(
        f"nn.ConvTranspose2d({s.c}, {out}, {stride + 1 if stride == 1 else 2}, stride={stride}, "
        f"groups={groups}, bias={s.chance(0.5)})",
        "up",
    )
    grow = 1 if stride == 1 else 0
    return s.feature(f"{layer}({s.x})", out, s.h * stride + grow, s.w * stride + grow)


@block
def padded_conv(s: Scope) -> Feature:
    out = s.channels()
    pads = [s.number(0, 1, 2) for _ in range(4)]
    value = s.pick("0.0", "0.0", "0.5")
    layer = s.module(f"nn.Conv2d({s.c}, {out}, 2)", "conv")
    h, w = s.h + pads[2] + pads[3] - 1, s.w + pads[0] + pads[1] - 1
    return s.feature(f"{layer}(F.pad({s.x}, {tuple(pads)}, value={value}))", out, h, w)


@block
def parallel_kernels(s: Scope) -> Feature:
    out = s.channels()
    a, b = conv(s, s.c, out, 3), conv(s, s.c, out, 1)
    rest = f" + {s.x}" if out == s.c else ""
    norm = s.module(f"nn.BatchNorm2d({out})", "bn")
    return s.feature(f"F.relu({norm}({a}({s.x})) + {b}({s.x}){rest})", out)


@block
def standardised_conv(s: Scope) -> Feature:
    s.source.define("""
class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-4).sqrt()
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)
""")
    out = s.channels()
    layer = s.module(f"StandardisedConv({s.c}, {out}, 3, padding=1)", "ws")
    return s.feature(f"F.relu({layer}({s.x}))", out)


@block
def same_padding_conv(s: Scope) -> Feature:
    s.source.define("""
class SamePaddingConv(nn.Conv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        k = self.kernel_size[0]
        self.static_padding = nn.ZeroPad2d(((k - 1) // 2, k // 2, (k - 1) // 2, k // 2))
    def forward(self, x):
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
""")
    out = s.channels()
    layer = s.module(f"SamePaddingConv({s.c}, {out}, {s.number(1, 2, 3)}, bias={s.chance(0.5)})", "same")
    return s.feature(f"{layer}({s.x})", out)


@block
def normed_weight_conv(s: Scope) -> Feature:
    out = s.channels()
    wrap = s.pick(
        "nn.utils.weight_norm", "nn.utils.parametrizations.weight_norm", "nn.utils.parametrizations.spectral_norm"
    )
    layer = s.module(f"{wrap}(nn.Conv2d({s.c}, {out}, 3, padding=1))", "wn")
    return s.feature(f"F.relu({layer}({s.x}))", out)


@block
def conv_of_sequence(s: Scope) -> Feature:
    out = s.channels()
    layer = s.module(f"nn.Conv1d({s.c}, {out}, 3, padding=1, groups={s.divisor(gcd(s.c, out))})", "conv1d")
    return s.feature(f"{layer}({s.x}.flatten(2)).unflatten(2, ({s.h}, {s.w}))", out)


@block
def conv_of_volume(s: Scope) -> Feature:
    out = s.channels()
    layer = s.module(f"nn.Conv3d({s.c}, {out}, (1, 3, 3), padding=(0, 1, 1))", "conv3d")
    return s.feature(f"{layer}({s.x}.unsqueeze(2)).squeeze(2)", out)


@block
def pixelwise_linear(s: Scope) -> Feature:
    out = s.channels()
    a, b = s.module(f"nn.Linear({s.c}, {out * 2})", "fc"), s.module(f"nn.Linear({out * 2}, {out})", "fc")
    y = s.let(f"{b}({act(s)}({a}({s.x}.permute(0, 2, 3, 1))))")
    return s.feature(f"{y}.permute(0, 3, 1, 2)", out)


@block
def pooling(s: Scope) -> Feature:
    if min(s.h, s.w) < 4:
        return s.feature(f"F.avg_pool2d({s.x}, 3, 1, 1)", s.c)
    how = s.pick("F.max_pool2d({}, 2)", "F.avg_pool2d({}, 2)", "F.max_pool2d({}, 2, ceil_mode=False)")
    return s.feature(how.format(s.x), s.c, s.h // 2, s.w // 2)


@block
def interpolate(s: Scope) -> Feature:
    if s.h > 8:
        return s.feature(f"F.adaptive_avg_pool2d({s.x}, 4)", s.c, 4, 4)
    mode = s.pick("mode='nearest'", "mode='bilinear', align_corners=False", "mode='bicubic'")
    return s.feature(f"F.interpolate({s.x}, scale_factor=2, {mode})", s.c, s.h * 2, s.w * 2)


@block
def hourglass(s: Scope) -> Feature:
    inner = s.channels()
    a, b = conv(s, s.c, inner, 3), conv(s, inner, s.c, 1)
    small = s.let(f"F.relu({a}(F.adaptive_avg_pool2d({s.x}, 2)))")
    return s.feature(f"{s.x} + F.interpolate({b}({small}), size={s.x}.shape[-2:], mode='nearest')", s.c)
