// The page: one graph, its groups, a search, and what a chosen layer or group is tied to.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { nodes, groups } = data;
const byName = new Map(nodes.map((node, k) => [node.name, k]));
const groupOf = new Map(groups.map((group) => [group.id, group]));
const $ = (id) => document.getElementById(id);
const chart = $("chart");

// Text always goes in as text: names of models, layers and nodes are data.
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const percent = (share) => (share >= 0.0995 ? `${(100 * share).toFixed(0)}%` : share >= 0.0005 ? `${(100 * share).toFixed(1)}%` : share > 0 ? "<0.1%" : "");
const bare = (op) => op.replace(/^aten\./, "").replace(/\.[A-Za-z_]*$/, "");

const hues = new Map(Object.entries(data.hues).map(([id, hue]) => [Number(id), hue]));
function paint(element, id) {
  element.classList.remove("hue", "grey", "plain");
  if (id === undefined) element.classList.add("plain");
  else if (hues.has(id)) {
    element.classList.add("hue");
    element.style.setProperty("--hue", hues.get(id).toFixed(1));
  } else element.classList.add("grey");
  return element;
}

const state = { everything: false, rows: true, chosen: null, picture: null, drawn: new Map(), edges: [], size: null };
const view = new Viewport(chart, $("scene"), (k) => {
  chart.classList.toggle("far", k < 0.5);
  chart.classList.toggle("farther", k < 0.26);
});

// ---- drawing --------------------------------------------------------------------------------------------

async function show() {
  document.body.removeAttribute("data-ready");
  const detail = state.everything ? "all" : "layers", arrangement = state.rows ? "rows" : "line";
  await putScene(`scene-${detail}-${arrangement}`);
  refresh();
}

function refresh() {
  Object.assign(state, { picture: outline(nodes, state.everything) }, readScene(byName));
  fitAll();
  choose(state.chosen, false);
  document.body.dataset.ready = "1";
}

function fitAll() {
  if (!state.size) return;
  const { width, height } = state.size;
  if (state.rows || width / height < 4) return view.fit({ x: 0, y: 0, width, height });
  view.fit({ x: 0, y: 0, width: Math.min(width, height * 8), height }, 1);
}

function press(on, off, change) {
  $(on).addEventListener("click", () => {
    if ($(on).getAttribute("aria-pressed") === "true") return;
    $(on).setAttribute("aria-pressed", "true");
    $(off).setAttribute("aria-pressed", "false");
    change();
    show();
  });
}
press("show-layers", "show-all", () => (state.everything = false));
press("show-all", "show-layers", () => (state.everything = true));
press("wrap-rows", "wrap-none", () => (state.rows = true));
press("wrap-none", "wrap-rows", () => (state.rows = false));
$("zoom-in").addEventListener("click", () => view.zoom(1.4));
$("zoom-out").addEventListener("click", () => view.zoom(1 / 1.4));
$("zoom-fit").addEventListener("click", fitAll);

// ---- choosing -------------------------------------------------------------------------------------------

const titleOf = (k) => (["call_module", "get_attr"].includes(nodes[k].kind) ? nodes[k].layer : nodes[k].name);
const home = (k) => state.picture.into[k];
const partsOf = (k) => state.picture?.folded.get(home(k)) ?? [k];

// Groups of a drawn node: group -> the roles its parameters (and those folded into it) play.
function rolesOf(k) {
  const found = new Map();
  for (const part of partsOf(k))
    for (const [id, roles] of Object.entries(nodes[part].roles)) {
      if (!found.has(Number(id))) found.set(Number(id), new Set());
      roles.forEach((role) => found.get(Number(id)).add(role));
    }
  return found;
}

const RANK = { producer: 0, consumer: 1, affine: 2, other: 3 };
function cardsOf(k) {
  const own = new Map(Object.entries(nodes[k].roles).map(([id, roles]) => [Number(id), new Set(roles)]));
  const roles = own.size ? own : rolesOf(k);
  const first = (set) => Math.min(...[...set].map((role) => RANK[role]));
  const sorted = [...roles].sort((a, b) => first(a[1]) - first(b[1]) || a[0] - b[0]);
  for (const [id] of nodes[k].carries) if (!roles.has(id) && groupOf.has(id)) sorted.push([id, new Set()]);
  return sorted;
}

