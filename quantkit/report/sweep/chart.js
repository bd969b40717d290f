// Size against a figure, drawn as quantkit/report/sweep/chart.py draws it: same axes, marks and labels.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const SPACE = "http://www.w3.org/2000/svg";
const MISSING = "\u2013", MINUS = "\u2212";

function build(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}
const make = (name, attributes = {}, ...children) => build(document.createElement(name), attributes, children);
const shape = (name, attributes = {}, ...children) => build(document.createElementNS(SPACE, name), attributes, children);

// ---- figures as text, as in figures.py

function number(value) {
  if (value === null || value === undefined) return MISSING;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e6) return value.toExponential(2).replace(/e([+-])(\d)$/, "e$10$2");
  return value.toFixed(Math.max(2 - Math.floor(Math.log10(size)), 0)).replace("-", MINUS);
}
const share = (value) => `${(100 * value).toFixed(2)} %`.replace("-", MINUS);
function signed(value) {
  const text = (100 * value).toFixed(2);
  if (text === "0.00" || text === "-0.00") return "0.00";
  return value < 0 ? text.replace("-", MINUS) : `+${text}`;
}
function bytes(value) {
  if (value === null) return MISSING;
  for (const [unit, scale] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
    if (value >= scale) return `${(value / scale).toFixed(unit === "GB" ? 2 : 1)} ${unit}`;
  return `${value} B`;
}
function shown(metric, value) {
  return metric.log ? number(value) : metric.key === "accuracy" ? signed(value) : share(value);
}
function span(metric, figure) {
  const [value, low, high] = figure;
  return low === value && value === high ? null : `${shown(metric, low)} to ${shown(metric, high)}`;
}
function percent(error) {
  const value = 100 * error;
  return value < 0.1 ? number(value) : value < 10 ? value.toFixed(2) : value.toFixed(1);
}

// ---- axes

const hold = (part) => Math.min(Math.max(part, 0), 1);
function stepped(value, up) {
  const base = 10 ** Math.floor(Math.log10(value));
  const steps = up ? [1, 2, 5, 10] : [5, 2, 1];
  return base * steps.find((step) => (up ? value <= step * base * 1.0001 : value >= step * base * 0.9999));
}
const tickText = (tick) =>
  tick >= 1e-4 && tick < 1e5 ? String(Number(tick.toPrecision(4))) : tick.toExponential(0).replace("e+", "e");

function logAxis(values, start, end) {
  const positive = values.filter((value) => value > 0);
  const [top, bottom] = positive.length ? [Math.max(...positive), Math.min(...positive)] : [1, 0.1];
  const high = stepped(top * 1.02, true);
  const low = Math.min(Math.max(stepped(bottom * 0.98, false), high / 1e6), high / 10);
  const below = values.some((value) => value < low);
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  let ticks = [];
  for (let power = first; power <= last; power++)
    for (const step of last - first <= 2 ? [1, 2, 5] : [1]) ticks.push(step * 10 ** power);
  ticks = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  if (below) ticks = [low, ...ticks.filter((tick) => tick > low * 1.001)];
  return {
    ticks,
    label: (tick) => (below && tick === low ? `\u2264 ${tickText(tick)}` : tickText(tick)),
    place: (value) =>
      value <= low ? start : start + (end - start) * hold(Math.log10(value / low) / Math.log10(high / low)),
  };
}

function linearAxis(values, start, end, most) {
  let low = Math.min(...values), high = Math.max(...values);
  const room = Math.max((high - low) * 0.12, Math.max(Math.abs(low), Math.abs(high)) * 0.02, 1e-9);
  low = low >= 0 ? Math.max(low - room, 0) : low - room;
  high = high < 0 ? Math.min(high + room, 0) : high + room;
  const raw = (high - low) / most, base = 10 ** Math.floor(Math.log10(raw));
  const step = base * [1, 2, 5, 10].find((factor) => factor * base >= raw);
  const first = Math.floor(low / step), last = Math.max(Math.ceil(high / step), first + 1);
  const ticks = Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
  return {
    ticks,
    label: (tick) => String(Number(tick.toPrecision(4))).replace("-", MINUS),
    place: (value) => start + ((end - start) * (value - ticks[0])) / (ticks[ticks.length - 1] - ticks[0]),
  };
}

// ---- the front, and labels that meet nothing

function frontOf(points, metric) {
  const cost = (point) => (metric.less ? point.figure[0] : -point.figure[0]);
  const best = [];
  for (const point of [...points].sort((a, b) => a.entry.bytes - b.entry.bytes || cost(a) - cost(b))) {
    const last = best[best.length - 1];
    const same = last && point.entry.bytes === last.entry.bytes && cost(point) === cost(last);
    if (!last || cost(point) < cost(last) || same) best.push(point);
  }
  return new Set(best);
}

const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
const wide = (text) => [...text].reduce((sum, letter) => sum + (letter > "\u2e80" ? 2 : 1), 0) * 6.8;
function shorten(text, pixels) {
  const letters = [...text];
  while (letters.length > 1 && wide(letters.join("")) > pixels) letters.pop();
  return letters.length < [...text].length ? `${letters.slice(0, -1).join("")}\u2026` : text;
}

function labelNear(text, [x, y], taken, poles, frame) {
  const width = wide(text);
  const spots = [
    [x + 9, y - 4], [x + 9, y + 4], [x - 9 - width, y + 4], [x + 9, y + 18], [x - 9 - width, y - 8],
    [x - 9 - width, y + 18], [x - width / 2, y - 14], [x - width / 2, y + 24],
  ];
  const boxes = spots
    .map(([a, b]) => [a, b - 11, a + width, b + 3])
    .filter((b) => b[0] >= frame[0] && b[2] <= frame[2] + 8 && b[1] >= frame[1] - 8 && b[3] <= frame[3])
    .filter((box) => !taken.some((other) => meets(box, other)));
  const box = boxes.find((one) => !poles.some((other) => meets(one, other))) || boxes[0];
  if (!box) return null;
  taken.push(box);
  const ends = box[2] <= x;
  const attributes = { x: ends ? box[2] : box[0], y: box[3] - 3, class: "label on", "text-anchor": ends ? "end" : null };
  return shape("text", attributes, text);
}

// ---- the drawing

function markOf(point, x, y, radius) {
  const series = DATA.methods.indexOf(point.entry.method) % DATA.marks.length;
  const attributes = { class: `mark s${series}` };
  const corners = DATA.marks[series];
  if (!corners.length) return shape("circle", { ...attributes, cx: x, cy: y, r: radius });
  return shape("polygon", { ...attributes, points: corners.map(([a, b]) => `${x + radius * a},${y + radius * b}`).join(" ") });
}
const line = (x1, y1, x2, y2, name) => shape("line", { x1, y1, x2, y2, class: name });
const words = (x, y, text, name, anchor = null) => shape("text", { x, y, class: name, "text-anchor": anchor }, text);

function axes(x, y, frame, names) {
  const [left, top, right, bottom] = frame;
  const shapes = [];
  for (const tick of y.ticks) {
    shapes.push(line(left, y.place(tick), right, y.place(tick), "grid"));
    shapes.push(words(left - 6, y.place(tick) + 4, y.label(tick), "tick", "end"));
  }
  shapes.push(line(left, bottom, right, bottom, "base"));
  let last = -Infinity;
  for (const tick of x.ticks) {
    const place = x.place(tick);
    shapes.push(line(place, bottom, place, bottom + 4, "base"));
    if (place - last < 34) continue;
    shapes.push(words(place, bottom + 18, x.label(tick), "tick", "middle"));
    last = place;
  }
  return [...shapes, words(right, bottom + 38, names[0], "axis", "end"), words(left, top - 8, names[1], "axis")];
}

// what figures are held against: the reference's own noise, its accuracy
function levelOf(metric, group) {
  if (metric.key === "kl" && DATA.noise !== null && group === DATA.groups[0])
    return { value: DATA.noise, name: `noise floor ${number(DATA.noise)}` };
  const reference = DATA.references[group];
  if (metric.key !== "accuracy") return null;
  return { value: 0, name: reference === null ? "reference" : `reference: ${share(reference)}` };
}

// points: [{entry, figure: [value, low, high]}], one at least; gives each its place, x and y, and says which are best
function drawScatter(points, metric, width, group) {
  const narrow = width < 560, height = narrow ? 340 : Math.round(Math.min(520, Math.max(380, width * 0.42)));
  const frame = [narrow ? 50 : 64, 22, width - 14, height - 46], [left, top, right, bottom] = frame;
  const held = levelOf(metric, group), taken = [];
  const values = points.flatMap((point) => point.figure.map((value) => value * metric.factor));
  if (held) values.push(held.value);
  const y = metric.log ? logAxis(values, bottom, top) : linearAxis(values, bottom, top, 6);
  const x = linearAxis(points.map((point) => point.entry.bytes / DATA.unit.bytes), left, right, narrow ? 4 : 8);
  const shapes = axes(x, y, frame, [`size, ${DATA.unit.name}`, metric.axis + (metric.log ? " (log scale)" : "")]);
  if (held) {
    const height = y.place(held.value);
    shapes.push(line(left, height, right, height, "floor"), words(left + 6, height - 5, held.name, "noise-label"));
    taken.push([left, height - 16, left + 6 + wide(held.name), height]);
  }
  const best = frontOf(points, metric), poles = [];
  for (const point of points) {
    const series = DATA.methods.indexOf(point.entry.method) % DATA.marks.length, name = `whisker w${series}`;
    point.x = x.place(point.entry.bytes / DATA.unit.bytes);
    const [middle, low, high] = point.figure.map((value) => y.place(value * metric.factor));
    point.y = middle;
    point.best = best.has(point);
    if (low === high) continue;
    poles.push([point.x - 2, high, point.x + 2, low]);
    shapes.push(line(point.x, low, point.x, high, name));
    for (const end of [low, high]) shapes.push(line(point.x - 3, end, point.x + 3, end, name));
  }
  const along = [...best].sort((a, b) => a.x - b.x || a.y - b.y);
  shapes.push(shape("polyline", { points: along.map((point) => `${point.x},${point.y}`).join(" "), class: "front" }));
  taken.push(...points.map((point) => [point.x - 6, point.y - 6, point.x + 6, point.y + 6]));
  const labels = narrow ? [] : along.map((p) => labelNear(shorten(p.entry.name, 190), [p.x, p.y], taken, poles, frame));
  for (const point of points) point.mark = markOf(point, point.x, point.y, points.length < 30 ? 5 : 4);
  return { width, height, shapes, labels };
}
