"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const state = { query: 0, step: 0, first: "", second: "" };
const element = (id) => document.getElementById(id);

// Pictures

const urls = new Map(); // of sheets: short names, so that no element carries the bytes

function urlOf(uri) {
  if (!urls.has(uri)) {
    const [head, body] = uri.split(",");
    const blob = new Blob([decoded(body)], { type: head.slice(5).split(";")[0] });
    urls.set(uri, URL.createObjectURL(blob));
  }
  return urls.get(uri);
}

function decoded(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// Show one tile of a sheet of columns × rows, with a text alternative.
function show(tile, uri, columns, rows, column, row, text) {
  const part = (i, num) => (num > 1 ? (100 * i) / (num - 1) : 0) + "%";
  tile.style.backgroundImage = `url(${urlOf(uri)})`;
  tile.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  tile.style.backgroundPosition = `${part(column, columns)} ${part(row, rows)}`;
  tile.setAttribute("role", "img");
  tile.setAttribute("aria-label", text);
}

// Methods

for (const method of Object.values(data.methods)) {
  method.places = new Uint32Array(decoded(method.places).buffer);
  method.scores = new Float32Array(decoded(method.scores).buffer);
}

// The images that a method ranks first and last at this step of this query.
function ranked(method) {
  const step = method.num_scores > 1 ? state.step : 0;
  const start = (step * data.queries.length + state.query) * method.shown;
  const items = [];
  for (let i = start; i < start + method.shown; i++) items.push({ place: method.places[i], score: method.scores[i] });
  return { proponents: items.slice(0, method.shown / 2), opponents: items.slice(method.shown / 2) };
}

function drawMethod(side) {
  const section = element(side);
  const method = data.methods[state[side]];
  section.style.setProperty("--method", data.colours[state[side]]);
  section.querySelector("select").value = state[side];
  const scope = method.num_scores > 1 ? "scores scope step" : "one score for all steps";
  section.querySelector(".setting").textContent = [method.setting, scope].filter(Boolean).join("; ");
  for (const [kind, items] of Object.entries(ranked(method))) {
    section.querySelector("." + kind).replaceChildren(...items.map((item, i) => listItem(item, `${kind.slice(0, -1)} ${i + 1}`)));
  }
}

function listItem({ place, score }, rank) {
  const { sheets, grid, rows, ids, labels } = data.train;
  const sheet = Math.floor(place / grid ** 2), position = place % grid ** 2;
  const item = document.createElement("li"), tile = document.createElement("div");
  const scoreText = score.toPrecision(3);
  tile.className = "tile";
  show(tile, sheets[sheet], grid, rows[sheet], position % grid, Math.floor(position / grid), `${rank}: ${labels[place]}, ${ids[place]}, score ${scoreText}`);
  item.append(tile, textElement("b", scoreText), textElement("span", labels[place], "label"), textElement("i", ids[place]));
  return item;
}

function textElement(tag, text, kind = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = kind;
  return node;
}

// Curves

const HEIGHT = 260, LEFT = 44, BOTTOM = 30, TOP = 8, RIGHT = 10;

function svg(tag, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

function drawCurve({ title, lines }) {
  const box = document.createElement("div"), t = data.steps[state.step];
  const chosen = lines.filter((line) => [state.first, state.second].includes(line.name));
  const limits = lines.filter((line) => !(line.name in data.methods));
  const others = lines.filter((line) => !chosen.includes(line) && !limits.includes(line));
  box.className = "curve";
  box.append(textElement("h2", `${title} by step`), plot(chosen, limits, others, t), values([...chosen, ...limits], t));
  return box;
}

function plot(chosen, limits, others, t) {
  const WIDTH = element("curves").clientWidth;
  const all = [...chosen, ...limits, ...others].flatMap((line) => line.points);
  const low = Math.min(0, ...all.map((p) => p[2])), high = Math.max(...all.map((p) => p[3]), low + 1e-9);
  const noise = Math.max(...all.map((p) => p[0])), image = Math.min(...all.map((p) => p[0]));
  const x = (step) => LEFT + ((noise - step) / Math.max(noise - image, 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const path = (points) => "M" + points.map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join("L");
  const band = (points) => path(points.map((p) => [p[0], p[3]])) + path([...points].reverse().map((p) => [p[0], p[2]])).replace("M", "L") + "Z";
  const plotted = svg("svg", { width: WIDTH, height: HEIGHT, role: "img", "aria-label": "Curves; their values at this step are listed below" });
  const add = (tag, attributes, text) => plotted.append(svg(tag, attributes, text));
  for (const value of ticks(low, high)) {
    add("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) });
    add("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, String(+value.toPrecision(6)));
  }
  for (const step of [noise, image]) {
    add("text", { x: x(step), y: HEIGHT - 8, "text-anchor": step === noise ? "start" : "end" }, `t=${step}`);
  }
  for (const line of others) add("path", { class: "other", d: path(line.points), fill: "none" });
  for (const line of limits) add("path", { class: "limit", d: path(line.points), fill: "none" });
  for (const line of chosen) {
    const colour = data.colours[line.name];
    add("path", { d: band(line.points), fill: colour, opacity: 0.18 });
    const dashes = line.name === state.first ? "none" : "9 3"; // two methods may share a colour
    add("path", { d: path(line.points), fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": dashes });
    for (const p of line.points) add("circle", { cx: x(p[0]), cy: y(p[1]), r: p[0] === t ? 5 : 2.5, fill: colour });
  }
  add("line", { class: "here", "data-step": t, x1: x(t), x2: x(t), y1: TOP, y2: HEIGHT - BOTTOM });
  return plotted;
}

function ticks(low, high) {
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((n) => n * power >= rough) * power;
  const items = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) items.push(i * step);
  return items;
}

// The values of the curves at this step, as text.
function values(lines, t) {
  const list = document.createElement("ul");
  for (const line of lines) {
    const point = line.points.find((p) => p[0] === t);
    if (!point) continue;
    const [value, low, high] = point.slice(1).map((v) => (Math.abs(v) < 100 ? v.toFixed(2) : v.toFixed(0)));
    const item = textElement("li", `${line.name} ${value} [${low}, ${high}]`);
    if (line.name in data.methods) item.style.setProperty("--method", data.colours[line.name]);
    list.append(item);
  }
  return list;
}

// Draw

function draw() {
  const { steps, queries } = data, query = queries[state.query], t = steps[state.step];
  element("query").value = state.query;
  element("step").value = state.step;
  element("step").setAttribute("aria-valuetext", `t = ${t}`);
  element("where").textContent = `t = ${t}  (${state.step + 1} of ${steps.length})`;
  show(element("x_t"), query.sheet, steps.length, 2, state.step, 0, `x_t of ${query.name} at t = ${t}`);
  show(element("x0_hat"), query.sheet, steps.length, 2, state.step, 1, `x̂0_t of ${query.name} at t = ${t}`);
  if (state.first) ["first", "second"].forEach(drawMethod);
  element("curves").replaceChildren(...data.curves.map(drawCurve));
}

function go(changes) {
  Object.assign(state, changes);
  state.step = Math.min(Math.max(state.step, 0), data.steps.length - 1);
  state.query = (state.query + data.queries.length) % data.queries.length;
  draw();
}

const KEYS = {
  ArrowLeft: () => ({ step: state.step - 1 }),
  ArrowRight: () => ({ step: state.step + 1 }),
  ArrowUp: () => ({ query: state.query - 1 }),
  ArrowDown: () => ({ query: state.query + 1 }),
  Home: () => ({ step: 0 }),
  End: () => ({ step: data.steps.length - 1 }),
};

function start() {
  const names = Object.keys(data.methods);
  element("step").max = data.steps.length - 1;
  element("query").append(...data.queries.map((query, i) => new Option(query.name, i)));
  element("query").addEventListener("change", (event) => go({ query: +event.target.value }));
  element("step").addEventListener("input", (event) => go({ step: +event.target.value }));
  document.addEventListener("keydown", (event) => {
    const bare = !(event.ctrlKey || event.altKey || event.metaKey || event.shiftKey);
    if (!bare || event.target.tagName === "SELECT" || !(event.key in KEYS)) return; // menus use these keys
    event.preventDefault();
    go(KEYS[event.key]());
  });
  addEventListener("resize", draw); // curves fill the width
  ["first", "second"].forEach((side, i) => {
    const picker = element(side).querySelector("select");
    state[side] = names[Math.min(i, names.length - 1)] || "";
    element(side).hidden = !names.length;
    picker.append(...names.map((name) => new Option(name)));
    picker.addEventListener("change", () => go({ [side]: picker.value }));
  });
  go({ step: Math.floor(data.steps.length / 2) });
}

start();