function emphasise(ids, me) {
  chart.classList.toggle("focus", Boolean(ids.length || me !== undefined));
  for (const [k, { element }] of state.drawn) {
    const roles = ids.length ? rolesOf(k) : new Map();
    const member = ids.some((id) => roles.has(id));
    const carries = !member && partsOf(k).some((part) => nodes[part].carries.some(([id]) => ids.includes(id)));
    element.classList.toggle("on", member);
    element.classList.toggle("by", carries);
    element.classList.toggle("me", k === me);
    if (k === me) element.classList.add("on");
  }
  for (const { element, via } of state.edges) element.classList.toggle("on", nodes[via].carries.some(([id]) => ids.includes(id)));
}

// What is chosen: null, {node: index} or {group: id}.
function choose(what, move = true) {
  state.chosen = what;
  const detail = $("detail"), hash = what === null ? "" : what.node !== undefined ? `#node=${encodeURIComponent(nodes[what.node].name)}` : `#group=${what.group}`;
  if (location.hash !== hash) history.replaceState(null, "", hash || location.pathname + location.search);
  detail.hidden = what === null;
  $("legend").hidden = what !== null;
  if (what === null) {
    if (state.picture) emphasise([]);
    return;
  }
  if (what.group !== undefined) {
    detail.replaceChildren(...groupPanel(what.group));
    if (state.picture) emphasise([what.group]);
  } else {
    const cards = cardsOf(what.node);
    detail.replaceChildren(...nodePanel(what.node, cards));
    if (state.picture) {
      const made = cards.filter(([, roles]) => roles.has("producer"));
      emphasise((made.length ? made : cards.slice(0, 1)).map(([id]) => id), home(what.node));
    }
  }
  if (move) {
    document.querySelector(".side").scrollTop = 0;
    const target = what.node !== undefined && state.picture ? state.drawn.get(home(what.node)) : null;
    if (target) view.reveal(target.box);
  }
}

// ---- the panel ------------------------------------------------------------------------------------------

const layerIndex = new Map();
nodes.forEach((node, k) => { if (node.layer && !layerIndex.has(node.layer)) layerIndex.set(node.layer, k); });
function nodeFor(layer) {
  for (let path = layer; path; path = path.includes(".") ? path.slice(0, path.lastIndexOf(".")) : "") if (layerIndex.has(path)) return layerIndex.get(path);
  return undefined;
}
function link(text, k) {
  if (k === undefined || (nodes[k].into < 0 && !nodes[k].shapes.length)) return el("span", { class: "mono" }, text);
  return el("button", { class: "link mono", onclick: () => choose({ node: k }) }, text);
}

// A list that begins with a few and unfolds.
function chips(items, most = 12) {
  const box = el("div", { class: "chips" }, ...items.slice(0, most));
  if (items.length > most) {
    const more = el("button", { class: "more", onclick: () => box.replaceChildren(...items) }, `and ${items.length - most} more`);
    box.append(more);
  }
  return box;
}

function head(title, sub) {
  return [
    el("div", { class: "head" }, el("h2", {}, title), el("button", { onclick: () => choose(null) }, "All groups")),
    ...sub.map((line) => el("p", { class: "soft" }, line)),
  ];
}

function nodePanel(k, cards) {
  const node = nodes[k], parts = partsOf(k).filter((part) => part !== k && nodes[part].op !== "Identity");
  const shape = node.shapes.map((one) => one.join(" × ")).join(", ");
  const sub = [`${node.kind === "call_module" ? node.op : `operation ${node.op}`}${shape ? `, gives ${shape}` : ""}${node.macs_share ? `, ${percent(node.macs_share)} of MACs` : ""}`];
  const made = head(titleOf(k), sub);
  if (home(k) !== k && home(k) >= 0) made.push(el("p", { class: "soft" }, "Drawn as part of ", link(titleOf(home(k)), home(k))));
  else if (parts.length) made.push(chips([el("span", { class: "soft" }, "Drawn with it:"), ...parts.map((part) => link(nodes[part].kind === "call_module" ? `${nodes[part].layer} ${nodes[part].op}` : nodes[part].layer || nodes[part].op, part))], 7));
  if (!cards.length) made.push(el("p", { class: "soft" }, "No group of channels has a parameter here."));
  const makes = cards.some(([, roles]) => roles.has("producer"));
  cards.forEach(([id, roles], place) => made.push(card(groupOf.get(id), roles, makes ? roles.has("producer") : place === 0)));
  return made;
}

function groupPanel(id) {
  const group = groupOf.get(id);
  return [...head(`Group ${id}`, []), card(group, null, true)];
}

const KIND = { channel: "channels", rank: "ranks", head: "heads" };
function size(group) {
  return group.prunable ? `${group.size} ${KIND[group.kind] ?? group.kind}` : "frozen";
}

