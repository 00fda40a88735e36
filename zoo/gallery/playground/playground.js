// The playground's page: a form and a YAML text, each of which changes the other, and the price of what they say.
"use strict";
{ // a scope of its own: site.js is on the page too

const LIMIT = 60_000; // milliseconds after which an answer is given up
const TILES = ["params.total", "kv_cache.bytes", "memory.generate_peak", "memory.train_peak", "flops.forward"];
const SHORT = { "params.total": "parameters", "kv_cache.bytes": "cache", "memory.generate_peak": "to generate",
  "memory.train_peak": "to train", "flops.forward": "FLOPs per token" };
const MAIN = ["attention", "position", "norm", "block", "ffn", "router", "activation"];
const HERE = location.protocol === "file:" ? "file" : "server";

const by = (id) => document.getElementById(id);
const state = { text: DATA.text, setup: {}, scope: [], answer: null, open: new Set(), added: [] };

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// ---------------------------------------------------------------- the worker

const engine = { worker: null, ready: false, busy: false, next: null, count: 0, timer: 0 };

function startWorker() {
  engine.worker = new Worker("worker.js", { type: "module" });
  engine.worker.onmessage = ({ data }) => receive(data);
  engine.worker.onerror = (event) => fail(event.message || "the worker does not start");
}

function fail(words) {
  clearTimeout(engine.timer);
  engine.worker?.terminate();
  Object.assign(engine, { worker: null, ready: false, busy: false, next: null });
  tell(`Stopped: ${words.trim().split("\n").pop()}. The next change starts it anew.`, false);
}

function tell(words, busy) {
  by("status").textContent = words;
  by("status").classList.toggle("busy", busy);
}

// Prices the present text after `edits`, each a path and a value. While one request runs, later ones are joined.
function ask(edits = []) {
  if (HERE === "file") return;
  const joined = [...(engine.next?.edits ?? []), ...edits];
  engine.next = { edits: joined };
  if (!engine.worker) startWorker();
  if (!engine.busy) send();
}

function send() {
  const request = { text: state.text, setup: state.setup, edits: engine.next.edits };
  engine.next = null;
  engine.busy = true;
  engine.count += 1;
  tell(engine.ready ? "Pricing" : "Loading Python and Zoo (13 MB, once)", true);
  clearTimeout(engine.timer);
  if (engine.ready) engine.timer = setTimeout(() => fail(`no answer in ${LIMIT / 1000} s`), LIMIT);
  engine.worker.postMessage({ id: engine.count, request });
}

function receive(message) {
  if (message.status) return tell(message.status, true);
  if (message.failed) return fail(message.failed);
  clearTimeout(engine.timer);
  const first = !engine.ready;
  Object.assign(engine, { ready: true, busy: false });
  if (message.error) {
    tell(`Zoo failed: ${message.error}`, false);
  } else {
    const whole = first ? `, ${(performance.now() / 1000).toFixed(1)} s after the page opened` : "";
    tell(message.answer.faults ? "Not a model yet: the figures are those of the last one" : `Priced in ${message.seconds.toFixed(2)} s${whole}`, false);
    document.documentElement.dataset.priced = String(engine.count); // for those who measure
    show(message.answer);
  }
  if (engine.next) send();
}

// ---------------------------------------------------------------- what is shown

function show(answer) {
  const typing = document.activeElement === by("text");
  if (!(typing && engine.next)) {
    state.text = answer.text;
    if (by("text").value !== answer.text) by("text").value = answer.text;
  }
  writeFragment();
  by("start").value = answer.start ?? "";
  const faults = answer.faults ?? [];
  showFaults(faults);
  for (const id of ["tiles", "drawing", "figures"]) by(id).classList.toggle("stale", faults.length > 0);
  if (faults.length) return;
  state.answer = answer;
  showPrice(answer);
  showForm(answer);
  showDrawing(answer);
  by("whole").textContent = answer.yaml;
  by("notes").replaceChildren(...answer.notes.map((note) => make("li", {}, note)));
}

function showPrice(answer) {
  const changed = answer.rows.some((row) => row.change);
  const rows = Object.fromEntries(answer.rows.map((row) => [row.path, row]));
  by("tiles").replaceChildren(...TILES.filter((path) => rows[path]).map((path) => makeTile(rows[path])));
  const heads = changed ? ["", answer.start, "now", "change"] : ["", "exact"];
  by("figures").replaceChildren(
    make("thead", {}, make("tr", {}, ...heads.map((text) => text ? make("th", { scope: "col" }, text) : make("td")))),
    make("tbody", {}, ...answer.rows.map((row) => make("tr", {},
      make("th", { scope: "row" }, row.label),
      changed ? make("td", {}, row.start) : null,
      make("td", {}, row.now, make("small", {}, exact(row.exact.b))),
      changed ? makeChange("td", row) : null))));
  by("fits").textContent = answer.told["fits on"] ? `Fits on ${answer.told["fits on"]}.` : "";
  by("assumed").textContent = answer.told.assumed;
  by("chart").hidden = !answer.chart;
  by("chart").replaceChildren(...parseDrawing(answer.chart), makeLegend(answer));
  showRows("gpus", ["GPU", answer.start ?? "start", "now"],
    answer.gpus.map(([name, start, now]) => [name, ...[start, now].map(([count, batch]) => count ? `${count} × holds ${exact(batch)}` : "none")]));
  showRows("components", ["component", answer.start ?? "start", "now"],
    answer.components.map(([name, start, now]) => [name.replaceAll("_", " "), exact(start), exact(now)]));
  showRows("differs", ["field", answer.start ?? "start", "now"],
    Object.entries(answer.differs).map(([path, { a, b }]) => [path, String(a ?? "–"), String(b ?? "–")]));
  by("command").textContent = ["zoo stats model.yaml",
    ...Object.entries(state.setup).map(([name, value]) => `--${name.replaceAll("_", "-")} ${value}`)].join(" ");
}

function makeLegend(answer) {
  const names = { start: answer.start, now: answer.curves.length > 1 ? "now" : "cache" };
  const keys = answer.curves.map((name, at) => make("li", {}, make("span", { class: `key b${at}` }), names[name]));
  const floor = make("li", {}, make("span", { class: "key floor" }), "the weights");
  return make("figcaption", {}, make("ul", { class: "legend" }, ...keys, floor));
}

function showRows(id, heads, rows) {
  by(id).replaceChildren(
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map(([name, ...cells]) => make("tr", {},
      make("th", { scope: "row" }, name), ...cells.map((cell) => make("td", {}, cell))))));
}

