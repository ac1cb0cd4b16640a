// The drawings that were made when the page was written: the one that is shown, and the others, packed.
"use strict";

// What a level of detail draws: `into`, the drawn node of each node; `folded`, drawn node -> all nodes it stands for.
function outline(nodes, everything) {
  const into = nodes.map((node, k) => (everything ? (node.into < 0 && !node.shapes.length ? -1 : k) : node.into));
  const folded = new Map();
  into.forEach((home, k) => {
    if (home < 0) return;
    if (!folded.has(home)) folded.set(home, []);
    folded.get(home).push(k);
  });
  return { into, folded };
}

const shapeText = (shape) => shape.slice(1).join("×") || "1";

// The last parts of a path, so that the most are kept that fit.
function short(name, most) {
  let rest = name;
  while (rest.length > most && rest.includes(".")) rest = rest.slice(rest.indexOf(".") + 1);
  if (rest.length > most) rest = rest.slice(-most);
  return rest === name ? name : `…${rest}`;
}

async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

// Put a drawing into the scene in place of the one there, which is kept.
const kept = new Map();
async function putScene(id) {
  const scene = document.getElementById("scene"), edges = document.getElementById("edges"), drawn = document.getElementById("nodes");
  if (scene.dataset.view === id) return;
  const now = { width: scene.dataset.width, height: scene.dataset.height, edges: [...edges.children], nodes: [...drawn.children] };
  kept.set(scene.dataset.view, now);
  if (kept.has(id)) {
    const { width, height, edges: lines, nodes } = kept.get(id);
    edges.replaceChildren(...lines);
    drawn.replaceChildren(...nodes);
    Object.assign(scene.dataset, { view: id, width, height });
  } else {
    const { width, height, edges: lines, nodes } = JSON.parse(await unpack(id));
    edges.innerHTML = lines; // SVG that the page's writer made; the names in it are escaped
    drawn.innerHTML = nodes;
    Object.assign(scene.dataset, { view: id, width, height });
  }
}

// What the scene shows: its size, node index -> its element and box, and the lines with the node whose result they carry.
function readScene(byName) {
  const scene = document.getElementById("scene"), drawn = new Map();
  for (const element of document.getElementById("nodes").children) {
    const place = element.transform.baseVal[0].matrix, rect = element.firstElementChild;
    const box = { x: place.e, y: place.f, width: rect.width.baseVal.value, height: rect.height.baseVal.value };
    drawn.set(byName.get(element.dataset.node), { element, box });
  }
  const edges = [...document.getElementById("edges").children].map((element) => ({ element, via: Number(element.dataset.via) }));
  return { size: { width: Number(scene.dataset.width), height: Number(scene.dataset.height) }, drawn, edges };
}
