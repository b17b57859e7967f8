"use strict";
// The state is one object. `change` draws anew: `draw` turns values into pixels of the images' own size, `paint` puts
// these onto the panels, zoomed and moved, with the cross, and `read` says what is under it.

const $ = (id) => document.getElementById(id);
const parse = (id) => JSON.parse($(id).textContent);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const make = (tag, parent, text = "", name = "") =>
  parent.appendChild(Object.assign(document.createElement(tag), { textContent: text, className: name }));

function bytes(text) {
  const letters = atob(text);
  const found = new Uint8Array(letters.length);
  for (let k = 0; k < letters.length; k++) found[k] = letters.charCodeAt(k);
  return found;
}

const about = parse("about");
const colours = Object.fromEntries(Object.entries(about.colours).map(([name, text]) => [name, bytes(text)]));
const start = { scan: 0, channel: 0, slice: 0, sample: 0, part: "magnitude", overlay: -1, opacity: 0.7, smooth: false };
const plain = { level: 0.5, width: 1, spread: 1 }; // in units of the scan's own scales
const whole = { zoom: 1, x: 0.5, y: 0.5 }; // middle of the view, in units of the image
const state = { ...start, ...plain, ...whole, cross: { x: 0.5, y: 0.5 } };
let scan; // what is shown of it: shape, windows, arrays

// ---------------------------------------------------------------------------------------------------------- values

function load() {
  const { shape, windows, arrays } = parse(`scan-${state.scan}`);
  const [channels, slices, height, width] = shape;
  scan = { channels, slices, height, width, windows, arrays };
}

/** Codes of an array, decoded when they are first asked for. */
function codesOf(name) {
  const packed = scan.arrays[name];
  packed.decoded ??= new Uint16Array(bytes(packed.codes).buffer); // least byte first, as in every browser's machine
  return packed.decoded;
}

/** Image `index` of an array, of the channel and slice that are shown; NaN where there is no value. */
function image(name, index) {
  const { offset, scale } = scan.arrays[name];
  const codes = codesOf(name);
  const values = new Float32Array(scan.width * scan.height);
  const first = ((index * scan.channels + state.channel) * scan.slices + state.slice) * values.length;
  for (let k = 0; k < values.length; k++)
    values[k] = codes[first + k] === 65535 ? NaN : offset + scale * codes[first + k];
  return values;
}

const indexOf = (panel) => (panel.array === "sample" ? state.sample : panel.index);

function overlay() {
  const { of, less } = about.overlays[state.overlay];
  const values = image(...of);
  return less ? ((low) => values.map((value, k) => value - low[k]))(image(...less)) : values;
}

/** Ends of a scale, as they are set. */
function ends(scale) {
  if (scale === "phase") return [-Math.PI, Math.PI];
  const [low, high] = scan.windows[scale];
  if (scale === "z") return [low, high];
  if (scale !== "image") return [low, high * state.spread];
  const middle = low + state.level * (high - low);
  const half = (state.width * (high - low)) / 2;
  return [middle - half, middle + half];
}

const coloursOf = (scale) => colours[scale] ?? colours.spread;

// ---------------------------------------------------------------------------------------------------------- drawing

/** Values as pixels. An overlay hides as much as its value says: nothing at zero, all at the ends of its scale. */
function pixels(values, scale, over = false) {
  const canvas = Object.assign(document.createElement("canvas"), { width: scan.width, height: scan.height });
  const context = canvas.getContext("2d");
  const drawn = context.createImageData(scan.width, scan.height);
  const { data } = drawn;
  const [low, high] = ends(scale);
  const map = coloursOf(scale);
  const zero = scale === "z" ? 0.5 : 0;
  for (let k = 0; k < values.length; k++) {
    if (Number.isNaN(values[k])) continue;
    const place = clamp((values[k] - low) / (high - low || 1), 0, 1);
    const colour = 3 * Math.round(255 * place);
    for (let part = 0; part < 3; part++) data[4 * k + part] = map[colour + part];
    data[4 * k + 3] = over ? (255 * state.opacity * Math.abs(place - zero)) / (1 - zero) : 255;
  }
  context.putImageData(drawn, 0, 0);
  return canvas;
}

