// What the page does beyond being read: filters, the plot's figure, sorting, and a map cell by cell.
// Texts of the data go in as text nodes and attribute values alone.
const table = document.querySelector("table.sweep"), lines = [...table.tBodies[0].rows];
const metricOf = (key) => DATA.metrics.find((metric) => metric.key === key);
const drawable = DATA.metrics.filter((metric) =>
  DATA.entries.some((entry) => entry.bytes && Object.values(entry.figures).some((figures) => metric.key in figures)));
const state = { metric: (drawable[0] || {}).key, group: DATA.groups[0], each: false, picked: null, facets: {} };

// ---- which entries are in view

const held = (entry, key) =>
  key === "method" ? entry.method : key === "status" ? entry.status : entry.axes[key.slice("axis:".length)];
const inMode = (entry) => (state.each ? entry.seeds === 1 : !entry.member);
const chosen = (entry) =>
  DATA.facets.every(({ key }) => !state.facets[key] || !state.facets[key].size || state.facets[key].has(held(entry, key)));
const visible = (entry) => inMode(entry) && chosen(entry);
const figureOf = (entry, key, group = state.group) => (entry.figures[group] || {})[key] || null;

// ---- controls

function pills(legend, name, type, values, checked, change) {
  const labels = values.map(([value, text]) => {
    const input = make("input", { type, name, value });
    input.checked = checked(value);
    input.addEventListener("change", () => change(value, input.checked));
    return make("label", {}, input, make("span", { dir: "auto" }, text));
  });
  return make("fieldset", {}, make("legend", {}, legend), ...labels);
}

const counted = make("p", { class: "counted", role: "status" });
function controls() {
  const box = document.getElementById("controls");
  if (!box) return;
  const set = (name) => (value) => { state[name] = value; refresh(); };
  const one = (name) => (value) => value === state[name];
  const parts = [
    pills("show", "metric", "radio", drawable.map((m) => [m.key, m.heading]), one("metric"), set("metric"))];
  if (DATA.groups.length > 1)
    parts.push(pills("items", "group", "radio", DATA.groups.map((g) => [g, g]), one("group"), set("group")));
  for (const { key, name, values } of DATA.facets) {
    state.facets[key] = new Set();
    const change = (value, on) => { state.facets[key][on ? "add" : "delete"](value); refresh(); };
    parts.push(pills(name, key, "checkbox", values.map((v) => [v, v]), () => false, change));
  }
  if (DATA.entries.some((entry) => entry.member)) {
    const each = pills("seeds", "each", "checkbox", [["each", "each on its own"]], () => false,
      (_, on) => { state.each = on; refresh(); });
    parts.push(each);
  }
  const clear = make("button", { type: "button", class: "clear" }, "show all");
  clear.addEventListener("click", () => {
    for (const key of Object.keys(state.facets)) state.facets[key].clear();
    for (const input of box.querySelectorAll("input[type=checkbox]:not([name=each])")) input.checked = false;
    refresh();
  });
  parts[0].classList.add("full");
  const form = make("form", {}, ...parts, make("div", { class: "tally" }, counted, clear));
  form.addEventListener("submit", (event) => event.preventDefault());
  box.replaceChildren(form);
}

// ---- the plot

const holder = document.getElementById("chart"), tip = make("div", { class: "tip", "aria-hidden": "true" });
let points = [];

function facts(entry) {
  const metric = metricOf(state.metric), rows = [["method", entry.method]];
  for (const [axis, value] of Object.entries(entry.axes)) if (value !== MISSING) rows.push([axis, value]);
  rows.push(["size", bytes(entry.bytes)]);
  for (const one of DATA.metrics) {
    const figure = figureOf(entry, one.key);
    if (!figure) continue;
    const ends = one === metric ? span(one, figure) : null;
    rows.push([one.heading, shown(one, figure[0]) + (ends ? ` (${ends})` : "")]);
  }
  if (entry.seeds > 1) rows.push(["mean of", `${entry.seeds} seeds`]);
  return rows;
}

function showTip(point) {
  const entry = point.entry;
  tip.replaceChildren(make("b", {}, make("bdi", {}, entry.name)), point.best ? make("i", {}, "on the front") : "",
    make("dl", {}, ...facts(entry).flatMap(([name, value]) => [make("dt", {}, name), make("dd", { dir: "auto" }, value)])));
  tip.hidden = false;
  const room = holder.clientWidth, width = tip.offsetWidth, right = point.x + 16 + width <= room;
  const below = room < 560; // a narrow plot would be hidden by it
  tip.style.left = `${below ? 0 : Math.max(0, right ? point.x + 16 : point.x - 16 - width)}px`;
  tip.style.top = `${below ? holder.clientHeight - 4 : Math.max(0, point.y - tip.offsetHeight / 2)}px`;
  light(point);
}
function light(point) {
  for (const one of points) one.node.classList.toggle("lit", one === point);
  DATA.entries.forEach((entry, index) => lines[index].classList.toggle("lit", point !== null && entry === point.entry));
}
function hideTip() { tip.hidden = true; light(null); }

