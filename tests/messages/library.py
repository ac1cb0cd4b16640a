"""Python that is wrong, by what it is about."""

from __future__ import annotations

LIBRARY: dict[str, tuple[str, ...]] = {
    "Trace, insert, analyze": (
        "edp_fx.trace(model, 'image')",
        "edp_fx.trace(model, ())",
        "edp_fx.trace(model, torch.randn(2, 5, 32, 32))",
        "edp_fx.trace(model, {'x': x})",
        "edp_fx.trace(3, x)",
        "edp_fx.trace(torch.jit.script(nn.Linear(3, 2)), torch.randn(2, 3))",
        "edp_fx.insert(model)",
        "edp_fx.insert(edp_fx.trace(model, x), rank=0)",
        "edp_fx.insert(edp_fx.trace(model, x), ranks=3)",
        "edp_fx.insert(edp_fx.trace(model, x), start='zero')",
        "edp_fx.insert(edp_fx.trace(model, x), types=('conv4d',))",
        "edp_fx.analyze(model, 'image')",
        "edp_fx.analyze(model, x, heads='some')",
        "edp_fx.analyze(model, x).explain('conv9')",
        "edp_fx.analyze(model, x).group(999)",
    ),
    "Parts of a model": (
        "edp_fx.trace_parts('model', x)",
        "edp_fx.trace_parts(model, 'image')",
        "edp_fx.trace_parts(model, x, parts=('neck',))",
        "edp_fx.trace_parts(nn.Sequential(nn.Flatten()), x)",
        "edp_fx.trace_parts(edp_fx.trace_parts(model, x).model, x)",
        """
        parts = edp_fx.trace_parts(model, x)
        parts.put(edp_fx.trace(model, x))
        """,
    ),
    "Method and budget": (
        "edp_fx.Budget()",
        "edp_fx.Budget(macs=0.5, params=0.5)",
        "edp_fx.Budget(macs=-1)",
        "edp_fx.Budget(macs='half')",
        "edp_fx.Method(kinds='channel')",
        "edp_fx.Method(kinds=('chanel',))",
        "edp_fx.Method(align=0)",
        "edp_fx.Method(floor=1.5)",
        "edp_fx.Method.preset('best')",
        "edp_fx.Method.preset('scratch', flor=0.1)",
    ),
    "A loop of one's own": (
        "edp_fx.Compressor(model, x, macs=0.5)",
        "edp_fx.Compressor(edp_fx.trace(model, x), x)",
        "edp_fx.Compressor(edp_fx.trace(model, x), x, macs=0.5, kindz=())",
        "edp_fx.Compressor(edp_fx.trace(model, x), x, macs=0.0001, total_steps=9)",
        "edp_fx.Compressor(edp_fx.trace(model, x), x, macs=0.5, total_steps=-1)",
        "edp_fx.Compressor(edp_fx.trace(model, x), x, macs=0.5).finish()",
        """
        other = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
        edp_fx.Compressor(edp_fx.trace(model, x), x, macs=0.5, optimizer=other, total_steps=9)
        """,
        """
        gm = edp_fx.trace(model, x)
        o = torch.optim.SGD(gm.parameters(), lr=0.1)
        c = edp_fx.Compressor(gm, x, macs=0.5, optimizer=o, total_steps=100)
        gm(x).sum().backward(); o.step(); c.step()
        c.finish()
        """,
        """
        gm = edp_fx.trace(model, x)
        o = torch.optim.SGD(gm.parameters(), lr=0.1)
        c = edp_fx.Compressor(gm, x, macs=0.5, optimizer=o, total_steps=4)
        for _ in range(4):
            c.step()
        c.finish()
        """,
    ),
    "compress()": (
        "edp_fx.compress(model, batches, macs=0.5)",
        "edp_fx.compress(model, batches, epochs=1)",
        "edp_fx.compress(model, batches, epochs=-1, macs=0.5)",
        "edp_fx.compress(model, batches, epochs=1, macs=0.5, method='fastest')",
        "edp_fx.compress(model, batches, epochs=1, macs=0.5, kindz=('channel',))",
        "edp_fx.compress(model, None, epochs=1, macs=0.5)",
        "edp_fx.compress(model, [], epochs=1, macs=0.5)",
        "edp_fx.compress(model, (one for one in batches), epochs=1, macs=0.5)",
        "edp_fx.compress(model, [{'image': x}], epochs=1, macs=0.5)",
        "edp_fx.compress(model, [(x, torch.tensor([0, 9]))], epochs=1, macs=0.5)",
        "edp_fx.compress(model, [(x, torch.tensor([0.5, 0.5]))], epochs=1, macs=0.5)",
        "edp_fx.compress(nn.Conv2d(3, 4, 3), [(x, torch.tensor([0, 1]))], epochs=1, macs=0.5)",
        "edp_fx.compress(model, batches, epochs=1, macs=0.5, loss='cross entropy')",
        "edp_fx.compress(model, batches, epochs=1, macs=0.5, loss=lambda outputs, targets: outputs)",
        "edp_fx.compress(model, batches, epochs=1, macs=0.5, loss=lambda outputs: outputs.sum())",
        "edp_fx.compress(model, batches, epochs=1, macs=0.5, val_loader=batches, metric=lambda o, t: 1 / 0)",
        "edp_fx.compress(model, batches, epochs=0, macs=0.5, loss=nn.functional.cross_entropy)",
        "edp_fx.compress(model, batches, epochs=1, macs=0.5, resume=True)",
    ),
    "Save, load, lower, measure": (
        "edp_fx.save(model, 'new')",
        "edp_fx.save(edp_fx.trace(model, x), 'mine.py')",
        "edp_fx.save(edp_fx.trace(model, x), 'new.pt2')",
        "edp_fx.load('nowhere')",
        "edp_fx.load('cut')",
        "edp_fx.load('edited')",
        "edp_fx.load('saved/weights.safetensors')",
        "edp_fx.lower(model, x, 'nowhere/x.onnx', target='onnx')",
        "edp_fx.lower(model, x, 'x.onnx', target='tensorflow')",
        "edp_fx.lower(model, x, 'x.onnx', target='onnx', precision='fp8')",
        "edp_fx.lower(model, 'image', 'x.onnx', target='onnx')",
        "edp_fx.measure(model, 'image')",
        "edp_fx.measure(model, torch.randn(2, 5, 32, 32))",
        "edp_fx.prune_and_merge(model, x)",
        "edp_fx.prune_and_merge(edp_fx.trace(model, x), x, cost='time')",
    ),
}
