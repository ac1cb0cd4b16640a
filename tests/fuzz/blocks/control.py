"""Python around the tensors: containers, own classes, modes, hooks, reused and odd modules."""

from __future__ import annotations

from tests.fuzz.blocks.convolutions import act, conv
from tests.fuzz.writer import Feature, Scope, block


@block
def containers(s: Scope) -> Feature:
    """A submodule that gives several tensors in a tuple, dict, dataclass, named tuple or list."""
    c = s.channels()
    kind = s.pick("tuple", "dict", "dataclass", "namedtuple", "list")
    make = {"tuple": "(a, b)", "dict": "{'a': a, 'b': b}", "dataclass": "TwoFields(a, b)",
            "namedtuple": "TwoNames(a=a, b=b)", "list": "[a, b]"}[kind]  # fmt: skip
    if kind == "dataclass":
        s.source.define("@dataclass\nclass TwoFields:\n    a: torch.Tensor\n    b: torch.Tensor")
    if kind == "namedtuple":
        s.source.define("class TwoNames(NamedTuple):\n    a: torch.Tensor\n    b: torch.Tensor")
    s.source.define(f"""
class Two{kind.title()}(nn.Module):
    def __init__(self, c, out):
        super().__init__()
        self.a, self.b = nn.Conv2d(c, out, 3, padding=1), nn.Conv2d(c, out, 1)
    def forward(self, x, *, scale=1.0):
        a, b = self.a(x), self.b(x) * scale
        return {make}
""")
    layer = s.module(f"Two{kind.title()}({s.c}, {c})", "two")
    y = s.let(f"{layer}({s.x}{s.pick('', ', scale=0.5')})")
    a, b = {
        "dict": (f"{y}['a']", f"{y}['b']"),
        "dataclass": (f"{y}.a", f"{y}.b"),
        "namedtuple": (f"{y}.a", f"{y}[1]"),
    }.get(kind, (f"{y}[0]", f"{y}[1]"))
    return s.feature(f"{a}.relu() + {b}", c)


@block
def dataclass_in(s: Scope) -> Feature:
    """A submodule that takes a dataclass and a dict."""
    s.source.define(
        "@dataclass\nclass Pack:\n    x: torch.Tensor\n    gain: float = 1.0\n    more: Optional[dict] = None"
    )
    s.source.define("""
class Unpack(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)
    def forward(self, pack: Pack):
        return pack.x * pack.gain + self.conv(pack.more['x'])
""")
    layer = s.module(f"Unpack({s.c})", "unpack")
    return s.feature(f"{layer}(Pack({s.x}, 0.5, dict(x={act(s)}({s.x}))))", s.c)


@block
def own_gradient(s: Scope) -> Feature:
    s.source.define("""
class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()
    @staticmethod
    def backward(ctx, g):
        s = ctx.saved_tensors[0].sigmoid()
        return g * s * (1 + ctx.saved_tensors[0] * (1 - s))
""")
    s.source.define("""
class SwishModule(nn.Module):
    def forward(self, x):
        return Swish.apply(x)
""")
    layer = conv(s, s.c, s.c, 3)
    call = s.pick("Swish.apply", s.module("SwishModule()", "swish"))
    return s.feature(f"{call}({layer}({s.x}))", s.c)


@block
def checkpointed(s: Scope) -> Feature:
    """Without batch norm, whose statistics torch moves twice where it computes a second time."""
    layer, norm = conv(s, s.c, s.c, 3), s.module(f"nn.GroupNorm(1, {s.c})", "gn")
    how = f"checkpoint(lambda t: F.relu({norm}({layer}(t))), {s.x}, use_reentrant=False)"
    return s.feature(how, s.c)


@block
def scripted(s: Scope) -> Feature:
    s.source.define(
        "@torch.jit.script\ndef mish_script(x: torch.Tensor) -> torch.Tensor:\n    return x * F.softplus(x).tanh()"
    )
    return s.feature(f"{conv(s, s.c, s.c, 1)}(mish_script({s.x}))", s.c)


@block
def variable(s: Scope) -> Feature:
    buf = s.buffer(f"torch.rand({s.c}, 1, 1)")
    return s.feature(f"{conv(s, s.c, s.c, 3)}({s.x}) * torch.autograd.Variable({buf})", s.c)


@block
def drop(s: Scope) -> Feature:
    s.source.define("""
class DropPath(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p
    def forward(self, x):
        if self.p == 0.0 or not self.training:
            return x
        keep = 1 - self.p
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep
""")
    s.source.define("""
def drop_connect(x, p, training):
    if not training:
        return x
    keep = 1 - p
    noise = keep + torch.rand([x.shape[0], 1, 1, 1], dtype=x.dtype, device=x.device)
    return x / keep * torch.floor(noise)
""")
    layer = conv(s, s.c, s.c, 3)
    y = f"{act(s)}({layer}({s.x}))"
    how = s.pick(
        f"{s.module('DropPath(0.2)', 'drop')}({y})",
        f"drop_connect({y}, 0.2, self.training)",
        f"F.dropout({y}, 0.2, self.training)",
        f"F.dropout({y}, p=0.1, training=self.training)",
        f"{s.module('nn.Dropout2d(0.2)', 'drop')}({y})",
        f"({y} if not self.training else F.dropout2d({y}, 0.3))",
    )
    return s.feature(f"{s.x} + {how}", s.c)


@block
def two_modes(s: Scope) -> Feature:
    """Train and eval mode compute otherwise, layers included."""
    a, b = conv(s, s.c, s.c, 3), conv(s, s.c, s.c, 1)
    y = s.source.fresh("v")
    s.say("if self.training:", f"    {y} = {a}({s.x}) + {b}({s.x})", "else:", f"    {y} = {a}({s.x}) * 1.5")
    return s.feature(f"F.relu({y})", s.c)