function makeTile(row) {
  return make("div", {}, make("dt", {}, SHORT[row.path]), make("dd", {}, row.now),
    row.change ? makeChange("dd", row) : make("dd", { class: "exact" }, exact(row.exact.b)));
}

function makeChange(tag, row) {
  const way = row.exact.delta > 0 ? "more" : row.exact.delta < 0 ? "less" : "";
  return make(tag, { class: `${tag === "dd" ? "exact " : ""}${way}` }, row.change.replace("-", "\u2212"));
}

function exact(value) {
  return value === null || value === undefined ? "" : value.toLocaleString("en-US");
}

// Texts from the worker hold names that somebody typed: an SVG is parsed as XML, and no script in it is run (the page's
// policy allows none).
function parseDrawing(text) {
  if (!text) return [];
  const parsed = new DOMParser().parseFromString(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '), "image/svg+xml").documentElement;
  return parsed.nodeName === "svg" ? [document.adoptNode(parsed)] : [];
}

function showDrawing(answer) {
  if (!answer.drawing) return by("drawing").replaceChildren(make("pre", {}, answer.yaml));
  const address = URL.createObjectURL(new Blob([answer.drawing], { type: "image/svg+xml" }));
  const image = make("img", { src: address, alt: answer.drawing_text ?? "The architecture's drawing" });
  image.addEventListener("load", () => URL.revokeObjectURL(address));
  by("drawing").replaceChildren(image);
}

function showFaults(faults) {
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  for (const line of document.querySelectorAll(".fault")) line.remove();
  const left = faults.filter((fault) => !markField(fault));
  by("faults").replaceChildren(...left.map((fault) => make("li", {}, fault.text)));
  if (left.length) by("text").setAttribute("aria-invalid", "true");
}

// Shows a fault at the field whose path is the fault's, or the longest start of it.
function markField(fault) {
  const keys = fault.path.split(".");
  for (let length = keys.length; length > 0; length -= 1) {
    const field = document.querySelector(`[data-path="${CSS.escape(JSON.stringify(keys.slice(0, length)))}"]`);
    if (!field) continue;
    const id = `fault-${length}-${keys.join("-")}`;
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", id);
    field.after(make("p", { class: "fault wide", id, role: "alert" }, fault.text));
    return true;
  }
  return false;
}

// ---------------------------------------------------------------- the form

function look(values, path) {
  let node = values;
  for (const key of path) {
    if (typeof node === "string") node = { kind: node };
    node = node === null || typeof node !== "object" ? undefined : node[key];
  }
  return node;
}

function word(node) {
  return node && typeof node === "object" ? node.kind ?? "" : node === true ? "true" : node ?? "";
}

function listScopes(values) {
  const layers = Object.keys(values.layers ?? {}).map((name) => ["layers", name]);
  const towers = ["encoder", "decoder"].filter((name) => values.kind === "encoder_decoder").map((name) => [name]);
  return [[], ...towers, ...layers];
}

function showForm(answer) {
  const focused = document.activeElement?.dataset?.path;
  const scopes = listScopes(answer.values);
  if (!scopes.some((scope) => String(scope) === String(state.scope))) state.scope = [];
  const scope = state.scope;
  const parts = [];
  if (scopes.length > 1) parts.push(makeScopes(scopes));
  parts.push(make("h3", {}, "Sizes"), make("div", { class: "fields" }, ...listKeys(answer.values, scope).flatMap(
    (key) => makeField(answer.values, [...scope, key], key, DATA.form.keys[key]))), makeAdder(answer.values, scope));
  const inLayers = scope[0] === "layers"; // a kind of layer has no embedding and no head of its own
  const used = (axis) => MAIN.includes(axis) ? axis !== "router" || usesExperts(answer.values) : look(answer.values, [axis]);
  const axes = Object.keys(DATA.form.axes).filter((axis) => !inLayers || MAIN.includes(axis) || axis === "cross");
  parts.push(make("h3", {}, "Axes"), makeAxes(answer.values, scope, axes.filter(used)));
  const rest = axes.filter((axis) => !used(axis));
  parts.push(makeDetails("more", "More parts", () => makeAxes(answer.values, scope, rest)));
  by("form").replaceChildren(by("form").querySelector("legend"), ...parts);
  if (focused) document.querySelector(`[data-path="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  by("setup").replaceChildren(by("setup").querySelector("legend"), ...Object.entries(DATA.form.setup).flatMap(makeSetup));
}

function usesExperts(values) {
  return JSON.stringify([values.ffn, values.layers, values.encoder, values.decoder]).includes("moe") || Boolean(values.n_experts);
}

function makeScopes(scopes) {
  const choose = make("select", { id: "scope", on: { change: (event) => {
    state.scope = JSON.parse(event.target.value);
    showForm(state.answer);
  } } }, ...scopes.map((scope) => make("option", { value: JSON.stringify(scope), selected: String(scope) === String(state.scope) },
    scope.length ? (scope[0] === "layers" ? `layers named ${scope[1]}` : `the ${scope[0]}`) : "the whole model")));
  const hint = state.scope.length ? make("p", { class: "hint wide" }, "What stands in brackets is as in the whole model.") : null;
  return make("div", { class: "fields" }, make("label", { for: "scope" }, "Change"), choose, hint);
}

function listKeys(values, scope) {
  const own = look(values, scope) ?? {};
  const stated = Object.keys(scope.length ? { ...own } : values);
  const known = (key) => key in DATA.form.keys && (own[key] === null || typeof own[key] !== "object");
  return [...new Set([...stated.filter(known), ...state.added])];
}

function makeAdder(values, scope) {
  const rest = Object.keys(DATA.form.keys).filter((key) => !listKeys(values, scope).includes(key));
  const choose = make("select", { "aria-label": "Add a size", on: { change: (event) => {
    state.added.push(event.target.value);
    const path = JSON.stringify([...scope, event.target.value]);
    showForm(state.answer);
    document.querySelector(`[data-path="${CSS.escape(path)}"]`)?.focus();
  } } }, make("option", { value: "" }, "Add a size …"), ...rest.map((key) => make("option", { value: key }, key)));
  return make("p", {}, choose);
}

function makeAxes(values, scope, axes) {
  return make("div", { class: "fields" }, ...axes.flatMap((axis) => {
    const { what, choices } = DATA.form.axes[axis];
    const path = [...scope, axis];
    const here = look(values, path);
    const node = here ?? look(values, [axis]);
    const kind = word(node) || (node ? Object.keys(choices)[0] : "");
    const field = makeField(values, path, axis, { what, options: Object.keys(choices), titles: choices });
    const fields = DATA.form.fields[`${axis}.${choices[kind]?.kind ?? kind}`] ?? [];
    if (!fields.length) return field;
    return [...field, make("div", { class: "wide" }, makeDetails(JSON.stringify(path), `Fields of ${kind}`, () =>
      make("div", { class: "fields" }, ...fields.flatMap((each) =>
        makeField(values, [...path, ...each.name.split(".")], each.name, each)))))];
  }));
}

// A part of the form that is made when it is opened.
function makeDetails(id, title, fill) {
  const details = make("details", {}, make("summary", {}, title));
  const fillOnce = () => {
    if (details.open && details.children.length === 1) details.append(fill());
    if (details.open) state.open.add(id);
    else state.open.delete(id);
  };
  details.open = state.open.has(id);
  if (details.open) fillOnce();
  details.addEventListener("toggle", fillOnce);
  return details;
}

function makeField(values, path, label, { what, options = [], free = false, titles = {}, default: usual = "" } = {}) {
  const id = `field-${path.join("-")}`;
  const value = look(values, path);
  const scoped = state.scope.length ? look(values, path.slice(state.scope.length)) : undefined;
  const inherited = value === undefined && scoped !== undefined ? word(scoped) : usual;
  const shared = { id, "data-path": JSON.stringify(path), title: what || undefined, on: { change: (event) => edit(path, event.target.value) } };
  const changed = path.length && isChanged(path) ? "changed" : undefined;
  const caption = make("label", { for: id, title: what || undefined }, label);
  if (!options.length || free) {
    const list = options.length ? make("datalist", { id: `${id}-list` }, ...options.map((each) => make("option", { value: String(each) }))) : null;
    const shown = value === undefined || value === null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
    const input = make("input", { ...shared, class: changed, value: shown, placeholder: inherited, list: list ? `${id}-list` : undefined,
      autocomplete: "off", inputmode: typeof value === "number" ? "decimal" : undefined, type: Number.isInteger(value) ? "number" : "text", step: "any" });
    return list ? [caption, input, list] : [caption, input];
  }
  const present = value === undefined || value === null ? "" : String(typeof value === "object" ? word(value) : value);
  const words = [...new Set([...options.map(String), ...(present ? [present] : [])])];
  return [caption, make("select", { ...shared, class: changed },
    make("option", { value: "", selected: !present }, inherited ? `(${inherited})` : "–"),
    ...words.map((each) => make("option", { value: each, selected: each === present, title: titles[each]?.what }, each)))];
}

// Tells whether the text itself states a path, rather than the model that it starts from.
function isChanged(path) {
  return look(state.answer?.stated ?? {}, path) !== undefined;
}

function edit(path, typed) {
  ask([{ path, value: typed.trim() === "" ? null : typed.trim() }]);
}

function makeSetup([name, options]) {
  const id = `setup-${name}`;
  const act = { change: (event) => {
    const value = event.target.value.trim();
    if (value === "") delete state.setup[name];
    else state.setup[name] = options.length ? value : Number(value);
    ask();
  } };
  const present = state.setup[name];
  const field = options.length
    ? make("select", { id, on: act }, make("option", { value: "" }, "(usual)"),
      ...options.map((each) => make("option", { value: each, selected: each === present }, each)))
    : make("input", { id, type: "number", min: 1, value: present ?? "", placeholder: name === "context" ? "the model's" : "1", on: act });
  field.dataset.path = JSON.stringify([name]);
  return [make("label", { for: id }, name), field];
}

// ---------------------------------------------------------------- the address

function writeFragment() {
  const kept = new URLSearchParams();
  if (state.text !== DATA.text) kept.set("yaml", state.text);
  for (const [name, value] of Object.entries(state.setup)) kept.set(name, value);
  const fragment = kept.toString();
  if (location.hash.slice(1) !== fragment) history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
}

function readFragment() {
  const given = new URLSearchParams(location.hash.slice(1));
  const model = given.get("model");
  state.text = given.get("yaml") ?? (model ? startText(model) : DATA.text);
  state.setup = {};
  for (const [name, options] of Object.entries(DATA.form.setup)) {
    if (given.has(name)) state.setup[name] = options.length ? given.get(name) : Number(given.get(name));
  }
  return state.text !== DATA.text || Object.keys(state.setup).length > 0;
}

function startText(model) {
  return `defaults: [/model/${model}@_here_]\n`;
}

// ---------------------------------------------------------------- start

function fillModels() {
  const named = DATA.form.models.map(({ name, title, note }) => make("option", { value: name, title: note }, title || name));
  by("start").replaceChildren(make("option", { value: "" }, "nothing (a whole model)"), ...named);
}

function swapStart(model) {
  const line = /^defaults:.*(?:\n[ -].*)*\n?/m;
  const first = model ? startText(model) : "";
  state.text = line.test(state.text) ? state.text.replace(line, first) : first + state.text;
  ask();
}

function listen() {
  let timer = 0;
  by("text").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      state.text = by("text").value;
      ask();
    }, 400);
  });
  by("start").addEventListener("change", (event) => swapStart(event.target.value));
  by("reset").addEventListener("click", () => {
    state.text = startText(by("start").value || DATA.first.start);
    Object.assign(state, { setup: {}, scope: [], added: [] });
    ask();
  });
  by("share").addEventListener("click", async () => {
    await navigator.clipboard?.writeText(location.href);
    tell("The link is copied: it has the whole state", false);
  });
  addEventListener("hashchange", () => {
    readFragment();
    ask();
  });
}

function begin() {
  fillModels();
  const other = readFragment();
  show({ ...DATA.first, text: state.text });
  by("text").value = state.text;
  if (HERE === "file") {
    return pause("This page computes in a web worker, which browsers forbid for files. Serve the folder: " +
      "zoo gallery FOLDER --serve, then open http://127.0.0.1:8000/playground/");
  }
  fetch("pyodide-lock.json", { method: "HEAD" }).then((found) => {
    if (!found.ok) return pause("This gallery was written without the parts that compute: zoo gallery FOLDER --playground");
    if (other) for (const id of ["tiles", "drawing", "figures"]) by(id).classList.add("stale");
    listen();
    ask();
  });
}

// Shows the page as it was written, with a line that says why it does not compute.
function pause(words) {
  by("form").disabled = by("setup").disabled = by("text").disabled = true;
  for (const id of ["start", "reset", "share"]) by(id).disabled = true;
  by("notice").hidden = false;
  by("notice").textContent = words;
  tell("Shown as it was written", false);
}

begin();
}