const DOES = { producer: "makes", consumer: "reads", affine: "scales and shifts", other: "holds" };
function card(group, roles, open) {
  const does = roles === null ? "" : roles.size ? [...roles].sort((a, b) => RANK[a] - RANK[b]).map((role) => DOES[role]).join(", ") : "passes on";
  const status = group.frozen !== null ? "frozen" : group.exact ? "exact" : "inexact";
  const why = {
    frozen: group.frozen,
    exact: "removing those whose parameters are zero changes nothing",
    inexact: [...new Set(group.inexact_reasons)].join("; "),
  }[status];
  const rows = [];
  const row = (name, ...content) => rows.push(el("dt", {}, name), el("dd", {}, ...content));
  row("Removal", el("span", { class: `tag ${status}` }, status === "frozen" ? "frozen" : status === "exact" ? "exact" : "not exact"), ` ${why}`);
  if (group.prunable) row("Share", `${percent(group.macs_share) || "0%"} of MACs, ${percent(group.params_share) || "0%"} of parameters`);
  const layers = (names) => chips(names.map((name) => link(name, nodeFor(name))));
  if (group.producers.length) row("Made by", layers(group.producers));
  if (group.consumers.length) row("Read by", layers(group.consumers));
  if (group.ties.length) {
    const by = new Map();
    for (const { node, op } of group.ties) by.set(bare(op), (by.get(bare(op)) ?? new Set()).add(node));
    row("Tied by", ...[...by].map(([op, at]) => chips([el("span", {}, `${op} at`), ...[...at].map((name) => link(titleOf(byName.get(name)), byName.get(name)))], 6)));
  }
  const box = el(
    "details", { class: `card ${status}`, open, "data-group": group.id },
    el("summary", {}, does ? el("span", { class: "does" }, `${does} `) : null, `group ${group.id}: ${size(group)}`),
    el("dl", {}, ...rows), memberTable(group),
  );
  box.querySelector("summary").addEventListener("mouseenter", () => emphasise([group.id], state.chosen?.node === undefined ? undefined : home(state.chosen.node)));
  return paint(box, group.id);
}

let membersOf = null; // by group, unpacked when first asked for
function memberTable(group) {
  const box = el("details", { class: "members" }, el("summary", {}, `${group.axes} parameter ${group.axes === 1 ? "axis" : "axes"}`));
  box.addEventListener("toggle", async () => {
    membersOf ??= unpack("members").then(JSON.parse);
    const members = (await membersOf)[group.id];
    if (box.children.length > 1) return;
    const rows = members.map((member) => el("tr", {}, el("td", { class: "mono" }, member.parameter), el("td", {}, String(member.axis)), el("td", {}, member.role), el("td", { class: "mono" }, `${member.indices} of ${member.length}`)));
    box.append(el("div", { class: "wide" }, el("table", {}, el("thead", {}, el("tr", {}, ...["parameter", "axis", "role", "indices"].map((name) => el("th", {}, name)))), el("tbody", {}, ...rows))));
  });
  return box;
}

// ---- legend and search ----------------------------------------------------------------------------------

const shown = groups.filter((group) => group.producers.length || group.prunable);
function legend(byCost) {
  const sorted = byCost ? [...shown].sort((a, b) => b.macs_share - a.macs_share) : shown;
  const order = (label, value) => el("button", { "aria-pressed": String(byCost === value), onclick: () => legend(value) }, label);
  $("legend").replaceChildren(
    el("div", { class: "bar" }, el("h2", {}, "Groups"), el("div", { class: "switch", role: "group", "aria-label": "Order" }, order("in order", false), order("by MACs", true))),
    el("div", { class: "rows" }, ...sorted.map((group) => paint(
      el("button", { class: "row", "data-group": group.id, title: `${group.name}: ${group.status}`, onclick: () => choose({ group: group.id }), onmouseenter: () => state.picture && emphasise([group.id]), onmouseleave: () => state.picture && state.chosen === null && emphasise([]) },
        el("span", { class: "swatch" }), el("span", { class: "name mono" }, short(group.name, 30)), el("span", { class: "size" }, group.prunable ? `${group.size}${group.exact ? "" : " not exact"}` : "frozen"), el("span", { class: "share" }, group.prunable ? percent(group.macs_share) : "")),
      group.id))),
  );
}

function summary() {
  const s = data.summary, frozen = data.frozen_reasons;
  const parts = [`${s.groups} prunable groups. ${percent(s.prunable_share) || "0%"} of ${s.channels.toLocaleString("en")} output channels can be removed, ${percent(s.exact_share) || "0%"} of them exactly.`];
  if (frozen.length) parts.push(` Frozen: ${frozen.slice(0, 2).map(([why, count]) => `${count.toLocaleString("en")} (${why})`).join("; ")}${frozen.length > 2 ? ` and for ${frozen.length - 2} other reasons` : ""}.`);
  $("summary").textContent = parts.join("");
}

