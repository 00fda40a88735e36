// Searching, sorting and comparing. A page works without this; what needs it is hidden until it runs.
"use strict";

const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// As zoo.report.units.format_si writes a number.
function formatSi(value, unit) {
  const prefixes = ["", "K", "M", "G", "T", "P", "E", "Z"];
  let at = 0;
  while (Math.abs(value) >= 999.5 && at < prefixes.length - 1) { value /= 1000; at += 1; }
  const digits = at ? value.toPrecision(3) : String(Number(value.toPrecision(4)));
  return `${digits} ${prefixes[at]}${unit}`.trim();
}

function formatFigure(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "params") return formatSi(value, "").replace("G", "B");
  if (unit === "year") return String(value);
  return unit ? formatSi(value, unit) : value.toLocaleString("en");
}

// ---------------------------------------------------------------- the list of models

function startList() {
  const rows = [...document.querySelectorAll("#models tbody tr")];
  const models = new Map(FIGURES.models.map((model) => [model.name, model]));
  const columns = FIGURES.columns;
  $("controls").hidden = false;
  for (const label of document.querySelectorAll(".pick label")) label.hidden = false;
  columns.forEach((column, at) => $("sort").append(make("option", { value: at }, column.label)));
  $("sort").value = columns.findIndex((column) => column.path === "shape.year");
  const shown = new Set(["params.total", "params.active", "shape.max_seq_len", "kv_cache.bytes", "shape.year"]);

  function update() {
    const words = $("search").value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    const at = Number($("sort").value), sign = $("descending").checked ? -1 : 1;
    const figure = (row) => models.get(row.dataset.name).figures[at];
    let count = 0;
    for (const row of rows) {
      const model = models.get(row.dataset.name);
      const text = [model.name, model.title, model.note, model.source, model.parts, model.kind].join(" ").toLowerCase();
      const kind = $("kind").value;
      row.hidden = !(words.every((word) => text.includes(word)) && (!kind || model.kind === kind));
      count += row.hidden ? 0 : 1;
      const cell = row.querySelector(".sorted");
      cell.hidden = shown.has(columns[at].path);
      cell.textContent = formatFigure(figure(row), columns[at].unit);
      cell.dataset.label = columns[at].label;
    }
    const none = (value) => value === null || value === undefined;
    rows.sort((a, b) => none(figure(a)) - none(figure(b)) || sign * (figure(a) - figure(b)) || 0);
    document.querySelector("#models tbody").append(...rows);
    $("sorted-head").hidden = shown.has(columns[at].path);
    $("sorted-head").textContent = columns[at].label;
    $("found").textContent = count === rows.length ? `${count} models` : `${count} of ${rows.length} models`;
  }

  function pick() {
    const names = [...document.querySelectorAll(".pick input:checked")].map((box) => box.value);
    $("picked").hidden = names.length === 0;
    const link = $("picked").querySelector("a");
    link.href = `compare.html#${names.map(encodeURIComponent).join(",")}`;
    link.textContent = names.length === 1 ? "Compare it with another" : `Compare ${names.length} models`;
  }

  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("controls").addEventListener("input", update);
  $("models").addEventListener("change", pick);
  update();
  pick();
}

// ---------------------------------------------------------------- comparing

function startComparison() {
  const models = new Map(FIGURES.models.map((model) => [model.name, model]));
  $("choose").hidden = false;
  for (const model of models.values()) $("names").append(make("option", { value: model.name }, model.title));
  const read = () => decodeURIComponent(location.hash.slice(1)).split(",").filter((name) => models.has(name));
  const write = (names) => { location.hash = [...new Set(names)].map(encodeURIComponent).join(","); };

  $("choose").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("add").value.trim();
    if (!models.has(name)) {
      $("message").textContent = `There is no model ${name || "without a name"} here.`;
      return;
    }
    $("message").textContent = "";
    $("add").value = "";
    write([...read(), name]);
  });

  function show() {
    const names = read(), chosen = names.map((name) => models.get(name));
    $("chosen").replaceChildren(...chosen.map((model) => {
      const remove = make("button", { type: "button", "aria-label": `Remove ${model.title}` }, "×");
      remove.addEventListener("click", () => write(names.filter((name) => name !== model.name)));
      return make("li", {}, make("a", { href: `models/${model.name}.html` }, model.title), remove);
    }));
    if (!names.length) $("message").textContent = "Add two models or more, or choose them in the list of models.";
    $("comparison").replaceChildren(...(chosen.length ? [figureTable(chosen), cacheChart(chosen), shapeTable(chosen)].flat() : []));
  }
  addEventListener("hashchange", show);
  show();
}