function draw() {
  for (const panel of about.panels) {
    panel.figure.hidden = !panel.shown;
    if (!panel.shown) continue;
    const phase = state.part === "phase" && `${panel.array}_phase` in scan.arrays;
    const scale = phase ? "phase" : panel.scale;
    const values = image(phase ? `${panel.array}_phase` : panel.array, indexOf(panel));
    panel.layers = [pixels(values, scale)];
    label(panel.scales[0], scale);
    if (panel.array === "mean" && panel.scales[1]) {
      panel.scales[1].hidden = state.overlay < 0;
      if (state.overlay >= 0) {
        panel.layers.push(pixels(overlay(), about.overlays[state.overlay].scale, true));
        label(panel.scales[1], about.overlays[state.overlay].scale);
      }
    }
    panel.detail.textContent = detail(panel);
    panel.canvas.setAttribute("aria-label", `${panel.title} ${panel.detail.textContent}: ${panel.about}`);
  }
  read(); // its height counts
  arrange();
}

function detail(panel) {
  if (panel.array === "mean" && state.overlay >= 0) return `with ${about.overlays[state.overlay].title.toLowerCase()}`;
  if (panel.array !== "sample") return "";
  return `${state.sample + 1} of ${about.samples}`;
}

/** A bar of colours with numbers at its ends and in the middle. */
function label(box, scale) {
  const [bar, ...numbers] = box.children;
  const map = coloursOf(scale);
  const data = new ImageData(256, 1);
  for (let k = 0; k < 256; k++) data.data.set([map[3 * k], map[3 * k + 1], map[3 * k + 2], 255], 4 * k);
  bar.getContext("2d").putImageData(data, 0, 0);
  const [low, high] = ends(scale);
  const values = [low, (low + high) / 2, high];
  const texts = scale === "phase" ? ["−π", "0", "π"] : values.map((value) => number(value, 3));
  numbers.forEach((element, k) => (element.textContent = texts[k]));
}

/** As many columns as make the panels largest without scrolling; two at least, where there is little room. */
function arrange() {
  const shown = about.panels.filter((panel) => panel.shown).length;
  const room = $("panels").clientWidth;
  const wide = matchMedia("(min-width: 60rem)").matches;
  const top = $("panels").getBoundingClientRect().top + scrollY;
  const high = Math.max(innerHeight - top - $("readout").offsetHeight - 30, 320);
  const title = 62, more = state.overlay >= 0 ? 26 : 0; // what is above and below an image, and a second scale
  let best = { size: 0 };
  for (let columns = wide ? 1 : Math.min(2, shown); columns <= Math.max(shown, 1); columns++) {
    const fits = ((high - more) / Math.ceil(shown / columns) - title) * (scan.width / scan.height);
    const size = Math.min((room - 15 * (columns - 1)) / columns, wide ? Math.max(fits, 160) : Infinity);
    if (size > best.size) best = { size, columns };
  }
  const column = wide ? `${Math.floor(best.size)}px` : "minmax(0, 1fr)";
  $("panels").style.gridTemplateColumns = `repeat(${best.columns ?? 1}, ${column})`;
  paint();
}

function paint() {
  const { width, height } = scan;
  const half = 0.5 / state.zoom;
  state.x = clamp(state.x, half, 1 - half);
  state.y = clamp(state.y, half, 1 - half);
  for (const panel of about.panels) {
    if (!panel.shown) continue;
    const { canvas } = panel;
    canvas.style.aspectRatio = `${width} / ${height}`;
    const context = canvas.getContext("2d");
    canvas.width = Math.round(canvas.clientWidth * devicePixelRatio);
    canvas.height = Math.round((canvas.width * height) / width);
    const s = (canvas.width / width) * state.zoom;
    context.setTransform(s, 0, 0, s, canvas.width / 2 - state.x * width * s, canvas.height / 2 - state.y * height * s);
    context.imageSmoothingEnabled = state.smooth;
    for (const layer of panel.layers) context.drawImage(layer, 0, 0);
    mark(context, s);
  }
  $("panels").style.touchAction = state.zoom > 1 ? "none" : "pan-y";
  $("zoom").textContent = `${state.zoom.toFixed(1)}×`;
  read();
}