const search = $("search"), found = $("found");
function matches(text) {
  const low = text.trim().toLowerCase();
  if (!low) return [];
  const hits = [];
  nodes.forEach((node, k) => {
    const name = node.layer || node.name;
    if ((node.into < 0 && !node.shapes.length) || !(name.toLowerCase().includes(low) || node.name.toLowerCase() === low)) return;
    hits.push({ rank: (name.toLowerCase() === low ? 0 : 2) + (node.into === k ? 0 : 1), text: name, what: node.op, go: { node: k } });
  });
  const id = /^(?:group |#)?(\d+)$/.exec(low);
  if (id && groupOf.has(Number(id[1]))) hits.push({ rank: 1, text: `group ${id[1]}`, what: groupOf.get(Number(id[1])).name, go: { group: Number(id[1]) } });
  return hits.sort((a, b) => a.rank - b.rank).slice(0, 40);
}
let hits = [], at = 0;
function suggest() {
  hits = matches(search.value);
  at = 0;
  found.hidden = !search.value.trim();
  found.replaceChildren(...(hits.length
    ? hits.map((hit, k) => el("li", {}, el("button", { class: k === at ? "at" : "", onclick: () => take(k) }, el("span", { class: "mono" }, hit.text), el("span", { class: "what" }, hit.what))))
    : [el("li", { class: "none" }, "Nothing has this name.")]));
}
function take(k) {
  if (!hits[k]) return;
  choose(hits[k].go);
  search.blur();
  found.hidden = true;
}
search.addEventListener("input", suggest);
search.addEventListener("focus", suggest);
search.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step && hits.length) {
    event.preventDefault();
    at = (at + step + hits.length) % hits.length;
    [...found.querySelectorAll("button")].forEach((button, k) => { button.classList.toggle("at", k === at); if (k === at) button.scrollIntoView({ block: "nearest" }); });
  } else if (event.key === "Enter") take(at);
});
document.addEventListener("pointerdown", (event) => { if (!event.target.closest(".find")) found.hidden = true; });

// ---- the chart's own events -----------------------------------------------------------------------------

const hit = (event) => event.target.closest?.(".node");
chart.addEventListener("click", (event) => {
  const node = hit(event);
  choose(node ? { node: byName.get(node.dataset.node) } : null, false);
  if (node) document.querySelector(".side").scrollTop = 0;
});
chart.addEventListener("pointermove", (event) => {
  const node = hit(event), tip = $("tip");
  tip.hidden = !node || event.buttons > 0;
  if (tip.hidden) return;
  const k = byName.get(node.dataset.node), carried = nodes[k].carries, sub = [nodes[k].op, nodes[k].shapes.length ? shapeText(nodes[k].shapes[0]) : ""].filter(Boolean).join("  ");
  tip.textContent = `${titleOf(k)}  ${sub}${carried.length ? `, ${carried.length > 3 ? `${carried.length} groups` : carried.map(([id]) => `group ${id}`).join(", ")}` : ""}`;
  const box = chart.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  tip.style.left = `${Math.max(0, Math.min(x + 14, box.width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.min(y + 16, box.height - tip.offsetHeight - 4)}px`;
});
chart.addEventListener("pointerleave", () => ($("tip").hidden = true));
document.addEventListener("keydown", (event) => {
  if (event.target === search) { if (event.key === "Escape") { search.blur(); found.hidden = true; } return; }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const does = { "/": () => { search.focus(); search.select(); }, Escape: () => choose(null), f: fitAll, "+": () => view.zoom(1.4), "=": () => view.zoom(1.4), "-": () => view.zoom(1 / 1.4) }[event.key];
  if (does) { event.preventDefault(); does(); }
});

function fromHash() {
  const [, kind, value] = /^#(node|group)=(.*)$/.exec(location.hash) ?? [];
  if (kind === "group" && groupOf.has(Number(value))) state.chosen = { group: Number(value) };
  else if (kind === "node") {
    let name = value;
    try { name = decodeURIComponent(value); } catch { /* as it stands */ }
    const k = byName.get(name) ?? layerIndex.get(name);
    if (k !== undefined) state.chosen = { node: k };
  }
}
summary();
legend(false);
fromHash();
chart.removeAttribute("viewBox"); // which shows all of it where no script runs
refresh();
if (state.chosen) choose(state.chosen);
