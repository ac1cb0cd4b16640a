"""Attention in the forms people write it."""

from __future__ import annotations

from tests.fuzz.blocks.convolutions import conv
from tests.fuzz.writer import Feature, Scope, block


def tokens(s: Scope) -> str:
    """The feature as [batch, tokens, channels]."""
    return s.let(f"{s.x}.flatten(2).transpose(1, 2)")


def image(s: Scope, y: str, c: int | None = None) -> Feature:
    """Tokens as a feature map again."""
    c = c or s.c
    return s.feature(f"{y}.transpose(1, 2).reshape({y}.shape[0], {c}, {s.h}, {s.w})", c)


def heads_of(s: Scope, c: int) -> int:
    return s.rng.choice([n for n in (1, 2, 3, 4) if c % n == 0 and c // n > 1])


@block
def multihead(s: Scope) -> Feature:
    """nn.MultiheadAttention with query, key and value alike or not."""
    heads, first = heads_of(s, s.c), s.chance(0.6)
    layer = s.module(
        f"nn.MultiheadAttention({s.c}, {heads}, batch_first={first}, bias={s.chance(0.8)}, "
        f"dropout={s.pick(0.0, 0.0, 0.1)})",
        "attn",
    )
    x = tokens(s)
    pos = s.parameter(1, s.h * s.w, s.c)
    other = s.let(f"{conv(s, s.c, s.c, 1)}({s.x}).flatten(2).transpose(1, 2)")
    q, k, v = s.rng.choice(
        [(x, x, x), (f"{x} + {pos}", f"{x} + {pos}", x), (x, other, other), (x, f"{other} + {pos}", other)]
    )
    if q == k != x:
        q = k = s.let(q)
    need = s.pick("need_weights=False", "need_weights=False", "need_weights=True", "average_attn_weights=False")
    if first:
        y = s.let(f"{layer}({q}, {k}, {v}, {need})[0]")
    else:
        y = s.let(f"{layer}({', '.join(f'({one}).transpose(0, 1)' for one in (q, k, v))}, {need})[0].transpose(0, 1)")
    return image(s, s.let(f"{x} + {y}"))


@block
def fused_qkv(s: Scope) -> Feature:
    heads = heads_of(s, s.c)
    d = s.c // heads
    qkv, out = (
        s.module(f"nn.Linear({s.c}, {3 * s.c}, bias={s.chance(0.5)})", "qkv"),
        s.module(f"nn.Linear({s.c}, {s.c})", "proj"),
    )
    x = tokens(s)
    if s.chance(0.5):
        x = s.let(f"{s.module(f'nn.LayerNorm({s.c})', 'ln')}({x})")
    q, k, v = (s.source.fresh("v") for _ in range(3))
    n = s.h * s.w
    how = s.pick(
        f"{qkv}({x}).reshape({x}.shape[0], {n}, 3, {heads}, {d}).permute(2, 0, 3, 1, 4).unbind(0)",
        f"{qkv}({x}).unflatten(-1, (3, {heads}, {d})).permute(2, 0, 3, 1, 4)",
        f"(t.unflatten(-1, ({heads}, {d})).transpose(1, 2) for t in {qkv}({x}).chunk(3, -1))",
        f"[t.view(-1, {n}, {heads}, {d}).transpose(1, 2) for t in {qkv}({x}).split({s.c}, dim=2)]",
        f"{qkv}({x}).view(-1, {n}, {heads}, 3 * {d}).transpose(1, 2).chunk(3, -1)",
    )
    s.say(f"{q}, {k}, {v} = {how}")
    if s.chance(0.3):
        norm = s.module(f"nn.LayerNorm({d})", "qn")
        s.say(f"{q}, {k} = {norm}({q}), {norm}({k})")
    how = s.pick(
        f"F.scaled_dot_product_attention({q}, {k}, {v})",
        f"F.scaled_dot_product_attention({q}, {k}, {v}, dropout_p=0.1 if self.training else 0.0)",
        f"F.scaled_dot_product_attention({q}, {k}, {v}, scale=0.3)",
        f"(({q} * {d} ** -0.5) @ {k}.transpose(-2, -1)).softmax(dim=-1) @ {v}",
        f"torch.einsum('bhij,bhjd->bhid', torch.einsum('bhid,bhjd->bhij', {q}, {k}).softmax(-1), {v})",
    )
    y = s.let(f"{out}(({how}).transpose(1, 2).reshape({x}.shape[0], {n}, {s.c}))")
    return image(s, s.let(f"{x} + {y}"))


@block
def hand_written(s: Scope) -> Feature:
    """Own query, key and value layers with inner sizes of their own, by matmul or bmm."""
    inner, out = s.channels(), s.channels()
    q, k = (s.module(f"nn.Linear({s.c}, {inner})", n) for n in "qk")
    v = s.module(f"nn.Linear({s.c}, {out})", "val")
    x = tokens(s)
    a = s.let(
        s.pick(
            f"torch.bmm({q}({x}), {k}({x}).transpose(1, 2)) / {inner} ** 0.5",
            f"{q}({x}) @ {k}({x}).mT",
            f"torch.einsum('bid,bjd->bij', {q}({x}), {k}({x}))",
        )
    )
    if s.chance(0.3):
        table = s.parameter(2 * s.h * s.w)
        index = s.buffer(f"(torch.arange({s.h * s.w})[:, None] - torch.arange({s.h * s.w})[None]) + {s.h * s.w}")
        a = s.let(f"{a} + {table}[{index}]")
    if s.chance(0.2):
        mask = s.buffer(f"torch.ones({s.h * s.w}, {s.h * s.w}).tril().bool()")
        a = s.let(f"{a}.masked_fill(~{mask}, -1e4)")
    return image(s, s.let(f"{a}.softmax(-1) @ {v}({x})"), out)


@block
def conv_attention(s: Scope) -> Feature:
    """Non-local block: 1x1 convolutions."""
    inner = s.channels()
    q, k, v, o = conv(s, s.c, inner, 1), conv(s, s.c, inner, 1), conv(s, s.c, inner, 1), conv(s, inner, s.c, 1)
    a = s.let(f"({q}({s.x}).flatten(2).transpose(1, 2) @ {k}({s.x}).flatten(2)).softmax(-1)")
    y = s.let(f"({v}({s.x}).flatten(2) @ {a}.transpose(1, 2)).view({s.x}.shape[0], {inner}, {s.h}, {s.w})")
    return s.feature(f"{s.x} + {o}({y})", s.c)


@block
def channel_attention(s: Scope) -> Feature:
    """Cross-covariance: attention between channels."""
    heads = heads_of(s, s.c)
    qkv, t = conv(s, s.c, 3 * s.c, 1), s.parameter(heads, 1, 1, scale=1.0)
    q, k, v = (s.source.fresh("v") for _ in range(3))
    s.say(f"{q}, {k}, {v} = {qkv}({s.x}).view(-1, 3, {heads}, {s.c // heads}, {s.h * s.w}).unbind(1)")
    a = s.let(f"(F.normalize({q}, dim=-1) @ F.normalize({k}, dim=-1).transpose(-2, -1) * {t}).softmax(-1)")
    return s.feature(f"{s.x} + ({a} @ {v}).reshape({s.x}.shape)", s.c)


@block
def linear_attention(s: Scope) -> Feature:
    heads = heads_of(s, s.c)
    q, k, v = (s.module(f"nn.Linear({s.c}, {s.c}, bias=False)", n) for n in ("q", "k", "val"))
    x, n, d = tokens(s), s.h * s.w, s.c // heads
    a, b, c = (s.let(f"{f}({x}).view(-1, {n}, {heads}, {d})") for f in (q, k, v))
    s.say(f"{a}, {b} = F.elu({a}) + 1, F.elu({b}) + 1")
    kv = s.let(f"torch.einsum('bnhd,bnhe->bhde', {b}, {c})")
    z = s.let(f"1 / (torch.einsum('bnhd,bhd->bnh', {a}, {b}.sum(1)) + 1e-3)")
    y = s.let(f"torch.einsum('bnhd,bhde,bnh->bnhe', {a}, {kv}, {z}).reshape(-1, {n}, {s.c})")
    return image(s, y)


@block
def grouped_query(s: Scope) -> Feature:
    heads = heads_of(s, s.c)
    d, n = s.c // heads, s.h * s.w
    q, kv = s.module(f"nn.Linear({s.c}, {s.c})", "q"), s.module(f"nn.Linear({s.c}, {2 * d})", "kv")
    x = tokens(s)
    a, b, c = s.let(f"{q}({x}).view(-1, {n}, {heads}, {d}).transpose(1, 2)"), s.source.fresh("v"), s.source.fresh("v")
    s.say(f"{b}, {c} = {kv}({x}).unsqueeze(1).chunk(2, -1)")
    if s.chance(0.5):
        s.say(f"{b}, {c} = {b}.expand(-1, {heads}, -1, -1), {c}.repeat(1, {heads}, 1, 1)")
    y = s.let(f"({a} @ {b}.transpose(-1, -2)).softmax(-1) @ {c}")
    return image(s, s.let(f"{y}.transpose(1, 2).flatten(2)"))


@block
def class_token(s: Scope) -> Feature:
    token, pos = s.parameter(1, 1, s.c), s.parameter(1, s.h * s.w + 1, s.c)
    fc = s.module(f"nn.Linear({s.c}, {s.c})", "fc")
    x = tokens(s)
    y = s.let(f"torch.cat([{token}.expand({x}.shape[0], -1, -1), {x}], 1) + {pos}")
    y = s.let(f"{y} + F.gelu({fc}({y} + {y}.mean(1, keepdim=True)))")
    return image(s, s.let(f"{y}[:, 1:] * {y}[:, :1].sigmoid()"))


@block
def encoder_layer(s: Scope) -> Feature:
    heads = heads_of(s, s.c)
    layer = s.module(
        f"nn.TransformerEncoderLayer({s.c}, {heads}, {2 * s.c}, dropout={s.pick(0.0, 0.1)}, batch_first=True, "
        f"norm_first={s.chance(0.5)}, activation={s.pick('relu', 'gelu')!r})",
        "enc",
    )
    return image(s, s.let(f"{layer}({tokens(s)})"))


@block
def recurrent(s: Scope) -> Feature:
    out = s.channels()
    if s.chance(0.5):
        layer = s.module(f"nn.GRU({s.c}, {out}, batch_first=True)", "rnn")
        return image(s, s.let(f"{layer}({tokens(s)})[0]"), out)
    layer = s.module(f"nn.LSTM({s.c}, {out // 2}, batch_first=True, bidirectional=True)", "rnn")
    y, state = s.source.fresh("v"), s.source.fresh("v")
    s.say(f"{y}, {state} = {layer}({tokens(s)})")
    return image(s, y, out)