/** The cross: light with a dark edge, open at the pixel that it marks. */
function mark(context, s) {
  const x = pixel("x") + 0.5, y = pixel("y") + 0.5;
  const gap = Math.max(0.5, (4 * devicePixelRatio) / s), arm = gap + (7 * devicePixelRatio) / s;
  for (const [colour, wide] of [["#000c", 3], ["#fffd", 1.2]]) {
    context.strokeStyle = colour;
    context.lineWidth = (wide * devicePixelRatio) / s;
    context.beginPath();
    for (const side of [-1, 1]) {
      context.moveTo(x + side * gap, y);
      context.lineTo(x + side * arm, y);
      context.moveTo(x, y + side * gap);
      context.lineTo(x, y + side * arm);
    }
    context.stroke();
  }
}

const pixel = (axis) => {
  const size = axis === "x" ? scan.width : scan.height;
  return clamp(Math.floor(state.cross[axis] * size), 0, size - 1);
};

// ---------------------------------------------------------------------------------------------------------- reading

function number(value, digits = 4) {
  if (!Number.isFinite(value)) return "none";
  const size = Math.abs(value);
  const text = size === 0 ? "0" : size >= 1e5 || size < 1e-3 ? value.toExponential(digits - 2)
    : size >= 10 ** digits ? value.toFixed(0) : value.toPrecision(digits);
  return text.replaceAll("-", "−");
}

/** Value at the cross. */
function at(name, index = 0) {
  const { offset, scale } = scan.arrays[name];
  const row = ((index * scan.channels + state.channel) * scan.slices + state.slice) * scan.height + pixel("y");
  const code = codesOf(name)[row * scan.width + pixel("x")];
  return code === 65535 ? NaN : offset + scale * code;
}

function read() {
  const has = (name) => name in scan.arrays;
  const k = state.sample;
  const phase = (name, index) =>
    state.part === "phase" && has(`${name}_phase`) ? `, phase ${number(at(`${name}_phase`, index), 3)} rad` : "";
  const place = [`x ${pixel("x")}`, `y ${pixel("y")}`, ...(scan.slices > 1 ? [`z ${state.slice}`] : [])];
  const rows = [["pixel", "Pixel (from 0)", place.join(", ")]];
  const units = about.units === "arbitrary" ? "arbitrary units" : about.units;
  rows.push(["mean", `Mean ± std (${units})`, `${number(at("mean"))} ± ${number(at("std"), 3)}${phase("mean", 0)}`]);
  if (has("lower") && has("upper"))
    rows.push(["interval", `${about.level} interval`, `${number(at("lower"))} to ${number(at("upper"))}`]);
  const quantiles = about.panels.filter((panel) => panel.array === "quantile");
  if (quantiles.length)
    rows.push(["quantiles", about.quantiles, quantiles.map(({ index }) => number(at("quantile", index))).join(", ")]);
  if (has("sample"))
    rows.push(["sample", `Sample ${k + 1}`, number(at("sample", k)) + phase("sample", k)]);
  if (has("truth")) {
    rows.push(["truth", "Reference", number(at("truth")) + phase("truth", 0)]);
    rows.push(["error", "Error", number(at("error"))], ["z", "z-score", number(at("z"), 3)]);
  }
  const list = $("readout");
  while (list.children.length < rows.length) {
    const box = make("div", list);
    make("dt", box);
    make("dd", box);
  }
  rows.forEach(([name, title, text], row) => {
    const [term, value] = list.children[row].children;
    if (term.textContent !== title) term.textContent = title;
    if (value.textContent !== text) value.textContent = text; // only what is new is spoken
    value.id = `value-${name}`;
  });
}

// ---------------------------------------------------------------------------------------------------------- changing

let waiting = false;
/** Change the state and draw once for all changes before the next frame. */
function change(changes) {
  const other = "scan" in changes && changes.scan !== state.scan;
  Object.assign(state, changes);
  if (other) load();
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    controls();
    draw();
  });
}

function move(changes) {
  Object.assign(state, changes);
  paint();
}