function tableOf(title, head, rows) {
  const header = make("tr", {}, ...head.map((cell, at) => make("th", at ? { scope: "col", class: "n" } : { scope: "col" }, cell)));
  const table = make("table", {}, make("thead", {}, header), make("tbody", {}, ...rows));
  return [make("h2", {}, title), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, table)];
}

function figureTable(chosen) {
  const rows = FIGURES.columns.map((column, at) => {
    const first = chosen[0].figures[at];
    const cells = chosen.map((model, place) => {
      const value = model.figures[at];
      const cell = make("td", { class: "n" }, formatFigure(value, column.unit));
      if (place && first && value !== null && column.path !== "shape.year") {
        const ratio = value / first;
        cell.append(make("br"), make("span", { class: "muted" }, ratio === 1 ? "=" : `×${ratio.toPrecision(3)}`));
      }
      return cell;
    });
    return make("tr", {}, make("th", { scope: "row" }, column.label), ...cells);
  });
  return tableOf("Figures", ["figure", ...chosen.map((model) => model.title)], rows);
}

function shapeTable(chosen) {
  const paths = [...new Set(chosen.flatMap((model) => Object.keys(model.shape)))];
  const differ = paths.filter((path) => new Set(chosen.map((model) => JSON.stringify(model.shape[path]))).size > 1);
  const text = (value) => (value === undefined ? "–" : String(value));
  const rows = differ.map((path) => make("tr", {}, make("th", { scope: "row" }, make("code", {}, path)),
    ...chosen.map((model) => make("td", { class: "n" }, text(model.shape[path])))));
  const title = chosen.length > 1 ? `Architecture: ${differ.length} fields that differ, of ${paths.length}` : "";
  return title ? tableOf(title, ["field", ...chosen.map((model) => model.title)], rows) : [];
}

// As zoo.gallery.charts.draw_curves draws bytes by context, here of several models.
function cacheChart(chosen) {
  const drawn = chosen.filter((model) => model.cache.length && model.cache.some((pair) => pair[1] > 0));
  if (!drawn.length) return [];
  const points = drawn.flatMap((model) => model.cache.filter((pair) => pair[1] > 0));
  const [width, height, left, right, top, bottom] = [520, 300, 64, 14, 12, 42];
  const ends = (at) => [Math.min(...points.map((pair) => pair[at])), Math.max(...points.map((pair) => pair[at]))];
  const [xLow, xHigh] = ends(0), [low, high] = ends(1).map((value, at) => (at ? value * 1.6 : value / 1.6));
  const scale = (value, a, b, first, last) => first + (Math.log(value / a) / Math.log(b / a)) * (last - first);
  const x = (value) => scale(value, xLow, Math.max(xHigh, 2 * xLow), left, width - right);
  const y = (value) => scale(value, low, high, height - bottom, top);
  const svg = (tag, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const title = "Cache by context, engine ideal";
  const chart = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (let power = Math.ceil(Math.log10(low)); 10 ** power <= high; power += 1) {
    chart.append(svg("path", { class: "grid", d: `M${left} ${y(10 ** power)}H${width - right}` }));
    chart.append(svg("text", { x: left - 8, y: y(10 ** power) + 4, "text-anchor": "end" }, formatSi(10 ** power, "B").replace(/\.0+/, "")));
  }
  const tick = Math.max(1, Math.ceil(Math.log2(xHigh / xLow) / 8));
  for (let power = Math.ceil(Math.log2(xLow)); 2 ** power <= xHigh; power += tick) {
    const tokens = 2 ** power;
    chart.append(svg("path", { class: "grid", d: `M${x(tokens)} ${top}V${height - bottom}` }));
    chart.append(svg("text", { x: x(tokens), y: height - bottom + 17, "text-anchor": "middle" }, tokens >= 2 ** 20 ? `${tokens / 2 ** 20}M` : tokens >= 1024 ? `${tokens / 1024}k` : tokens));
  }
  drawn.forEach((model, at) => {
    const path = model.cache.filter((pair) => pair[1] > 0).map((pair) => `${x(pair[0]).toFixed(1)} ${y(pair[1]).toFixed(1)}`);
    chart.append(svg("path", { class: `curve s${at % 8}`, d: `M${path.join("L")}` }));
  });
  chart.append(svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, "tokens of context"));
  const legend = make("ul", { class: "legend" }, ...drawn.map((model, at) => make("li", {}, make("span", { class: `key b${at % 8}` }), model.title)));
  return [make("h2", {}, "Cache by context"), make("figure", { class: "plot" }, chart, make("figcaption", {}, legend))];
}

if ($("models")) startList();
if ($("comparison")) startComparison();
