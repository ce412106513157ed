"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const state = { query: data.lead, step: Math.floor(data.steps.length / 2), first: "", second: "", candidates: {}, image: -1 };
const element = (id) => document.getElementById(id);

// Pictures

const urls = new Map(); // of sheets: short names, so that no element carries the bytes

function urlOf(uri) {
  if (!urls.has(uri)) urls.set(uri, URL.createObjectURL(blobOf(uri)));
  return urls.get(uri);
}

function blobOf(uri) {
  const [head, body] = uri.split(",");
  return new Blob([decoded(body)], { type: head.slice(5).split(";")[0] });
}

function decoded(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// Show one tile of a sheet of columns × rows, with a text alternative.
function show(tile, uri, columns, rows, column, row, text = "") {
  const part = (i, num) => (num > 1 ? (100 * i) / (num - 1) : 0) + "%";
  tile.classList.add("tile");
  tile.style.backgroundImage = `url(${urlOf(uri)})`;
  tile.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  tile.style.backgroundPosition = `${part(column, columns)} ${part(row, rows)}`;
  if (text && tile.tagName !== "BUTTON") tile.setAttribute("role", "img");
  if (text) tile.setAttribute("aria-label", text);
  return tile;
}

// Show one of many pictures, which fill sheets of grid × grid.
function showPlace(tile, { sheets, grid, rows }, place, text) {
  const sheet = Math.floor(place / grid ** 2), position = place % grid ** 2;
  return show(tile, sheets[sheet], grid, rows[sheet], position % grid, Math.floor(position / grid), text);
}

function make(tag, text = "", kind = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

// Methods

for (const method of Object.values(data.methods)) {
  for (const ranking of method.rankings) {
    ranking.places = new Uint32Array(decoded(ranking.places).buffer);
    ranking.scores = new Float32Array(decoded(ranking.scores).buffer);
  }
}

const SIDES = ["first", "second"];
const TARGETS = { step: "step", trajectory: "trajectory", final_sample: "final sample" };
const rankingOf = (side) => data.methods[state[side]].rankings[state.candidates[side]];

// Show a method on a side, with the hyper-parameter that is shown first or another.
function choose(side, name, candidate = data.methods[name].shown) {
  return { [side]: name, candidates: { ...state.candidates, [side]: candidate } };
}

// A method as text, with its hyper-parameter where it is not the one that is shown first.
function titleOf(side) {
  const name = state[side], other = state.candidates[side] !== data.methods[name].shown;
  return other ? `${name} (${rankingOf(side).setting})` : name;
}

const signed = (value, digits) => (value > 0 ? "+" : "") + value.toPrecision(digits).replace("-", "−");

// The images that are ranked first and last at a step of a query.
function ranked(ranking, query, step) {
  const { num_scores, shown, places, scores } = ranking, items = [];
  const start = ((num_scores > 1 ? step : 0) * data.queries.length + query) * shown;
  for (let i = start; i < start + shown; i++) items.push({ place: places[i], score: scores[i] });
  return { proponents: items.slice(0, shown / 2), opponents: items.slice(shown / 2) };
}

// An image with a positive score is no opponent, even if no score is lower.
function headings({ proponents, opponents }) {
  return {
    proponents: proponents.every((item) => item.score > 0) ? "Proponents" : "Highest scores (proponents are above 0)",
    opponents: opponents.every((item) => item.score < 0) ? "Opponents" : "Lowest scores (opponents are below 0)",
  };
}

function drawMethod(side) {
  const section = element(side), method = data.methods[state[side]], ranking = rankingOf(side);
  const items = ranked(ranking, state.query, state.step), titles = headings(items);
  section.style.setProperty("--method", data.colours[state[side]]);
  section.querySelector(".name").value = method.chosen_as;
  const targets = Object.entries(method.targets).map(([target, name]) => new Option(TARGETS[target], name));
  fill(section.querySelector(".target"), targets, state[side]);
  const texts = method.rankings.map(({ setting }, i) => (i === method.shown ? `${setting}, ${method.reason}` : setting));
  fill(section.querySelector(".candidate"), texts.map((text, i) => new Option(text, i)), state.candidates[side]);
  const scope = ranking.num_scores > 1 ? "scores of this step" : "one score for all steps";
  section.querySelector(".scope").textContent = [texts.length > 1 ? "" : ranking.setting, scope].filter(Boolean).join("; ");
  for (const kind of ["proponents", "opponents"]) {
    section.querySelector(".title-" + kind).textContent = titles[kind];
    section.querySelector("." + kind).replaceChildren(...items[kind].map((item, i) => listItem(item, `${kind.slice(0, -1)} ${i + 1}`)));
  }
}

// The options of a menu, which is hidden where there is no choice.
function fill(menu, options, value) {
  menu.replaceChildren(...options);
  menu.value = value;
  menu.parentElement.hidden = options.length < 2;
}

function listItem({ place, score }, rank) {
  const { ids, labels, duplicate_of } = data.train, item = make("li"), tile = make("button");
  const mark = duplicate_of[place] === state.query ? "duplicate of the query" : "";
  tile.type = "button";
  tile.setAttribute("aria-pressed", place === state.image);
  tile.addEventListener("click", () => go({ image: place === state.image ? -1 : place }));
  showPlace(tile, data.train, place, `${rank}: ${labels[place]}, ${ids[place]}, score ${signed(score, 3)}${mark && `, ${mark}`}`);
  item.append(tile, make("b", signed(score, 3)), make("span", labels[place], "label"), make("i", ids[place]));
  if (mark) item.append(make("em", mark));
  return item;
}

function drawOverlap() {
  const [a, b] = SIDES.map((side) => ranked(rankingOf(side), state.query, state.step).proponents);
  const places = new Set(a.map((item) => item.place)), shared = b.filter((item) => places.has(item.place)).length;
  const [first, second] = SIDES.map(titleOf), count = Math.max(a.length, b.length);
  element("overlap").textContent = first === second ? "" : `Shared by ${first} and ${second}: ${shared} of their first ${count} images.`;
}

// A training image: the queries and steps at which a method ranks it first or last

const MOST_QUERIES = 12;

function influences(ranking, place) {
  const rows = [];
  data.queries.forEach((_, query) => {
    const cells = data.steps.map((_, step) => {
      const { proponents, opponents } = ranked(ranking, query, step);
      const first = proponents.findIndex((item) => item.place === place && item.score > 0);
      const last = opponents.findIndex((item) => item.place === place && item.score < 0);
      return first >= 0 ? first + 1 : last >= 0 ? -last - 1 : 0;
    });
    const count = cells.filter(Boolean).length;
    if (count) rows.push({ query, cells, count });
  });
  return rows.sort((a, b) => b.count - a.count);
}

function drawImage() {
  const section = element("image"), place = state.image;
  section.hidden = place < 0;
  if (place < 0) return;
  const { ids, labels } = data.train, close = make("button", "Close");
  close.type = "button";
  close.addEventListener("click", () => go({ image: -1 }));
  const parts = [make("h2", `Training image ${ids[place]}: ${labels[place]}`), showPlace(make("div"), data.train, place, ids[place])];
  for (const side of titleOf("first") === titleOf("second") ? ["first"] : SIDES) {
    const ranking = rankingOf(side), rows = influences(ranking, place);
    const more = rows.length > MOST_QUERIES ? `; the first ${MOST_QUERIES} are shown` : "";
    const caption = `${titleOf(side)}: among the first or last ${ranking.shown / 2} images of ${rows.length} of ${data.queries.length} queries${more}. 1 is the strongest proponent, −1 the strongest opponent.`;
    parts.push(make("p", caption));
    if (rows.length) parts.push(influenceTable(rows.slice(0, MOST_QUERIES)));
  }
  section.replaceChildren(...parts, close);
}

function influenceTable(rows) {
  const box = make("div", "", "wide"), table = make("table"), head = make("tr");
  box.tabIndex = 0; // wide tables scroll
  head.append(make("td"), ...data.steps.map((t) => make("th", `t=${t}`)));
  table.append(head);
  for (const { query, cells } of rows) {
    const line = make("tr"), cell = make("th"), button = make("button");
    button.type = "button";
    button.addEventListener("click", () => go({ query, step: cells.findIndex(Boolean) }));
    cell.append(showPlace(button, data.finals, query, `Go to ${data.queries[query].name}`));
    line.append(cell, ...cells.map((rank) => make("td", rank ? String(rank).replace("-", "−") : "", rank > 0 ? "for" : "against")));
    table.append(line);
  }
  box.append(table);
  return box;
}

// Curves

function svg(tag, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

// The line of the scores that a side shows: of the method, or of one of its candidates.
function lineOf(lines, side) {
  const name = state[side], candidate = state.candidates[side];
  if (!name) return undefined;
  const isShown = candidate === data.methods[name].shown;
  return lines.find((line) => line.name === name && line.candidate === (isShown ? null : candidate));
}

function parts(lines) {
  const chosen = [...new Set(SIDES.map((side) => lineOf(lines, side)).filter(Boolean))];
  const limits = lines.filter((line) => ["ceiling", "reference"].includes(line.kind));
  const rest = lines.filter((line) => !chosen.includes(line) && !limits.includes(line));
  return { chosen, limits, others: rest.filter((line) => line.candidate === null) };
}

function drawCurve({ title, lines }) {
  const box = make("div", "", "curve"), { chosen, limits } = parts(lines);
  const size = { width: element("curves").clientWidth, height: 260, left: 44, right: 10, top: 8, bottom: 30 };
  box.append(make("h2", `${title}, by step`), plot(lines, size, "Curves; their values at this step are listed below"), values([...chosen, ...limits], lines));
  return box;
}

// The first curve above the slider: a point for each of its places.
function drawOverview() {
  if (!data.curves.length) return;
  const slider = element("step"), box = element("overview").getBoundingClientRect(), track = slider.getBoundingClientRect();
  const { title, lines } = data.curves[0], thumb = 8; // half of the slider's knob
  const size = { width: box.width, height: innerHeight < 700 ? 52 : 76, left: track.left - box.left + thumb, right: box.right - track.right + thumb, top: 6, bottom: 6 };
  const drawing = plot(lines, size, `${title}; see the sentence below`, true);
  const short = [title, title.replace(/ of [^)]*$/, "")].find((text) => 7 * text.length < size.left); // pixels of a letter
  drawing.append(svg("text", { x: 0, y: 12 }, short ?? ""));
  element("overview").replaceChildren(drawing);
}

function plot(lines, { width, height, left, right, top, bottom }, label, bySlider = false) {
  const { chosen, limits, others } = parts(lines), { steps } = data, t = steps[state.step];
  const all = lines.flatMap((line) => line.points);
  const low = Math.min(0, ...all.map((p) => p[2])), high = Math.max(...all.map((p) => p[3]), low + 1e-9);
  const noise = Math.max(...all.map((p) => p[0])), image = Math.min(...all.map((p) => p[0]));
  const share = (step) => (bySlider ? steps.indexOf(step) / Math.max(steps.length - 1, 1) : (noise - step) / Math.max(noise - image, 1));
  const x = (step) => left + share(step) * (width - left - right);
  const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);
  const path = (points) => "M" + points.map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join("L");
  const band = (points) => path(points.map((p) => [p[0], p[3]])) + path([...points].reverse().map((p) => [p[0], p[2]])).replace("M", "L") + "Z";
  const plotted = svg("svg", { width, height, role: "img", "aria-label": label });
  const add = (tag, attributes, text) => plotted.append(svg(tag, attributes, text));
  const marks = bySlider ? [0] : ticks(low, high);
  for (const value of marks) {
    add("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) });
    if (!bySlider) add("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, String(+value.toPrecision(6)).replace("-", "−"));
  }
  for (const step of bySlider ? [] : [noise, image]) {
    add("text", { x: x(step), y: height - 8, "text-anchor": step === noise ? "start" : "end" }, `t=${step}`);
  }
  for (const line of others) add("path", { class: "other", d: path(line.points), fill: "none" });
  for (const line of limits) add("path", { class: "limit", d: path(line.points), fill: "none" });
  for (const line of chosen) {
    const colour = data.colours[line.name];
    add("path", { d: band(line.points), fill: colour, opacity: 0.18 });
    const dashes = line === lineOf(lines, "first") ? "none" : "9 3"; // two methods may share a colour
    add("path", { d: path(line.points), fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": dashes });
    for (const p of line.points) add("circle", { cx: x(p[0]), cy: y(p[1]), r: p[0] === t ? 5 : 2.5, fill: colour });
  }
  add("line", { class: "here", "data-step": t, x1: x(t), x2: x(t), y1: top, y2: height - bottom });
  return plotted;
}

function ticks(low, high) {
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((n) => n * power >= rough) * power;
  const items = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) items.push(i * step);
  return items;
}

// A function that writes the numbers of a curve with as many digits as the terminal.
function writer(lines) {
  const digits = Math.max(...lines.flatMap((line) => line.points.map((p) => Math.abs(p[1])))) > 2 ? 0 : 2;
  return (value) => value.toFixed(digits).replace(/^-(0(\.0+)?)$/, "$1").replace("-", "−");
}

function at(line, t) {
  return line.points.find((p) => p[0] === t);
}

// The values of the curves at this step, as text.
function values(shown, lines) {
  const list = make("ul"), text = writer(lines);
  for (const line of shown) {
    const point = at(line, data.steps[state.step]);
    if (!point) continue;
    const [value, low, high] = point.slice(1).map(text);
    const side = SIDES.find((one) => lineOf(lines, one) === line);
    const item = make("li", `${side ? titleOf(side) : line.name} ${value} [${low}, ${high}]`);
    if (side) item.style.setProperty("--method", data.colours[line.name]);
    list.append(item);
  }
  return list;
}

// How far to trust the scores shown: the first curve at this step, or the same statistic of the
// trajectory or the final sample where it is what they attribute, and its share of the ceiling.
function drawTrust() {
  if (!data.curves.length) return;
  const { title, lines } = data.curves[0], t = data.steps[state.step];
  const text = writer(lines), ceiling = lines.find((line) => line.kind === "ceiling"), sentence = [`${title} at t = ${t}: `];
  for (const side of titleOf("first") === titleOf("second") ? ["first"] : SIDES) {
    if (!lines.some((line) => line.name === state[side])) continue; // a curve of no method, or not of this one
    const line = lineOf(lines, side), name = make("b", titleOf(side)), targets = data.methods[state[side]].targets;
    name.style.setProperty("--method", data.colours[state[side]]);
    const share = (numbers, limit) => {
      if (!numbers) return "not computed";
      const [value, low, high] = numbers, most = limit ? limit[0] : 0;
      const part = most > 0 && value > 0 ? `, ${Math.round((100 * value) / most)}% of the ceiling` : "";
      return `${text(value)} [${text(low)}, ${text(high)}]${part}${limit && low <= 0 ? ", not significantly above chance" : ""}`;
    };
    const numbersAt = (line) => line && at(line, t) && at(line, t).slice(1);
    sentence.push(name, ` ${share(numbersAt(line), numbersAt(ceiling))}`);
    const target = Object.keys(targets).find((one) => targets[one] === state[side]);
    if (line && line.targets[target]) sentence.push(`; of the ${TARGETS[target]} ${share(line.targets[target], ceiling && ceiling.targets[target])}`);
    sentence.push(". ");
  }
  element("trust").replaceChildren(...(sentence.length > 1 ? sentence : []));
}

// Draw

function drawStrip() {
  const { steps, queries } = data, query = queries[state.query], strip = element("strip");
  const tiles = steps.map((t, step) => {
    const box = make("div"), tile = show(make("div"), query.sheet, steps.length, 2, step, 1);
    if (step === state.step) tile.classList.add("here");
    box.append(tile, make("span", t));
    box.addEventListener("click", () => go({ step }));
    return box;
  });
  const last = make("div");
  last.append(showPlace(make("div"), data.finals, state.query), make("span", "final"));
  strip.setAttribute("role", "img"); // the slider does the same for the keyboard
  strip.setAttribute("aria-label", `The estimates x̂0_t of ${query.name} at all steps, and its final sample`);
  strip.replaceChildren(...tiles, last);
}

function draw() {
  const { steps, queries } = data, query = queries[state.query], t = steps[state.step];
  element("name").textContent = query.name;
  element("queries").querySelectorAll("input")[state.query].checked = true;
  element("step").value = state.step;
  element("step").setAttribute("aria-valuetext", `t = ${t}`);
  element("where").textContent = `t = ${t}  (${state.step + 1} of ${steps.length})`;
  show(element("x_t"), query.sheet, steps.length, 2, state.step, 0, `x_t of ${query.name} at t = ${t}`);
  show(element("x0_hat"), query.sheet, steps.length, 2, state.step, 1, `x̂0_t of ${query.name} at t = ${t}`);
  showPlace(element("final"), data.finals, state.query, `final sample of ${query.name}`);
  drawStrip();
  if (state.first) {
    SIDES.forEach(drawMethod);
    drawOverlap();
    drawImage();
  }
  drawTrust();
  drawOverview();
  element("curves").replaceChildren(...data.curves.map(drawCurve));
}

function go(changes) {
  const focused = document.activeElement && document.activeElement.getAttribute("aria-label");
  Object.assign(state, changes);
  state.step = Math.min(Math.max(state.step, 0), data.steps.length - 1);
  draw();
  const again = [...document.querySelectorAll("button.tile")].find((node) => node.getAttribute("aria-label") === focused);
  if (focused && again && document.activeElement === document.body) again.focus(); // it was drawn anew
  const words = new URLSearchParams({ query: state.query, t: data.steps[state.step] });
  for (const side of SIDES) {
    words.set(side, state[side]);
    if (state[side] && state.candidates[side] !== data.methods[state[side]].shown) words.set(side + "-setting", rankingOf(side).setting);
  }
  if (state.image >= 0) words.set("image", data.train.ids[state.image]);
  try {
    history.replaceState(null, "", "#" + words);
  } catch {} // where a page has no address of its own
}

// What the address says; what it does not say, or says wrongly, stays.
function read() {
  const words = new URLSearchParams(location.hash.slice(1)), changes = {};
  const query = Number(words.get("query")), step = data.steps.indexOf(Number(words.get("t")));
  if (words.has("query") && query in data.queries) changes.query = query;
  if (words.has("t") && step >= 0) changes.step = step;
  for (const side of SIDES) {
    const name = words.get(side) in data.methods ? words.get(side) : state[side];
    if (!name) continue;
    const candidate = data.methods[name].rankings.findIndex(({ setting }) => setting === words.get(side + "-setting"));
    changes[side] = name;
    changes.candidates = { ...changes.candidates, [side]: candidate < 0 ? data.methods[name].shown : candidate };
  }
  if (words.has("image")) changes.image = data.train.ids.indexOf(words.get("image"));
  return changes;
}

let timer = 0;

function play(on) {
  clearInterval(timer);
  timer = on ? setInterval(() => (state.step < data.steps.length - 1 ? go({ step: state.step + 1 }) : play(false)), 700) : 0;
  element("play").textContent = on ? "Pause" : "Play";
}

// Files

function csv() {
  const cell = (value) => (/[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
  const lines = [["query", "t", "method", "setting", "side", "rank", "image", "label", "score"]];
  for (const [name, method] of Object.entries(data.methods)) {
    const chosen = SIDES.filter((side) => state[side] === name).map(rankingOf);
    for (const ranking of new Set([method.rankings[method.shown], ...chosen])) {
      data.queries.forEach((query, q) => {
        for (let step = 0; step < ranking.num_scores; step++) {
          const t = ranking.num_scores > 1 ? data.steps[step] : "all";
          for (const [side, items] of Object.entries(ranked(ranking, q, step))) {
            const column = side === "proponents" ? "highest" : "lowest";
            items.forEach(({ place, score }, i) => lines.push([query.name, t, name, ranking.setting, column, i + 1, data.train.ids[place], data.train.labels[place], score]));
          }
        }
      });
    }
  }
  return lines.map((line) => line.map(cell).join(",")).join("\n") + "\n";
}

function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
}

// GIF (the specification: GIF89a). Every frame has its own palette.

const GIF_PIXELS = 256, GIF_SECONDS = 8, CLEAR = 256, END = 257; // codes

// The trajectory of the query shown: x̂0_t of all steps, and the final sample.
async function trajectoryGif() {
  const { finals, queries, steps } = data, place = state.query % finals.grid ** 2;
  const sheet = Math.floor(state.query / finals.grid ** 2), canvas = document.createElement("canvas");
  const [estimates, samples] = await Promise.all([queries[state.query].sheet, finals.sheets[sheet]].map((uri) => createImageBitmap(blobOf(uri))));
  canvas.width = estimates.width / steps.length;
  canvas.height = estimates.height / 2;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const frame = (bitmap, columns, rows, column, row) => {
    const width = bitmap.width / columns, height = bitmap.height / rows;
    context.drawImage(bitmap, column * width, row * height, width, height, 0, 0, canvas.width, canvas.height);
    return context.getImageData(0, 0, canvas.width, canvas.height).data;
  };
  const frames = steps.map((_, step) => frame(estimates, steps.length, 2, step, 1));
  frames.push(frame(samples, finals.grid, finals.rows[sheet], place % finals.grid, Math.floor(place / finals.grid)));
  return gif(frames, canvas.width, canvas.height);
}

// The bytes of a GIF of frames, each the RGBA values of its pixels, enlarged by a whole factor.
function gif(frames, width, height) {
  const scale = Math.max(1, Math.round(GIF_PIXELS / width)), word = (n) => [n & 255, n >> 8];
  const text = (letters) => [...letters].map((letter) => letter.charCodeAt(0)), size = [...word(width * scale), ...word(height * scale)];
  const delay = Math.min(70, Math.round((100 * GIF_SECONDS) / frames.length)); // in 1/100 s
  const bytes = [...text("GIF89a"), ...size, 0, 0, 0, 0x21, 0xff, 11, ...text("NETSCAPE2.0"), 3, 1, 0, 0, 0];
  frames.forEach((pixels, i) => {
    const { palette, indices } = indexed(pixels), large = [];
    for (let y = 0; y < height * scale; y++) {
      for (let x = 0; x < width * scale; x++) large.push(indices[Math.floor(y / scale) * width + Math.floor(x / scale)]);
    }
    const last = i === frames.length - 1 ? 3 : 1;
    bytes.push(0x21, 0xf9, 4, 0, ...word(last * delay), 0, 0, 0x2c, 0, 0, 0, 0, ...size, 0x87, ...palette, 8);
    const codes = compressed(large);
    for (let j = 0; j < codes.length; j += 255) bytes.push(Math.min(255, codes.length - j), ...codes.slice(j, j + 255));
    bytes.push(0);
  });
  return new Uint8Array([...bytes, 0x3b]);
}

// At most 256 colours. If there are more, channels are rounded to fewer levels until there are not.
function indexed(pixels) {
  for (let levels = 256; ; levels = Math.floor(levels * 0.9)) {
    const places = new Map(), indices = [], round = (v) => Math.round((Math.round((v / 255) * (levels - 1)) / (levels - 1)) * 255);
    for (let i = 0; i < pixels.length; i += 4) {
      const colour = (round(pixels[i]) << 16) | (round(pixels[i + 1]) << 8) | round(pixels[i + 2]);
      if (!places.has(colour)) places.set(colour, places.size);
      indices.push(places.get(colour));
    }
    if (places.size > 256) continue;
    const palette = new Uint8Array(3 * 256);
    for (const [colour, place] of places) palette.set([colour >> 16, (colour >> 8) & 255, colour & 255], 3 * place);
    return { palette, indices };
  }
}

// Bytes of the variable-length codes of LZW.
function compressed(indices) {
  const bytes = [];
  let bits = 0, numBits = 0, width = 9, next = END + 1, table = new Map(), prefix = indices[0];
  const emit = (code) => {
    bits |= code << numBits;
    for (numBits += width; numBits >= 8; numBits -= 8, bits >>>= 8) bytes.push(bits & 255);
  };
  emit(CLEAR);
  for (const index of indices.slice(1)) {
    const key = prefix * 256 + index;
    if (table.has(key)) {
      prefix = table.get(key);
      continue;
    }
    emit(prefix);
    prefix = index;
    if (next === 4096) {
      emit(CLEAR);
      [width, next, table] = [9, END + 1, new Map()];
    } else {
      if (next === 1 << width) width++; // the next code may be this one
      table.set(key, next++);
    }
  }
  emit(prefix);
  emit(END);
  if (numBits) bytes.push(bits & 255);
  return bytes;
}

function start() {
  const names = Object.keys(data.methods).filter((name) => data.methods[name].chosen_as === name), slider = element("step");
  slider.max = data.steps.length - 1;
  data.queries.forEach((query, i) => {
    const label = make("label"), input = make("input");
    Object.assign(input, { type: "radio", name: "query", value: i, title: query.name });
    input.setAttribute("aria-label", query.name);
    input.addEventListener("change", () => go({ query: i }));
    label.append(input, showPlace(make("div"), data.finals, i));
    element("queries").append(label);
  });
  slider.addEventListener("input", () => go({ step: +slider.value }));
  element("play").addEventListener("click", () => {
    if (!timer && state.step === data.steps.length - 1) go({ step: 0 });
    play(!timer);
  });
  element("gif").addEventListener("click", async () => save(`trajectory_query${state.query}.gif`, await trajectoryGif(), "image/gif"));
  element("csv").addEventListener("click", () => save("scores.csv", csv(), "text/csv"));
  element("json").addEventListener("click", () => save("curves.json", JSON.stringify({ steps: data.steps, curves: data.curves, run: data.run }, null, 1), "application/json"));
  document.addEventListener("keydown", (event) => {
    const bare = !(event.ctrlKey || event.altKey || event.metaKey || event.shiftKey);
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const used = event.target.closest("input, select, .wide"); // which use these keys
    if (bare && move && !used) go({ step: state.step + move });
  });
  addEventListener("resize", draw); // curves fill the width
  addEventListener("hashchange", () => go(read()));
  SIDES.forEach((side, i) => {
    const [name, target, candidate] = element(side).querySelectorAll("select");
    element(side).hidden = !names.length;
    if (names.length) Object.assign(state, choose(side, names[Math.min(i, names.length - 1)]));
    name.append(...names.map((one) => new Option(one)));
    for (const menu of [name, target]) menu.addEventListener("change", () => go(choose(side, menu.value)));
    candidate.addEventListener("change", () => go(choose(side, state[side], +candidate.value)));
  });
  go(read());
}

start();
