"""How channels are tied, moved, gated and reduced."""

from __future__ import annotations

from tests.fuzz.blocks.convolutions import act, conv
from tests.fuzz.writer import Feature, Scope, block


@block
def residual(s: Scope) -> Feature:
    a, b, norm = conv(s, s.c, s.c, 3), conv(s, s.c, s.c, 3), s.module(f"nn.BatchNorm2d({s.c})", "bn")
    y = s.let(f"{norm}({b}({act(s)}({a}({s.x}))))")
    if s.chance(0.3):
        y = s.let(f"{y} * {s.parameter(s.c, 1, 1)}")
    if s.chance(0.3):
        s.say(f"{y} += {s.x}")
        return s.feature(f"F.relu_({y})", s.c)
    return s.feature(f"F.relu({s.x} + {y})", s.c)


@block
def zero_padded_shortcut(s: Scope) -> Feature:
    extra = s.number(2, 4, 8)
    before = s.number(0, extra // 2, extra, 1)
    stride = 2 if min(s.h, s.w) >= 4 and s.chance(0.6) else 1
    out = s.c + extra
    layer = s.module(f"nn.Conv2d({s.c}, {out}, 3, stride={stride}, padding=1)", "conv")
    norm = s.module(f"nn.BatchNorm2d({out})", "bn")
    short = s.let(f"F.pad({s.x}[:, :, ::{stride}, ::{stride}], (0, 0, 0, 0, {before}, {extra - before}))")
    h, w = (s.h + stride - 1) // stride, (s.w + stride - 1) // stride
    return s.feature(f"F.relu({norm}({layer}({s.x})) + {short})", out, h, w)


@block
def concatenated_zeros(s: Scope) -> Feature:
    zeros = (
        s.let(f"torch.zeros_like({s.x}[:, :2])")
        if s.chance(0.5)
        else s.let(f"{s.x}.new_zeros({s.x}.size(0), 2, {s.h}, {s.w})")
    )
    return s.feature(f"torch.cat([{s.x}, {zeros}], 1) + {conv(s, s.c, s.c + 2, 1)}({s.x})", s.c + 2)


@block
def dense(s: Scope) -> Feature:
    out = s.channels()
    layer = conv(s, s.c, out, 3)
    parts = [s.x, f"F.relu({layer}({s.x}))"]
    s.rng.shuffle(parts)
    return s.feature(f"torch.cat([{', '.join(parts)}], dim={s.pick(1, -3)})", s.c + out)


@block
def older_feature(s: Scope) -> Feature:
    """Adds, multiplies or concatenates a feature made earlier, brought to the same shape where it has to be."""
    if not s.skips:
        return dense(s)
    other = s.rng.choice(s.skips)
    y = s.use(other.name)
    if (other.h, other.w) != (s.h, s.w):
        y = s.let(f"F.adaptive_avg_pool2d({y}, ({s.h}, {s.w}))")
    if s.chance(0.4):
        return s.feature(f"torch.cat(({s.x}, {y}), 1)", s.c + other.c)
    if other.c != s.c:
        y = s.let(f"{conv(s, other.c, s.c, 1)}({y})")
    return s.feature(s.pick(f"{s.x} + {y}", f"{s.x} * torch.sigmoid({y})", f"torch.stack([{s.x}, {y}]).sum(0)",
                            f"torch.stack([{s.x}, {y}], 2).amax(2)", f"{s.x}.add({y}, alpha=0.5)"), s.c)  # fmt: skip


@block
def split_and_cat(s: Scope) -> Feature:
    k = s.rng.randint(1, s.c - 1)
    out = s.channels()
    a, b, y = s.source.fresh("v"), s.source.fresh("v"), s.let(f"{conv(s, s.c, s.c, 1)}({s.x})")
    s.say(f"{a}, {b} = torch.split({y}, [{k}, {s.c - k}], dim=1)")
    return s.feature(f"torch.cat([F.relu({conv(s, k, out, 3)}({a})), {b}], 1)", out + s.c - k)


@block
def chunks_in_cascade(s: Scope) -> Feature:
    if s.c % 4:
        return split_and_cat(s)
    q = s.c // 4
    parts = s.let(f"{s.x}.chunk(4, 1)")
    layers = [conv(s, q, q, 3) for _ in range(3)]
    y1 = s.let(f"{layers[0]}({parts}[1])")
    y2 = s.let(f"{layers[1]}({parts}[2] + {y1})")
    y3 = s.let(f"{layers[2]}({parts}[3] + {y2})")
    return s.feature(f"torch.cat([{parts}[0], {y1}, {y2}, {y3}], 1)", s.c)


@block
def channel_shuffle(s: Scope) -> Feature:
    g = s.divisor(s.c)
    before = conv(s, s.c, s.c, 1)
    y = s.let(f"{before}({s.x})")
    how = s.pick(
        f"{y}.view({y}.size(0), {g}, {s.c // g}, {s.h}, {s.w}).transpose(1, 2).reshape({y}.size(0), -1, {s.h}, {s.w})",
        f"{y}.reshape(-1, {g}, {s.c // g}, {s.h}, {s.w}).transpose(1, 2).flatten(1, 2)",
        f"F.channel_shuffle({y}, {g})",
    )
    return s.feature(how, s.c)


@block
def moved_channels(s: Scope) -> Feature:
    before = conv(s, s.c, s.c, 1)
    y = s.let(f"{before}({s.x})")
    order = list(range(s.c))
    s.rng.shuffle(order)
    index = s.buffer(f"torch.tensor({order})")
    how = s.pick(f"{y}.flip(1)", f"{y}.roll(2, 1)", f"{y}[:, {index}]", f"{y}.index_select(1, {index})",
                 f"torch.cat([{y}[:, 1::2], {y}[:, ::2]], 1)", f"{y}[:, {order}]")  # fmt: skip
    return s.feature(how, s.c)


@block
def pixel_shuffle(s: Scope) -> Feature:
    if s.h % 2 == 0 and s.w % 2 == 0 and s.c <= 12 and s.chance(0.5):
        down = s.pick(f"F.pixel_unshuffle({s.x}, 2)", "SPACE") if s.chance(0.7) else "SPACE"
        if down == "SPACE":
            x = s.x
            down = f"torch.cat([{x}[..., ::2, ::2], {x}[..., 1::2, ::2], {x}[..., ::2, 1::2], {x}[..., 1::2, 1::2]], 1)"
        y = s.let(down)
        out = s.channels()
        return s.feature(f"{conv(s, 4 * s.c, out, 1)}({y})", out, s.h // 2, s.w // 2)
    wide = conv(s, s.c, 16, 1)
    return s.feature(f"F.adaptive_avg_pool2d(F.pixel_shuffle({wide}({s.x}), 2), ({s.h}, {s.w}))", 4)


@block
def maxout(s: Scope) -> Feature:
    wide = conv(s, s.c, 2 * s.c, 1)
    y = s.let(f"{wide}({s.x})")
    how = s.pick(
        f"{y}.view({y}.shape[0], {s.c}, 2, {s.h}, {s.w}).amax(2)",
        f"{y}.unflatten(1, (2, {s.c})).max(1).values",
        f"{y}.unflatten(1, (2, -1)).max(1)[0]",
        f"torch.max(*{y}.chunk(2, 1))",
    )
    return s.feature(how, s.c)


@block
def squeeze_excite(s: Scope) -> Feature:
    r = max(2, s.c // 2)
    if s.chance(0.5):
        a, b = conv(s, s.c, r, 1), conv(s, r, s.c, 1)
        g = s.let(f"{b}(F.relu({a}({s.x}.mean((2, 3), keepdim=True))))")
    else:
        a, b = s.module(f"nn.Linear({s.c}, {r})", "fc"), s.module(f"nn.Linear({r}, {s.c})", "fc")
        g = s.let(f"{b}(F.relu({a}(F.adaptive_avg_pool2d({s.x}, 1).flatten(1)))).view(-1, {s.c}, 1, 1)")
    return s.feature(f"{s.x} * {s.pick('torch.sigmoid', 'F.hardsigmoid')}({g})", s.c)


@block
def spatial_gate(s: Scope) -> Feature:
    gate = s.module("nn.Conv2d(2, 1, 3, padding=1)", "gate")
    y = s.let(f"torch.cat([{s.x}.mean(1, keepdim=True), {s.x}.amax(1, keepdim=True)], 1)")
    return s.feature(f"{s.x} * torch.sigmoid({gate}({y}))", s.c)


@block
def efficient_channel_attention(s: Scope) -> Feature:
    layer = s.module("nn.Conv1d(1, 1, 3, padding=1, bias=False)", "eca")
    y = s.let(f"{s.x}.mean((2, 3)).unsqueeze(1)")
    return s.feature(f"{s.x} * torch.sigmoid({layer}({y})).transpose(1, 2).unsqueeze(-1)", s.c)


@block
def selective_kernel(s: Scope) -> Feature:
    a, b = conv(s, s.c, s.c, 3), conv(s, s.c, s.c, 1)
    fc = s.module(f"nn.Linear({s.c}, {2 * s.c})", "fc")
    y = s.let(f"torch.stack([{a}({s.x}), {b}({s.x})], 1)")
    g = s.let(f"{fc}({y}.sum(1).mean((2, 3))).view(-1, 2, {s.c}, 1, 1).softmax(1)")
    return s.feature(f"({y} * {g}).sum(1)", s.c)


@block
def in_place(s: Scope) -> Feature:
    k = max(1, s.c // 2)
    layer = conv(s, k, k, 3)
    y = s.let(f"{s.x} * 1.0" if s.chance(0.5) else f"{s.x}.clone()")
    s.say(
        s.pick(
            f"{y}[:, :{k}] = {layer}({s.x}[:, :{k}])",
            f"{y}[:, :{k}] += {layer}({s.x}[:, :{k}])",
            f"{y}.narrow(1, 0, {k}).copy_({layer}({s.x}[:, :{k}]))",
            f"{y}.add_({s.x}).mul_(0.5); {y}[:, {s.c - k}:] = {layer}({s.x}[:, :{k}])",
            f"{y}[:, :{k}].mul_(2.0).add_({layer}({s.x}[:, :{k}]))",
        )
    )
    return s.feature(f"{y} + 0.5", s.c)


@block
def in_place_of_a_view(s: Scope) -> Feature:
    layer = conv(s, s.c, s.c, 1)
    y = s.let(f"{layer}({s.x})")
    view = s.let(s.pick(f"{y}.view({y}.size(0), {s.c}, -1)", f"{y}.flatten(2)", f"{y}.transpose(1, 2)", f"{y}[:, 1:]"))
    s.say(s.pick(f"{view}.mul_(0.7)", f"{view} += 1", f"{view}.clamp_(-1, 1)", f"{view}.relu_()"))
    return s.feature(f"{y} + {s.x}", s.c)


@block
def einsum(s: Scope) -> Feature:
    out = s.channels()
    w = s.parameter(out, s.c)
    how = s.pick(
        f"torch.einsum('bchw,oc->bohw', {s.x}, {w})",
        f"torch.einsum('oc,bchw->bohw', {w}, {s.x})",
        f"({w} @ {s.x}.flatten(2)).view(-1, {out}, {s.h}, {s.w})",
        f"torch.matmul({s.x}.permute(0, 2, 3, 1), {w}.t()).permute(0, 3, 1, 2)",
        f"torch.tensordot({s.x}, {w}, dims=([1], [1])).permute(0, 3, 1, 2)",
        f"torch.einsum('bchw,bdhw->bcd', {s.x}, {s.x}).softmax(-1).matmul({s.x}.flatten(2))"
        f".view(-1, {s.c}, {s.h}, {s.w})",
    )
    return s.feature(how, s.c if "softmax" in how else out)


@block
def token_mixing(s: Scope) -> Feature:
    n = s.h * s.w
    a, b = s.module(f"nn.Linear({n}, 12)", "fc"), s.module(f"nn.Linear(12, {n})", "fc")
    return s.feature(f"{s.x} + {b}(F.gelu({a}({s.x}.flatten(2)))).view({s.x}.shape)", s.c)


@block
def windows(s: Scope) -> Feature:
    if s.h % 2 or s.w % 2:
        return channel_shuffle(s)
    fc = s.module(f"nn.Linear({s.c}, {s.c})", "fc")
    y = s.let(f"{s.x}.reshape(-1, {s.c}, {s.h // 2}, 2, {s.w // 2}, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, {s.c})")
    y = s.let(f"{fc}({y} - {y}.mean(1, keepdim=True))")
    back = f"{y}.view(-1, {s.h // 2}, {s.w // 2}, 2, 2, {s.c}).permute(0, 5, 1, 3, 2, 4)"
    return s.feature(f"{back}.reshape(-1, {s.c}, {s.h}, {s.w})", s.c)


@block
def unfolded(s: Scope) -> Feature:
    out = s.channels()
    w = s.parameter(out, s.c * 9, scale=0.2)
    return s.feature(f"({w} @ F.unfold({s.x}, 3, padding=1)).view(-1, {out}, {s.h}, {s.w})", out)


@block
def reduced(s: Scope) -> Feature:
    layer = conv(s, s.c, s.c, 1)
    y = s.let(f"{layer}({s.x})")
    how = s.pick(
        f"{y} - {y}.mean(1, keepdim=True)",
        f"{y} / (1 + {y}.std((2, 3), keepdim=True))",
        f"{y} * {y}.sum(1, keepdim=True).tanh()",
        f"{y} / ({y}.norm(dim=1, keepdim=True) + 1)",
        f"{y}.cumsum(1) * 0.1",
        f"{y} + {y}.logsumexp(1, keepdim=True)",
        f"{y} - {y}.amin((1, 2, 3), keepdim=True)",
        f"{y}.sort(1)[0]",
        f"{y} * {y}.topk(2, dim=1).values.sum(1, keepdim=True)",
    )
    return s.feature(how, s.c)
