// What is drawn, where (the Eclipse Layout Kernel decides, in a worker), and as which SVG elements.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function svgNode(tag, attributes, parent) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
}

// Nodes and edges of one level of detail. `folded`: drawn node -> all nodes it stands for.
function outline(nodes, everything) {
  const into = nodes.map((node, k) => (everything ? (node.into < 0 && !node.shapes.length ? -1 : k) : node.into));
  const folded = new Map(), edges = new Map();
  into.forEach((home, k) => {
    if (home < 0) return;
    if (!folded.has(home)) folded.set(home, []);
    folded.get(home).push(k);
    for (const source of nodes[k].in) {
      const from = into[source];
      if (from >= 0 && from !== home) edges.set(`${from} ${source} ${home}`, { from, via: source, to: home });
    }
  });
  return { into, folded, edges: [...edges.values()] };
}

const shapeText = (shape) => shape.slice(1).join("×") || "1";

// The last parts of a path, so that the most are kept that fit.
function short(name, most) {
  let rest = name;
  while (rest.length > most && rest.includes(".")) rest = rest.slice(rest.indexOf(".") + 1);
  if (rest.length > most) rest = rest.slice(-most);
  return rest === name ? name : `…${rest}`;
}

function labels(node) {
  const module = node.kind === "call_module";
  const shape = node.shapes.length ? shapeText(node.shapes[0]) : "";
  return { main: module || node.kind === "get_attr" ? short(node.layer, 24) : node.op, sub: [module ? node.op : "", shape].filter(Boolean).join("  ") };
}

const ruler = document.createElement("canvas").getContext("2d");
function widthOf(text, font) {
  ruler.font = `${font} system-ui, "Segoe UI", "Liberation Sans", sans-serif`;
  return ruler.measureText(text).width;
}

async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

let kernel = null;
async function layout(nodes, picture, aspect, rows) {
  kernel ??= unpack("elk-worker").then((code) => {
    const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    return new ELK({ workerUrl: url, algorithms: ["layered"] });
  });
  const options = {
    "elk.algorithm": "layered", "elk.direction": "RIGHT", "elk.edgeRouting": "ORTHOGONAL",
    "elk.layered.considerModelOrder.strategy": "NODES_AND_EDGES", "elk.spacing.nodeNode": "16",
    "elk.layered.spacing.nodeNodeBetweenLayers": "26", "elk.spacing.edgeNode": "12", "elk.spacing.edgeEdge": "8",
    "elk.layered.spacing.edgeNodeBetweenLayers": "12", "elk.layered.spacing.edgeEdgeBetweenLayers": "8",
    "elk.layered.mergeEdges": "false",
  };
  if (rows) Object.assign(options, {
    "elk.layered.wrapping.strategy": "MULTI_EDGE", "elk.aspectRatio": String(aspect),
    "elk.layered.wrapping.additionalEdgeSpacing": "24",
  });
  const children = [...picture.folded.keys()].map((k) => {
    const { main, sub } = labels(nodes[k]);
    const width = Math.ceil(Math.max(widthOf(main, "600 12.5px"), widthOf(sub, "10.5px"), 34) + 20);
    return { id: String(k), width, height: sub ? 42 : 30 };
  });
  const edges = picture.edges.map((edge, k) => ({ id: `e${k}`, sources: [String(edge.from)], targets: [String(edge.to)] }));
  return (await kernel).layout({ id: "all", layoutOptions: options, children, edges });
}

// A path through the bend points with rounded corners.
function rounded(section) {
  const points = [section.startPoint, ...(section.bendPoints ?? []), section.endPoint];
  let path = `M${points[0].x} ${points[0].y}`;
  for (let k = 1; k < points.length - 1; k++) {
    const [a, b, c] = [points[k - 1], points[k], points[k + 1]];
    const toward = (p) => {
      const far = Math.hypot(p.x - b.x, p.y - b.y) || 1, r = Math.min(7, far / 2);
      return `${b.x + ((p.x - b.x) * r) / far} ${b.y + ((p.y - b.y) * r) / far}`;
    };
    path += `L${toward(a)}Q${b.x} ${b.y} ${toward(c)}`;
  }
  const end = points[points.length - 1];
  return `${path}L${end.x} ${end.y}`;
}

// Fill the scene; gives node index -> its element and box, and the edge elements in the order of picture.edges.
function draw(nodes, picture, placed, paint) {
  const layers = { nodes: document.createDocumentFragment(), edges: document.createDocumentFragment() };
  const drawn = new Map();
  for (const box of placed.children) {
    const k = Number(box.id), node = nodes[k], { main, sub } = labels(node);
    const layer = node.kind === "call_module" && Object.keys(node.roles).length;
    const group = svgNode("g", { class: `node ${layer ? "layer" : "op"}`, transform: `translate(${box.x} ${box.y})`, "data-node": node.name }, layers.nodes);
    if (node.layer) group.dataset.layer = node.layer;
    const carried = node.carries, total = carried.reduce((sum, [, count]) => sum + count, 0);
    paint(group, carried.length === 1 || layer ? carried[0]?.[0] : undefined);
    svgNode("rect", { class: "box", width: box.width, height: box.height, rx: layer ? 6 : box.height / 2 }, group);
    if (carried.length > 1) {
      let x = 12;
      for (const [id, count] of carried) {
        const width = ((box.width - 24) * count) / total;
        paint(svgNode("rect", { class: "piece", x, y: box.height - 7, width: Math.max(width - 0.5, 0.5), height: 4 }, group), id);
        x += width;
      }
    }
    const middle = box.width / 2, lift = carried.length > 1 ? 3 : 0;
    svgNode("text", { class: sub ? "main two" : "main", x: middle, y: (sub ? 18 : 20) - lift, "text-anchor": "middle" }, group).textContent = main;
    if (sub) svgNode("text", { class: "sub", x: middle, y: 33 - lift, "text-anchor": "middle" }, group).textContent = sub;
    drawn.set(k, { element: group, box });
  }
  const edges = placed.edges.map((edge, k) => {
    const path = svgNode("path", { class: "edge", d: (edge.sections ?? []).map(rounded).join("") }, layers.edges);
    const carried = nodes[picture.edges[k].via].carries;
    paint(path, carried.length === 1 ? carried[0][0] : undefined);
    return path;
  });
  document.getElementById("edges").replaceChildren(layers.edges);
  document.getElementById("nodes").replaceChildren(layers.nodes);
  return { drawn, edges };
}