const counts = () => ({
  scan: about.scans.length,
  channel: scan.channels,
  slice: scan.slices,
  sample: about.samples,
});

/** Show the state in the controls, and only those that have something to choose. */
function controls() {
  for (const [name, count] of Object.entries(counts())) {
    state[name] = clamp(state[name], 0, Math.max(count - 1, 0));
    $(name).closest(".field").hidden = count < 2 && name !== "scan";
    if (name === "scan") continue;
    $(name).max = count - 1;
    $(`${name}-text`).textContent = `${state[name] + 1} of ${count}`;
  }
  for (const name of Object.keys({ ...start, ...plain }))
    if (name === "smooth") $(name).checked = state[name];
    else $(name).value = state[name];
  $("part-field").hidden = !("mean_phase" in scan.arrays);
  $("opacity-field").hidden = state.overlay < 0;
  $("opacity-text").textContent = `${Math.round(100 * state.opacity)}%`;
  const [low, high] = ends("image");
  const texts = { level: (low + high) / 2, width: high - low, spread: ends("spread")[1] };
  for (const [name, value] of Object.entries(texts)) {
    $(`${name}-text`).textContent = number(value, 3);
    $(name).setAttribute("aria-valuetext", number(value, 3));
  }
  const { residual, effective } = about.scans[state.scan];
  const own = residual?.[state.sample];
  const facts = own == null ? [] : [`Residual of this sample ${own.toFixed(2)} (1 is right)`];
  if (effective) facts.push(`the mean is worth ${effective} samples`);
  $("fit").textContent = facts.join("; ");
  $("fit").hidden = !facts.length;
}

function step(name, by) {
  const count = counts()[name];
  if (count < 2) return false;
  change({ [name]: (state[name] + by + count) % count });
  return true;
}

/** Zoom by a factor; what lies at `x`, `y` (in units of the image) stays where it is. */
function zoom(factor, x = state.cross.x, y = state.cross.y) {
  const next = clamp(state.zoom * factor, 1, 64);
  const keep = state.zoom / next;
  move({ zoom: next, x: x + (state.x - x) * keep, y: y + (state.y - y) * keep });
}

let playing = 0;
function play() {
  clearInterval(playing);
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  playing = playing || counts().sample < 2 ? 0 : setInterval(() => step("sample", 1), calm ? 1000 : 200);
  $("play").setAttribute("aria-pressed", String(playing !== 0));
  $("play").textContent = playing ? "❚❚" : "▶";
}

const nextOverlay = () => change({ overlay: ((state.overlay + 2) % (about.overlays.length + 1)) - 1 });
const otherPart = () => "mean_phase" in scan.arrays && change({ part: state.part === "phase" ? "magnitude" : "phase" });
const grey = (level, width) =>
  change({ level: clamp(state.level + level, -0.5, 1.5), width: clamp(state.width * width, 0.01, 2) });
const spread = (factor) => change({ spread: clamp(state.spread * factor, 0.05, 3) });

function point(axis, by) {
  const size = axis === "x" ? scan.width : scan.height;
  state.cross[axis] = (clamp(pixel(axis) + by, 0, size - 1) + 0.5) / size;
  const reach = 0.5 / state.zoom - 0.5 / size; // the view follows
  move({ [axis]: clamp(state[axis], state.cross[axis] - reach, state.cross[axis] + reach) });
}

// ------------------------------------------------------------------------------------------------ keys and pointers

const KEYS = {
  ArrowLeft: () => step("sample", -1),
  ArrowRight: () => step("sample", 1),
  ArrowUp: () => step("scan", -1),
  ArrowDown: () => step("scan", 1),
  PageUp: () => step("slice", -1),
  PageDown: () => step("slice", 1),
  "+": () => zoom(1.25),
  "=": () => zoom(1.25),
  "-": () => zoom(0.8),
  "−": () => zoom(0.8),
  0: () => move({ ...whole }),
  " ": play,
  "[": () => grey(0, 0.9),
  "]": () => grey(0, 1 / 0.9),
  ",": () => grey(-0.03, 1),
  ".": () => grey(0.03, 1),
  a: () => change({ ...plain }),
  o: nextOverlay,
  p: otherPart,
  "?": () => $("keys").showModal(),
};
const SHIFTED = {
  ArrowLeft: () => point("x", -1),
  ArrowRight: () => point("x", 1),
  ArrowUp: () => point("y", -1),
  ArrowDown: () => point("y", 1),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  // what has these keys already
  const own = event.key === " " ? "button, input, select, summary" : "select, input[type=range]";
  if (/^(Arrow|Page| )/.test(event.key) && event.target.matches(own)) return;
  const action = (event.shiftKey && SHIFTED[event.key]) || KEYS[event.key];
  if (action && action() !== false) event.preventDefault();
});

