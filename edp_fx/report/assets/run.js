// The curves of a run (drawn by uPlot, cursors in step) and the order of the table of layers.
"use strict";

const run = JSON.parse(document.getElementById("data").textContent);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const charts = [];

// Several curves with steps of their own on one axis: uPlot wants one column of steps and gaps elsewhere.
const joined = (...curves) => uPlot.join(curves.map(([steps, ...values]) => [steps, ...values]), curves.map((curve) => curve.slice(1).map(() => 2)));

function series(label, name, more = {}) {
  return { label, stroke: () => colour(name), width: 2, points: { show: false }, value: (_, v) => (v == null ? "–" : Number(v.toPrecision(4))), ...more };
}

function chart(id, data, lines, range, hooks = {}) {
  const box = document.getElementById(id);
  if (!box) return;
  const axis = { stroke: () => colour("soft"), grid: { stroke: () => colour("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const options = {
    width: box.clientWidth, height: 220, cursor: { sync: { key: "run" }, drag: { x: true, y: false } },
    scales: { x: { time: false }, y: { range } }, hooks,
    axes: [{ ...axis, space: 60 }, { ...axis, size: 46, values: (_, all) => all.map((v) => (v == null ? "" : String(Number(v.toPrecision(3))))) }],
    series: [{ label: "step" }, ...lines],
  };
  charts.push([box, new uPlot(options, data, box)]);
}

const { compressed, dense, events } = run;
const upTo = (top) => (_, low, high) => [Math.min(0, low ?? 0), Math.max(top ?? 0, (high ?? 1) * 1.05)];

function drawLoss() {
  const curves = [[compressed.loss.step, compressed.loss.loss, compressed.loss.smooth]];
  const lines = [series("each step", "grey", { width: 1 }), series("compressed", "accent")];
  if (dense.loss.step.length) {
    curves.push([dense.loss.step, dense.loss.smooth]);
    lines.push(series("dense", "warn"));
  }
  chart("loss", joined(...curves), lines, upTo());
}

function drawAccuracy() {
  const points = { show: true, size: 6 };
  const curve = (from) => [[0, ...from.epochs.map((one) => one.step)], [null, ...from.epochs.map((one) => one.val_metric ?? null)]];
  const curves = [curve(compressed)], lines = [series("compressed", "accent", { points })];
  if (dense.epochs.length) {
    curves.push(curve(dense));
    lines.push(series("dense", "warn", { points }));
  }
  const above = (high) => (high <= 1 ? Math.min(1, high + 0.02) : 1.02 * high);
  chart("accuracy", joined(...curves), lines, (_, low, high) => [Math.max(0, (low ?? 0) - 0.05), above(high ?? 1)]);
}

function drawCost() {
  const decided = events.filter((event) => event.event === "decision"), shrunk = events.filter((event) => event.event === "shrink");
  const stepped = uPlot.paths.stepped({ align: 1 });
  // The cost written with a step is that after it; before the first one the network is whole.
  const steps = [0, ...compressed.loss.step], cost = [1, ...compressed.loss.cost];
  const curves = [[steps, cost]], lines = [series("now", "accent", { paths: stepped })];
  if (decided.length) {
    curves.push([[0, ...decided.map((event) => event.step)], [1, ...decided.map((event) => event.goal ?? null)]]);
    lines.push(series("decided", "warn", { paths: stepped, dash: [5, 4] }));
  }
  const hooks = {
    draw: [(plot) => {
      const { ctx, bbox } = plot;
      ctx.save();
      ctx.lineWidth = devicePixelRatio;
      if (run.target !== null) {
        const y = plot.valToPos(run.target, "y", true);
        ctx.strokeStyle = colour("good");
        ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
        ctx.beginPath(); ctx.moveTo(bbox.left, y); ctx.lineTo(bbox.left + bbox.width, y); ctx.stroke();
        ctx.fillStyle = colour("good");
        ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
        ctx.textAlign = "right";
        ctx.fillText(`budget ${run.target}`, bbox.left + bbox.width - 2, y + 13 * devicePixelRatio);
        ctx.setLineDash([]);
      }
      ctx.fillStyle = colour("accent");
      for (const event of shrunk) {
        const x = plot.valToPos(event.step, "x", true), y = plot.valToPos(event.cost, "y", true);
        ctx.beginPath(); ctx.arc(x, y, 3.5 * devicePixelRatio, 0, 7); ctx.fill();
      }
      ctx.restore();
    }],
  };
  chart("cost", joined(...curves), lines, upTo(1.02), hooks);
}

drawLoss();
drawAccuracy();
drawCost();
addEventListener("resize", () => charts.forEach(([box, plot]) => plot.setSize({ width: box.clientWidth, height: 220 })));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach(([, plot]) => plot.redraw()));

for (const table of document.querySelectorAll("table[data-sort]")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], first = [...body.rows];
  const key = (row, place) => {
    const text = row.cells[place].textContent, number = parseFloat(text.split("→").pop().replace(/,/g, ""));
    return Number.isNaN(number) ? text : number;
  };
  heads.forEach((head, place) => head.querySelector("button")?.addEventListener("click", () => {
    const next = { none: "descending", descending: "ascending", ascending: "none" }[head.getAttribute("aria-sort") ?? "none"];
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", next);
    const sign = next === "descending" ? -1 : 1;
    const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
    body.append(...(next === "none" ? first : [...first].sort((a, b) => sign * compare(key(a, place), key(b, place)))));
  }));
}
document.body.dataset.ready = "1";