function spoken(point) {
  return `${point.entry.name}: ${facts(point.entry).map(([name, value]) => `${name} ${value}`).join(", ")}` +
    (point.best ? ", on the front" : "");
}

function draw() {
  const metric = metricOf(state.metric);
  if (!holder || !metric) return;
  hideTip();
  points = DATA.entries.filter((entry) => visible(entry) && entry.bytes && figureOf(entry, metric.key))
    .map((entry) => ({ entry, figure: figureOf(entry, metric.key) }));
  if (!points.length) {
    holder.replaceChildren(make("p", { class: "none" }, "No variant that is shown has this figure."));
    return;
  }
  const made = drawScatter(points, metric, Math.max(holder.clientWidth, 280), state.group);
  const inOrder = [...points].sort((a, b) => a.x - b.x || a.y - b.y);
  inOrder.forEach((point, index) => {
    point.node = shape("g", { role: "img", tabindex: index ? -1 : 0, "aria-label": spoken(point), class: "point" }, point.mark);
    point.node.addEventListener("focus", () => showTip(point));
    point.node.addEventListener("blur", hideTip);
    point.node.addEventListener("keydown", (event) => steer(event, inOrder, index));
  });
  const title = `Size against ${metric.axis}; arrow keys go from point to point`;
  const nodes = [...points].sort((a, b) => a.best - b.best).map((point) => point.node);
  const svg = shape("svg", { viewBox: `0 0 ${made.width} ${made.height}`, width: made.width, height: made.height,
    role: "group", "aria-label": title }, ...made.shapes, ...made.labels, ...nodes);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const far = (point) => Math.hypot(point.x - (event.clientX - box.left), point.y - (event.clientY - box.top));
    const near = points.reduce((a, b) => (far(b) < far(a) ? b : a));
    if (far(near) < 24) showTip(near); else hideTip();
  });
  svg.addEventListener("pointerleave", hideTip);
  svg.addEventListener("click", () => { const lit = points.find((p) => p.node.classList.contains("lit")); if (lit) pick(lit); });
  holder.replaceChildren(svg, tip);
}

function steer(event, inOrder, index) {
  const to = { ArrowRight: index + 1, ArrowLeft: index - 1, ArrowDown: index + 1, ArrowUp: index - 1, Home: 0,
    End: inOrder.length - 1 }[event.key];
  if (event.key === "Escape") hideTip();
  if (event.key === "Enter") pick(inOrder[index], true);
  if (to === undefined) return;
  event.preventDefault();
  const next = inOrder[Math.min(Math.max(to, 0), inOrder.length - 1)];
  inOrder.forEach((point) => point.node.setAttribute("tabindex", point === next ? 0 : -1));
  next.node.focus();
}

// a point that was chosen: its row is brought into view, and its map is the one that is shown large
function pick(point, jump = false) {
  const index = DATA.entries.indexOf(point.entry), row = lines[index];
  chooseMap(point.entry.name);
  if (!jump) return;
  const place = row.querySelector("a") || row.cells[0];
  if (!place.matches("a")) place.setAttribute("tabindex", -1);
  row.scrollIntoView({ block: "center", inline: "nearest" });
  place.focus({ preventScroll: true });
}

// ---- the table

const sorting = { column: null, up: true };
function valueOf(entry, key) {
  if (key.startsWith("metric:")) { const figure = figureOf(entry, key.slice(7)); return figure ? figure[0] : null; }
  if (key.startsWith("axis:")) {
    const text = entry.axes[key.slice(5)];
    return text === MISSING ? null : /^-?\d+(\.\d+)?$/.test(text) ? Number(text) : text;
  }
  return entry[key];
}
function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === typeof b) return String(a).localeCompare(String(b), "en", { numeric: true });
  return typeof a === "number" ? -1 : 1;
}

function sortLines() {
  const indices = lines.map((_, index) => index);
  if (sorting.column !== null) {
    const key = DATA.columns[sorting.column], sign = sorting.up ? 1 : -1;
    const values = DATA.entries.map((entry) => valueOf(entry, key));
    const empty = (value) => value === null || value === undefined;
    indices.sort((a, b) => empty(values[a]) || empty(values[b]) // what is missing comes last either way
      ? empty(values[a]) - empty(values[b]) || a - b : sign * compare(values[a], values[b]) || a - b);
  }
  table.tBodies[0].append(...indices.map((index) => lines[index]));
}

function headings() {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = make("button", { type: "button" }, head.textContent);
    button.addEventListener("click", () => {
      sorting.up = sorting.column === column ? !sorting.up : true;
      sorting.column = column;
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sorting.up ? "ascending" : "descending");
      sortLines();
    });
    head.replaceChildren(button);
  });
}