@block
def called_twice(s: Scope) -> Feature:
    s.source.define("""
class Bottleneck(nn.Module):
    def __init__(self, c, inner):
        super().__init__()
        self.down, self.up = nn.Conv2d(c, inner, 1), nn.Conv2d(inner, c, 1)
        self.bn = nn.BatchNorm2d(inner)
    def forward(self, x):
        return x + self.up(F.relu(self.bn(self.down(x))))
""")
    layer = s.module(f"Bottleneck({s.c}, {s.channels()})", "twice")
    if s.chance(0.3):
        s.init.append(f"self.alias = {layer}")
        return s.feature(f"self.alias({layer}({s.x}))", s.c)
    return s.feature(f"{layer}({layer}({s.x}))", s.c)


@block
def hooked(s: Scope) -> Feature:
    layer = conv(s, s.c, s.c, 3)
    how = s.pick(
        "register_forward_hook(lambda module, args, out: out * 2)",
        "register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))",
        "register_forward_hook(lambda module, args, out: None)",
    )
    s.init.append(f"{layer}.{how}")
    return s.feature(f"F.relu({layer}({s.x}))", s.c)


@block
def asks_for_sizes(s: Scope) -> Feature:
    layer = conv(s, s.c, s.c, 3)
    y = s.let(f"{layer}({s.x})")
    b, c, h, w = (s.source.fresh("n") for _ in range(4))
    s.say(f"{b}, {c}, {h}, {w} = {y}.shape", f"assert {c} == {s.c}, 'channels'")
    how = s.pick(
        f"({y}.reshape({b}, {c}, {h} * {w}) * {c} ** -0.5).view({b}, {c}, {h}, {w})",
        f"{y}[:, : {c} // 2].repeat(1, 2, 1, 1)",
        f"({y} if {h} > 2 else {y} * 2)",
        f"{y} / math.sqrt({c})",
        f"{y} * torch.linspace(0, 1, {w}, device={y}.device, dtype={y}.dtype)",
        f"{y} + torch.arange({c}, dtype={y}.dtype).view(1, -1, 1, 1)",
        f"{y}.contiguous().view(-1, {h}, {w}).view({b}, {c}, {h}, {w}) + torch.ones({c}, 1, 1, dtype={y}.dtype)",
        f"{y}.new_ones({b}, {c}, 1, 1) + {y}",
        f"{y}.contiguous().view({b}, -1).view_as({y})",
        f"{y} * {y}.numel() / ({b} * 100.0)",
    )
    odd = "repeat(1, 2" in how and s.c % 2
    return s.feature(y if odd else how, s.c)


@block
def caches(s: Scope) -> Feature:
    """A module that keeps something made from the first input it saw."""
    s.source.define("""
class Grid(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc, self.grid = nn.Conv2d(2, c, 1), None
    def forward(self, x):
        h, w = x.shape[-2:]
        if self.grid is None or self.grid.shape[-2:] != (h, w):
            ys, xs = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing='ij')
            self.grid = torch.stack([ys, xs])[None].to(x)
        return x + self.fc(self.grid.to(x))
""")
    return s.feature(f"{s.module(f'Grid({s.c})', 'grid')}({s.x})", s.c)


@block
def reads_a_setting(s: Scope) -> Feature:
    """A number taken from a buffer."""
    buf = s.buffer("torch.tensor([2.0])")
    layer = conv(s, s.c, s.c, 1)
    how = s.pick(
        f"{layer}({s.x}) * {s.x}.new_full((1,), {buf}[0])",
        f"{layer}({s.x}) * {buf}.item()",
        f"{layer}({s.x}) * float({buf})",
        f"{layer}({s.x}) * {buf}[0]",
    )
    return s.feature(how, s.c)


@block
def looks_at_values(s: Scope) -> Feature:
    """Control flow by the input's values: to be kept whole or refused."""
    s.source.define("""
class Sign(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 1)
    def forward(self, x):
        y = self.conv(x)
        if y.sum() > 0:
            return y
        return y * 0.5
""")
    return s.feature(f"{s.module(f'Sign({s.c})', 'sign')}({s.x})", s.c)


@block
def detached(s: Scope) -> Feature:
    layer = conv(s, s.c, s.c, 3)
    y = s.source.fresh("v")
    if s.chance(0.5):
        s.say("with torch.no_grad():", f"    {y} = {layer}({s.x}).sigmoid()")
    else:
        s.say(f"{y} = {layer}({s.x}).sigmoid().detach()")
    return s.feature(f"{s.x} * {y}", s.c)


@block
def keyed_modules(s: Scope) -> Feature:
    layers = s.module(
        f"nn.ModuleDict({{'a': nn.Conv2d({s.c}, {s.c}, 3, padding=1), 'b': nn.Sequential(nn.Conv2d({s.c}, {s.c}, 1), "
        f"nn.BatchNorm2d({s.c}), nn.ReLU(inplace=True))}})",
        "keyed",
    )
    how = s.pick(
        f"sum(layer({s.x}) for layer in {layers}.values())",
        f"{layers}['b'][:2]({layers}['a']({s.x}))",
        f"{layers}['b'](F.relu({layers}['a']({s.x})))",
        f"{layers}['b'][0]({s.x}) + {layers}.a({s.x})",
    )
    return s.feature(how, s.c)


@block
def labelled_layer(s: Scope) -> Feature:
    """Attributes set on layers from outside, as parsers of configurations do."""
    layer = conv(s, s.c, s.c, 3)
    s.init += [f"{layer}.i, {layer}.f, {layer}.type = 3, -1, 'Conv'"]
    return s.feature(f"F.relu({layer}({s.x}))", s.c)