/** Where in the image a pointer is, in units of it. */
function place(event, canvas) {
  const box = canvas.getBoundingClientRect();
  return {
    x: state.x + ((event.clientX - box.left) / box.width - 0.5) / state.zoom,
    y: state.y + ((event.clientY - box.top) / box.height - 0.5) / state.zoom,
  };
}

const pointers = new Map(); // those that are down, with where they were last

function listen({ canvas, scale }) {
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    if (state.zoom === 1 && event.deltaY > 0) return; // there the page scrolls
    event.preventDefault();
    const { x, y } = place(event, canvas);
    zoom(Math.exp(-clamp(event.deltaY, -100, 100) / 400), x, y);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event);
    move({ cross: place(event, canvas) });
  });
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return move({ cross: place(event, canvas) });
    const dx = (event.clientX - before.clientX) / canvas.clientWidth;
    const dy = (event.clientY - before.clientY) / canvas.clientHeight;
    const others = [...pointers.values()].filter((other) => other.pointerId !== event.pointerId);
    pointers.set(event.pointerId, event);
    if (others.length) {
      const apart = (one) => Math.hypot(one.clientX - others[0].clientX, one.clientY - others[0].clientY);
      const { x, y } = place(others[0], canvas);
      return zoom(apart(event) / Math.max(apart(before), 1), x, y);
    }
    if (event.buttons & 2)
      return scale === "image" ? grey(-dy, Math.exp(2 * dx)) : spread(Math.exp(2 * dx));
    return move({ x: state.x - dx / state.zoom, y: state.y - dy / state.zoom });
  });
}

// --------------------------------------------------------------------------------------------------------- beginning

function scaleOf(figure) {
  const box = make("div", figure, "", "scale");
  Object.assign(make("canvas", box), { width: 256, height: 1 }).setAttribute("aria-hidden", "true");
  for (let k = 0; k < 3; k++) make("span", box);
  return box;
}

for (const panel of about.panels) {
  panel.layers = [];
  panel.figure = make("figure", $("panels"));
  const caption = make("figcaption", panel.figure, panel.title);
  panel.detail = make("span", caption);
  caption.title = panel.about;
  panel.canvas = make("canvas", panel.figure, "", "image");
  panel.canvas.id = `panel-${panel.array}${panel.array === "quantile" ? `-${panel.index}` : ""}`;
  panel.canvas.setAttribute("role", "img");
  panel.scales = [scaleOf(panel.figure), ...(panel.array === "mean" ? [scaleOf(panel.figure)] : [])];
  listen(panel);
  const check = make("label", $("shown"));
  const box = Object.assign(make("input", check), { type: "checkbox", checked: panel.shown });
  check.append(panel.title);
  box.addEventListener("change", () => {
    panel.shown = box.checked;
    change({});
  });
}
about.scans.forEach(({ label }, k) => (make("option", $("scan"), label).value = k));
about.overlays.forEach(({ title }, k) => (make("option", $("overlay"), title).value = k));
for (const name of Object.keys({ ...start, ...plain }))
  $(name).addEventListener("input", ({ target }) => {
    const value = target.type === "checkbox" ? target.checked : target.value;
    change({ [name]: typeof value === "string" && name !== "part" ? Number(value) : value });
  });
const BUTTONS = { in: KEYS["+"], out: KEYS["-"], reset: KEYS[0], auto: KEYS.a, help: KEYS["?"], play };
for (const [name, action] of Object.entries(BUTTONS)) $(name).addEventListener("click", action);
addEventListener("resize", arrange);
load();
controls();
draw();