function fill() {
  const best = new Set(points.filter((point) => point.best).map((point) => point.entry));
  DATA.entries.forEach((entry, index) => {
    const row = lines[index];
    row.hidden = !visible(entry);
    row.classList.toggle("best", best.has(entry));
    DATA.columns.forEach((key, column) => {
      if (key === "name") note(row.cells[column], entry, best.has(entry));
      if (key.startsWith("metric:")) figure(row.cells[column], entry, metricOf(key.slice(7)));
    });
  });
  const all = DATA.entries.filter(inMode), some = all.filter(chosen);
  const what = state.each ? "variants" : DATA.entries.some((entry) => entry.member) ? "settings" : "variants";
  const metric = metricOf(state.metric), over = state.group === DATA.groups[0] ? "" : ` (${state.group})`;
  if (metric) document.getElementById("front-of").textContent =
    `On the front: what nothing else that is shown beats in size and ${metric.heading}${over}.`;
  counted.textContent = `${some.length} of ${all.length} ${what} shown`;
}
function note(cell, entry, best) {
  const notes = [];
  if (entry.seeds > 1) notes.push(`mean of ${entry.seeds} seeds`);
  if (entry.member) notes.push("one of several seeds");
  if (best) notes.push("on the front");
  small(cell, notes.join(", "));
}
function figure(cell, entry, metric) {
  const found = figureOf(entry, metric.key);
  cell.replaceChildren(found ? shown(metric, found[0]) : MISSING);
  small(cell, (found && span(metric, found)) || "");
}
function small(cell, text) {
  for (const old of cell.querySelectorAll("small")) old.remove();
  if (text) cell.append(make("small", {}, text));
}

// ---- maps: one large, with its figures

const maps = { measure: DATA.maps.length ? DATA.maps[0].key : null, name: null };
const mapBox = document.getElementById("map");
const mapped = () => DATA.maps.find((measure) => measure.key === maps.measure);

function stepOf(error, { low, high }) {
  if (error <= low) return 0;
  return high <= low ? 7 : Math.min(Math.floor((8 * Math.log(error / low)) / Math.log(high / low)), 7);
}

function chooseMap(name) {
  if (!mapBox || !mapped().of.some((one) => one.name === name && one.values.length)) return;
  maps.name = name;
  mapBox.querySelector("select").value = name;
  drawMap();
}

function drawMap() {
  const measure = mapped(), found = measure.of.find((one) => one.name === maps.name);
  const places = measure.places.map(([layer, kind], index) => ({ layer, kind, value: found.values[index] }))
    .filter((place) => place.value !== null && place.value !== undefined);
  const layers = [...new Set(places.map((place) => place.layer))].sort((a, b) => a - b);
  const late = (kind) => (/^(mlp|ffn)/.test(kind) ? 1 : 0);
  const kinds = [...new Set(places.map((place) => place.kind))].sort((a, b) => late(a) - late(b));
  const head = make("tr", {}, make("th", { scope: "col" }, "linear"),
    ...layers.map((layer) => make("th", { scope: "col", class: "n" }, String(layer))));
  const rows = kinds.map((kind) => make("tr", {}, make("th", { scope: "row", dir: "auto" }, kind), ...layers.map((layer) => {
    const place = places.find((one) => one.kind === kind && one.layer === layer);
    return place ? make("td", { class: `n q${stepOf(place.value, measure)}` }, percent(place.value)) : make("td", { class: "n" });
  })));
  const caption = make("caption", {}, make("span", {}, make("bdi", {}, maps.name), `: ${measure.name}, per cent; layers across`));
  const inner = make("table", { class: "heat" }, caption, make("thead", {}, head), make("tbody", {}, ...rows));
  const scroll = make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": measure.name }, inner);
  mapBox.querySelector(".large").replaceChildren(scroll);
  for (const one of DATA.maps) document.getElementById(`map-${one.key}`).hidden = one.key !== maps.measure;
}

function mapControls() {
  const known = () => mapped().of.filter((one) => one.values.length).map((one) => one.name);
  const choice = make("select", { id: "map-of" });
  const refill = () => {
    choice.replaceChildren(...known().map((name) => make("option", { value: name }, name)));
    if (!known().includes(maps.name)) maps.name = known()[0];
    choice.value = maps.name;
    drawMap();
  };
  choice.addEventListener("change", () => chooseMap(choice.value));
  const label = make("label", { for: "map-of", class: "choose" }, "variant ", choice);
  const measures = DATA.maps.length < 2 ? null : pills("error", "measure", "radio",
    DATA.maps.map((one) => [one.key, one.key === "layers" ? "left by rounding" : "measured on outputs"]),
    (value) => value === maps.measure, (value) => { maps.measure = value; refill(); });
  mapBox.replaceChildren(make("form", {}, measures, label), make("div", { class: "large" }));
  mapBox.firstChild.addEventListener("submit", (event) => event.preventDefault());
  refill();
}

// ---- all of it

function refresh() {
  draw();
  fill();
}
controls();
headings();
refresh();
if (mapBox && DATA.maps.length) mapControls();
let drawn = holder ? holder.clientWidth : 0;
if (holder) new ResizeObserver(() => {
  if (holder.clientWidth === drawn) return;
  drawn = holder.clientWidth;
  draw();
}).observe(holder);
