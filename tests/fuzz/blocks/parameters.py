"""Parameters used otherwise than by the layer that owns them: functional, shared, split, computed."""

from __future__ import annotations

from math import gcd

from tests.fuzz.blocks.convolutions import act, conv
from tests.fuzz.writer import Feature, Scope, block


@block
def functional_conv(s: Scope) -> Feature:
    out = s.channels()
    groups = s.divisor(gcd(s.c, out))
    w = s.parameter(out, s.c // groups, 3, 3)
    bias = s.parameter(out) if s.chance(0.5) else "None"
    return s.feature(f"F.conv2d({s.x}, {w}, {bias}, padding=1, groups={groups})", out)


@block
def functional_linear(s: Scope) -> Feature:
    out = s.channels()
    before = s.module(f"nn.Linear({s.c}, {s.c})", "fc")
    w, bias = s.parameter(out, s.c), s.parameter(out) if s.chance(0.5) else "None"
    inner = s.pick("{}", "F.relu({})").format(f"{before}({s.x}.permute(0, 2, 3, 1))")
    return s.feature(f"F.linear({inner}, {w}, {bias}).permute(0, 3, 1, 2)", out)


@block
def reused_conv(s: Scope) -> Feature:
    layer, norm = conv(s, s.c, s.c, 3), s.module(f"nn.BatchNorm2d({s.c})", "bn")
    how = s.pick(
        f"{layer}(F.relu({layer}({s.x})))",
        f"{layer}({s.x}) + {layer}({s.x}.flip(-1))",
        f"torch.cat([{layer}({s.x}), {layer}({s.x} * 2)], 1)",
        f"{norm}({layer}({norm}({layer}({s.x}))))",
        f"F.conv2d({layer}({s.x}), {layer}.weight, padding=1)",
        f"{layer}({s.x}) + F.conv2d({s.x}, {layer}.weight, {layer}.bias, dilation=2, padding=2)",
    )
    return s.feature(how, 2 * s.c if how.startswith("torch.cat") else s.c)


@block
def tied_weights(s: Scope) -> Feature:
    out = s.channels()
    a = conv(s, s.c, out, 3)
    b = s.module(f"nn.Conv2d({s.c}, {out}, 3, padding=1)", "conv")
    s.init.append(f"{b}.weight = {a}.weight")
    return s.feature(f"{a}({s.x}).relu() + {b}({s.x}.roll(1, -1)).sigmoid()", out)


@block
def tied_autoencoder(s: Scope) -> Feature:
    inner = s.channels()
    fc = s.module(f"nn.Linear({s.c}, {inner})", "enc")
    bias = s.parameter(s.c)
    y = s.let(s.pick("{}", "F.relu({})").format(f"{fc}({s.x}.permute(0, 2, 3, 1))"))
    return s.feature(f"F.linear({y}, {fc}.weight.t(), {bias}).permute(0, 3, 1, 2)", s.c)


@block
def tied_transposed_conv(s: Scope) -> Feature:
    inner = s.channels()
    layer = conv(s, s.c, inner, 3, extra=", bias=False")
    return s.feature(f"F.conv_transpose2d({act(s)}({layer}({s.x})), {layer}.weight, padding=1)", s.c)


@block
def split_parameter(s: Scope) -> Feature:
    a, b = s.channels(), s.channels()
    w = s.parameter(a + b, s.c, 3, 3)
    u, v = s.source.fresh("v"), s.source.fresh("v")
    if a == b:
        how = s.pick(f"torch.split({w}, {a})", f"{w}.chunk(2)", f"{w}.view(2, {a}, {s.c}, 3, 3)",
                     f"{w}.unflatten(0, (2, -1)).unbind()")  # fmt: skip
        s.say(f"{u}, {v} = {how}")
        return s.feature(f"F.conv2d({s.x}, {u}, padding=1).relu() + F.conv2d({s.x}, {v}, padding=1).sigmoid()", a)
    s.say(f"{u}, {v} = " + s.pick(f"torch.split({w}, [{a}, {b}])", f"({w}[:{a}], {w}[{a}:])",
                                  f"({w}.narrow(0, 0, {a}), {w}.narrow(0, {a}, {b}))"))  # fmt: skip
    return s.feature(f"torch.cat([F.conv2d({s.x}, {v}, padding=1), F.conv2d({s.x}, {u}, padding=1)], 1)", a + b)


@block
def split_inputs(s: Scope) -> Feature:
    """A weight whose input channels are split over two features."""
    out = s.channels()
    y = s.let(f"F.relu({conv(s, s.c, s.c, 3)}({s.x}))")
    layer = conv(s, 2 * s.c, out, 1)
    a, b = f"{layer}.weight[:, :{s.c}]", f"{layer}.weight[:, {s.c}:]"
    return s.feature(f"F.conv2d({s.x}, {a}, {layer}.bias) + F.conv2d({y}, {b})", out)


@block
def computed_weight(s: Scope) -> Feature:
    out = s.channels()
    w = s.parameter(out, s.c, 3, 3)
    how = s.pick(
        f"{w} * {s.buffer(f'(torch.rand({out}, {s.c}, 3, 3) > 0.3).float()')}",
        f"{w} - {w}.mean((2, 3), keepdim=True)",
        f"{w} * {s.parameter(out, 1, 1, 1)}.exp()",
        f"{w} + {s.parameter(out, s.c, 1, 1)}",
        f"{w}.flip(-1)",
        f"F.normalize({w}, dim=1)",
        f"{s.parameter(out, 3)} @ {s.parameter(3, s.c * 9)}",
        f"torch.cat([{w}, -{w}])",
        f"{s.parameter(s.c, out, 3, 3)}.transpose(0, 1)",
    )
    if " @ " in how:
        how = f"({how}).view({out}, {s.c}, 3, 3)"
    return s.feature(f"F.conv2d({s.x}, {how}, padding=1)", 2 * out if how.startswith("torch.cat") else out)


@block
def scaled(s: Scope) -> Feature:
    layer = conv(s, s.c, s.c, 3)
    how = s.pick(
        f"{layer}({s.x}) * {s.parameter(1, s.c, 1, 1)}",
        f"{layer}({s.x}) + {s.parameter(s.c, 1, 1)}",
        f"{layer}({s.x}) * {s.parameter(s.c)}[:, None, None]",
        f"{layer}({s.x}) * {s.buffer(f'torch.rand({s.c}, 1, 1)')}",
        f"{layer}({s.x}) + {s.parameter(1, s.c, s.h, s.w)}",
        f"{layer}({s.x}) * {s.parameter(1)} + {s.parameter(s.h, s.w)}",
        f"{layer}({s.x}).mul({s.parameter(s.c)}.view(1, {s.c}, 1, 1).expand_as({s.x}))",
        f"torch.addcmul({s.x}, {layer}({s.x}), {s.parameter(s.c, 1, 1)})",
        f"torch.lerp({s.x}, {layer}({s.x}), {s.parameter(s.c, 1, 1)}.sigmoid())",
    )
    return s.feature(how, s.c)


@block
def modulated(s: Scope) -> Feature:
    """Style: a vector input, or a pooled feature, scales channels; as a weight with the batch as groups or plainly."""
    style, length = (s.use(s.style[0]), s.style[1]) if s.style else (s.let(f"{s.x}.mean((2, 3))"), s.c)
    if s.chance(0.5):
        fc = s.module(f"nn.Linear({length}, {2 * s.c})", "film")
        a, b = s.source.fresh("v"), s.source.fresh("v")
        s.say(f"{a}, {b} = {fc}({style})[:, :, None, None].chunk(2, 1)")
        return s.feature(f"{conv(s, s.c, s.c, 3)}({s.x}) * (1 + {a}) + {b}", s.c)
    out = s.channels()
    fc, w = s.module(f"nn.Linear({length}, {s.c})", "style"), s.parameter(1, out, s.c, 3, 3)
    b = s.let(f"{s.x}.shape[0]")
    k = s.let(f"({w} * {fc}({style}).view({b}, 1, {s.c}, 1, 1)).view({b} * {out}, {s.c}, 3, 3)")
    y = f"F.conv2d({s.x}.reshape(1, {b} * {s.c}, {s.h}, {s.w}), {k}, padding=1, groups={b})"
    return s.feature(f"{y}.view({b}, {out}, {s.h}, {s.w})", out)


@block
def experts(s: Scope) -> Feature:
    out = s.channels()
    w, route = s.parameter(3, out, s.c, 1, 1), s.module(f"nn.Linear({s.c}, 3)", "route")
    a = s.let(f"{route}({s.x}.mean((2, 3))).softmax(-1)")
    outs = s.let(f"torch.stack([F.conv2d({s.x}, {w}[i]) for i in range(3)], 1)")
    return s.feature(f"({outs} * {a}[:, :, None, None, None]).sum(1)", out)


@block
def bank_of_layers(s: Scope) -> Feature:
    layers = s.module(f"nn.ModuleList([nn.Conv2d({s.c}, {s.c}, 3, padding=1) for _ in range(3)])", "bank")
    scales = s.module(f"nn.ParameterList([nn.Parameter(torch.rand({s.c}, 1, 1)) for _ in range(3)])", "scales")
    y = s.let(s.x)
    s.say(f"for i, layer in enumerate({layers}):", f"    {y} = {y} + F.relu(layer({y})) * {scales}[i]")
    return s.feature(y, s.c)
