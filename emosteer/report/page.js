// The report's script: draws what the page carries as data. Texts enter the page by textContent alone, so that none of them is read as HTML.
"use strict";
(() => {
  const SIGNIFICANT = 0.05;
  const PRIMARY = "the pair's primary metric";
  const MOST_SLICES = 6; // drawn at once; of more, one at a time
  const PAGE = 20; // replies
  const MEASURES = [
    { key: "delta", name: "difference from the baseline", low: "ci_low", high: "ci_high", q: "q" },
    ...["random", "shuffled", "prompting"].map((rival) => ({
      key: `beyond_${rival}`,
      name: { random: "beyond random directions", shuffled: "beyond exchanged labels", prompting: "beyond prompting" }[rival],
      low: `beyond_${rival}_ci_low`,
      high: `beyond_${rival}_ci_high`,
      q: `beyond_${rival}_q`,
    })),
    { key: "effect_size", name: "effect size d", q: "q" },
  ];
  const COLUMNS = {
    n: "n", baseline: "baseline", steered: "steered", delta: "difference", effect_size: "d", p: "p", p_perm: "p_perm", q: "q",
    beyond_random: "beyond random", beyond_random_q: "q beyond random", beyond_shuffled: "beyond exchanged labels",
    beyond_shuffled_q: "q beyond exchanged", beyond_prompting: "beyond prompting", beyond_prompting_q: "q beyond prompting", p_equivalence: "p of no change",
  };

  const byId = (id) => document.getElementById(id);
  const state = { slice: 0, metric: PRIMARY, measure: MEASURES[0], cell: null };
  let grid, turns, loci, kept; // what the page carries
  let hasPlotly = false;

  // Elements

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : String(child))));
    return element;
  }

  function replace(id, ...children) {
    byId(id).replaceChildren(...children);
  }

  function table(caption, headings, rows, numbers = true) {
    const head = make("tr", {}, ...headings.map((text, at) => make("th", { scope: "col", class: at && numbers ? "number" : null }, text)));
    const body = rows.map((row) =>
      make("tr", {}, make("th", { scope: "row" }, row[0]), ...row.slice(1).map((text) => make("td", { class: numbers ? "number" : null }, text))),
    );
    const whole = make("table", { class: "wide" }, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
    return make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, whole);
  }

  function fill(select, options) {
    select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  }

  // Numbers

  const isNumber = (value) => typeof value === "number";
  const at = (metric, measure, row) => grid.numbers[metric]?.[measure]?.[row] ?? null;
  const fact = (column, row) => grid.rows[column]?.[row] ?? null;

  function digitsOf(metric) {
    return ["share", "-1 to 1"].includes(grid.units[metric]) ? 3 : 1;
  }

  function shown(value, digits = 3) {
    if (!isNumber(value)) return "not computed";
    return value.toFixed(digits).replace("-", "\u2212");
  }

  function signed(value, digits) {
    return !isNumber(value) ? "not computed" : (value > 0 ? "+" : "") + shown(value, digits);
  }

  function interval(low, high, digits) {
    return isNumber(low) && isNumber(high) ? `[${signed(low, digits)}, ${signed(high, digits)}]` : "";
  }

  function probability(value) {
    return !isNumber(value) ? "not computed" : value < 0.001 ? "< .001" : shown(value, 3).replace("0.", ".");
  }

  const isFound = (q) => isNumber(q) && q < SIGNIFICANT;

  // What is chosen

  const metricOf = (slice) => (state.metric === PRIMARY ? slice.primary : state.metric);
  const digitsNow = (metric) => (state.measure.key === "effect_size" ? 2 : digitsOf(metric));
  const slicesShown = () => (state.slice === "all" ? grid.slices : grid.slices.slice(state.slice, state.slice + 1));
  const blocks = (row) => String(fact("layers", row));

  function byBlock(a, b) {
    const [first, second] = [a, b].map((text) => text.split("+").map((part) => (/^\d+$/.test(part) ? Number(part) : 1e6)));
    return first[0] - second[0] || first.length - second.length || (a < b ? -1 : a > b ? 1 : 0);
  }

  const unique = (values) => [...new Set(values)];

  // Heatmaps: tables, which is what a screen reader and a keyboard can use

  function drawMaps() {
    const slices = slicesShown();
    const values = slices.flatMap((slice) => slice.cells.map((row) => Math.abs(at(metricOf(slice), state.measure.key, row) ?? 0)));
    const limit = Math.max(...values, 0) || 1;
    replace("maps", ...slices.map((slice) => heatmap(slice, limit)));
    if (!slices.length) replace("maps", make("p", {}, "No cell can be drawn."));
    byId("legend").textContent =
      "A frame and a star mark q < .05 after correction over the sweep's cells (of the comparison that is shown). Red rises, blue falls. " +
      "Choose a cell for all that is known of it; arrow keys move between cells.";
    markCell();
  }

  function heatmap(slice, limit) {
    const metric = metricOf(slice);
    const columns = unique(slice.cells.map(blocks)).sort(byBlock);
    const coefficients = unique(slice.cells.map((row) => fact("coefficient", row))).sort((a, b) => b - a);
    const cells = new Map();
    for (const row of slice.cells) {
      const key = `${blocks(row)} ${fact("coefficient", row)}`;
      cells.set(key, [...(cells.get(key) ?? []), row]);
    }
    const unit = grid.units[metric] && state.measure.key !== "effect_size" ? `, ${grid.units[metric]}` : "";
    const declared = metric === slice.primary ? "" : ` (secondary; the primary metric is ${slice.primary})`;
    const measured = slice.cells.some((row) => at(metric, state.measure.key, row) !== null);
    const caption = `${slice.name}: ${metric}${declared}, ${state.measure.name}${unit}${measured ? "" : ". It was not computed for these cells."}`;
    const head = make("tr", {}, make("th", { scope: "col" }, "coefficient"), ...columns.map((text) => make("th", { scope: "col" }, `block ${text}`)));
    const body = coefficients.map((coefficient) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, String(coefficient)),
        ...columns.map((column) => make("td", {}, ...(cells.get(`${column} ${coefficient}`) ?? []).map((row) => cellButton(row, metric, limit)))),
      ),
    );
    const whole = make("table", { class: "heatmap" }, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
    whole.addEventListener("keydown", moveFocus);
    const buttons = whole.querySelectorAll("button");
    buttons.forEach((button, number) => (button.tabIndex = number ? -1 : 0));
    return make("div", { class: "scroll", role: "region", "aria-label": slice.name }, whole);
  }

  function cellButton(row, metric, limit) {
    const value = at(metric, state.measure.key, row);
    const q = at(metric, state.measure.q, row);
    const where = `block ${blocks(row)}, coefficient ${fact("coefficient", row)}`;
    if (!isNumber(value)) {
      const why = fact("status", row) === "done" ? "not computed" : fact("status", row);
      return make("button", { type: "button", class: "lacking", "data-cell": fact("cell_id", row), "aria-label": `${where}: ${why}` }, why);
    }
    const digits = digitsNow(metric);
    const label = `${where}: ${metric} ${signed(value, digits)}, q ${probability(q)}${isFound(q) ? ", significant" : ""}`;
    const kind = `${value >= 0 ? "rises" : "falls"}${isFound(q) ? " found" : ""}`;
    const button = make(
      "button",
      { type: "button", class: kind, "data-cell": fact("cell_id", row), "data-value": value, "aria-label": label, title: label },
      signed(value, digits) + (isFound(q) ? "*" : ""),
    );
    button.style.setProperty("--amount", `${Math.round((90 * Math.abs(value)) / limit)}%`);
    return button;
  }

  function moveFocus(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const cell = event.target.closest("td");
    if (!step || !cell) return;
    const line = cell.parentElement.parentElement.rows[cell.parentElement.sectionRowIndex + step[0]];
    const next = line?.cells[cell.cellIndex + step[1]]?.querySelector("button");
    if (!next) return;
    event.preventDefault();
    for (const button of event.currentTarget.querySelectorAll("button")) button.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  // A cell in full

  function showCell(id) {
    const row = grid.rows.cell_id.indexOf(id);
    if (row < 0) return;
    state.cell = id;
    const title = make("h3", { tabindex: "-1" }, make("bdi", {}, id));
    const facts = make("dl");
    for (const column of grid.facts) {
      const value = fact(column, row);
      if (value !== null) facts.append(make("div", {}, make("dt", {}, column), make("dd", {}, make("bdi", {}, String(value)))));
    }
    const replies = kept?.groups[id] ? make("button", { type: "button", "data-replies": id }, "Its replies") : null;
    byId("cell").hidden = false;
    replace("cell", title, facts, metricsOf(row), turnsOf(id), make("p", { class: "links" }, replies ?? "None of its replies is in this page."));
    markCell();
    title.focus();
    title.scrollIntoView({ block: "nearest" });
  }

  function metricsOf(row) {
    const columns = Object.keys(COLUMNS).filter((key) => grid.metrics.some((metric) => at(metric, key, row) !== null));
    if (!columns.length) return make("p", {}, "It has no replies, or nothing has scored them: there are no numbers.");
    const primary = fact("primary", row);
    const metrics = [...grid.metrics.filter((metric) => metric === primary), ...grid.metrics.filter((metric) => metric !== primary)];
    const rows = metrics.map((metric) => [
      metric + (metric === primary ? " (primary)" : ""),
      ...columns.map((key) => cellNumber(metric, key, row)),
    ]);
    return table("Every metric of this cell; intervals in brackets", ["metric", ...columns.map((key) => COLUMNS[key])], rows);
  }

  // Of a cell of dialogues: every metric at each of their replies.
  function turnsOf(id) {
    const own = turns[id];
    if (!own) return "";
    const ofMetric = ([metric, { delta, ci_low: low, ci_high: high }]) => {
      const digits = digitsOf(metric) + 1;
      return [metric, ...delta.map((value, i) => `${signed(value, digits)} ${interval(low[i], high[i], digits)}`.trim())];
    };
    const longest = Math.max(...Object.values(own).map((one) => one.delta.length));
    const headings = ["metric", ...Array.from({ length: longest }, (_, i) => `reply ${i + 1}`)];
    return table("Difference from the baseline at each reply of the dialogues; intervals in brackets", headings, Object.entries(own).map(ofMetric));
  }

  function cellNumber(metric, key, row) {
    const value = at(metric, key, row);
    if (!isNumber(value)) return "\u2013";
    if (key === "n") return String(value);
    if (key === "p" || key === "q" || /_p$|_q$|^p_/.test(key)) return probability(value);
    const digits = key === "effect_size" ? 2 : digitsOf(metric) + 1;
    if (key === "baseline" || key === "steered") return shown(value, digits);
    const ends = key === "delta" ? ["ci_low", "ci_high"] : [`${key}_ci_low`, `${key}_ci_high`];
    return `${signed(value, digits)} ${interval(...ends.map((end) => at(metric, end, row)), digits)}`.trim();
  }

  function markCell() {
    for (const button of document.querySelectorAll(".heatmap button")) {
      button.setAttribute("aria-pressed", String(button.dataset.cell === state.cell));
    }
  }

  // Curves, by plotly

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // plotly reads some HTML in its texts.
  const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const FEW = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "pentagon", "star"];

  function look(number, count) {
    const hue = count > FEW.length ? `hsl(${Math.round(250 - (230 * number) / Math.max(count - 1, 1))} 70% 50%)` : FEW[number];
    return { color: hue, symbol: SYMBOLS[number % SYMBOLS.length] };
  }

  function layout(x, y, more = {}) {
    const axis = (title) => ({
      title: { text: plain(title), standoff: 8 }, gridcolor: color("--line"), zerolinecolor: color("--quiet"), linecolor: color("--line"), automargin: true,
    });
    const { xaxis = {}, yaxis = {}, ...rest } = more;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: color("--ink"), family: "system-ui, sans-serif", size: 13 },
      margin: { l: 60, r: 15, t: 20, b: 50 }, height: 380, hovermode: "closest", xaxis: { ...axis(x), ...xaxis }, yaxis: { ...axis(y), ...yaxis },
      legend: { orientation: "h", y: -0.22 }, hoverlabel: { bgcolor: color("--panel"), font: { color: color("--ink") } }, ...rest,
    };
  }

  const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };

  function figure(caption, draw, alternative) {
    const chart = make("div", { class: "chart", role: "img", "aria-label": caption });
    const details = alternative ? make("details", {}, make("summary", {}, "As a table"), alternative) : "";
    const whole = make("figure", { class: "figure" }, make("figcaption", {}, caption), chart, details);
    return { whole, draw: () => draw(chart) };
  }

  function plot(chart, traces, shape) {
    const drawn = window.Plotly.newPlot(chart, traces, shape, CONFIG);
    chart.on("plotly_click", (event) => {
      const id = event.points[0]?.customdata;
      if (typeof id === "string") showCell(id);
    });
    return drawn;
  }

  // plotly draws in several steps, and what it draws must not be taken away between them: one drawing waits for the one before.
  let drawing = Promise.resolve();
  let newest = 0;
  let paper; // how wide charts are while the page is printed, in pixels

  function inTurn(draw) {
    const turn = ++newest;
    document.documentElement.dataset.charts = "drawing";
    drawing = drawing.then(() => (turn === newest ? draw() : null)).catch(tell).then(() => {
      if (turn !== newest) return;
      // Going to print changes the colours too, so that charts may have been drawn anew meanwhile, as wide as the screen.
      if (paper !== undefined) resize(paper);
      document.documentElement.dataset.charts = "ready";
    });
  }

  function drawCharts() {
    if (hasPlotly) inTurn(drawCurves);
  }

  function drawCurves() {
    return drawFigures(byId("charts"), slicesShown().flatMap((slice) => [doseResponse(slice), tradeOff(slice)]));
  }

  function drawFigures(place, figures) {
    for (const old of place.querySelectorAll(".chart")) window.Plotly.purge(old);
    place.replaceChildren(...figures.map((one) => one.whole));
    if (!figures.length) place.append(make("p", {}, "There is nothing to draw."));
    return Promise.all(figures.map((one) => one.draw()));
  }

  function byBlocks(rows) {
    const groups = new Map();
    for (const row of rows) groups.set(blocks(row), [...(groups.get(blocks(row)) ?? []), row]);
    return [...groups].sort(([a], [b]) => byBlock(a, b));
  }

  function measuredRows(slice) {
    const metric = metricOf(slice);
    return slice.cells.filter((row) => at(metric, state.measure.key, row) !== null);
  }

  function doseResponse(slice) {
    const metric = metricOf(slice);
    const measure = state.measure;
    const rows = measuredRows(slice).sort((a, b) => fact("coefficient", a) - fact("coefficient", b));
    const caption = `Dose-response, ${slice.name}: ${metric}, ${measure.name}${measure.low ? ", with intervals" : ""}`;
    if (!rows.length) return nothing(`${caption}. It was not computed for these cells.`);
    const groups = byBlocks(rows);
    const doses = rows.map((row) => Math.abs(fact("coefficient", row)));
    const apart = 0.012 * Math.max(...doses, 0); // side by side, so that no interval hides another
    const traces = groups.flatMap(([name, own], number) => {
      const { color: hue, symbol } = look(number, groups.length);
      const y = own.map((row) => at(metric, measure.key, row));
      const ends = (key, sign) => own.map((row, i) => (at(metric, key, row) === null ? 0 : sign * (at(metric, key, row) - y[i])));
      const errors = measure.low
        ? { type: "data", symmetric: false, array: ends(measure.high, 1), arrayminus: ends(measure.low, -1), thickness: 1.2, width: 3 }
        : undefined;
      const shift = apart * (number - (groups.length - 1) / 2);
      const line = {
        x: own.map((row) => fact("coefficient", row) + shift), y, error_y: errors, mode: "lines+markers", name: plain(`block ${name}`),
        line: { color: hue }, marker: { color: hue, symbol, size: 8 }, customdata: own.map((row) => fact("cell_id", row)),
        text: own.map((row) => plain(`block ${name}, coefficient ${fact("coefficient", row)}: ${signed(y[own.indexOf(row)], digitsNow(metric))}`)),
        hoverinfo: "text", legendgroup: name,
      };
      const random = measure.key === "delta" ? randomLine(slice, metric, name, hue) : null;
      return random ? [line, random] : [line];
    });
    if (traces.some((trace) => trace.name === "random direction")) {
      traces.push({ x: [null], y: [null], mode: "lines", line: { dash: "dot", color: color("--quiet") }, name: "random directions (mean)" });
    }
    const unit = grid.units[metric] && measure.key !== "effect_size" ? ` [${grid.units[metric]}]` : "";
    const shape = layout(slice.unit === "fraction" ? "coefficient (fraction of the residual norm)" : "coefficient (raw vectors)", `${metric}${unit}`);
    return figure(caption, (chart) => plot(chart, traces, shape), make("div", {}, doseTable(rows, metric, caption), trendTable(slice, metric)));
  }

  function randomLine(slice, metric, name, hue) {
    const means = new Map();
    for (const row of slice.random) {
      const value = at(metric, "delta", row);
      if (blocks(row) === name && value !== null) means.set(fact("coefficient", row), [...(means.get(fact("coefficient", row)) ?? []), value]);
    }
    if (!means.size) return null;
    const x = [...means.keys()].sort((a, b) => a - b);
    const y = x.map((coefficient) => means.get(coefficient).reduce((sum, value) => sum + value, 0) / means.get(coefficient).length);
    return {
      x, y, mode: "lines", line: { color: hue, dash: "dot", width: 1.5 }, name: "random direction", showlegend: false, hoverinfo: "skip", legendgroup: name,
    };
  }

  function doseTable(rows, metric, caption) {
    const { measure } = state;
    const digits = digitsNow(metric);
    const lines = rows.map((row) => [
      blocks(row), fact("coefficient", row), signed(at(metric, measure.key, row), digits),
      measure.low ? interval(at(metric, measure.low, row), at(metric, measure.high, row), digits) : "",
      probability(at(metric, measure.q, row)),
    ]);
    return table(caption, ["block", "coefficient", measure.name, "interval", "q"], lines);
  }

  function trendTable(slice, metric) {
    const own = slice.trends.filter((trend) => trend.metric === metric).sort((a, b) => byBlock(String(a.layers), String(b.layers)));
    if (!own.length) return "";
    const rows = own.map((trend) => [
      String(trend.layers), trend.n_coefficients, signed(trend.slope, 2), interval(trend.ci_low, trend.ci_high, 2), probability(trend.p),
      probability(trend.q), isNumber(trend.monotone) ? shown(trend.monotone, 2) : "\u2013",
    ]);
    return table(`Trends over the coefficient: ${metric} per unit of coefficient`, ["block", "coefficients", "slope", "interval", "p", "q", "monotone"], rows);
  }

  function nothing(text) {
    return { whole: make("p", { class: "note" }, text), draw: () => {} };
  }

  // A cell is on the front where no other has as much effect at less cost, or more at as little.
  function paretoFront(points) {
    const front = [];
    for (const point of [...points].sort((a, b) => a.x - b.x || b.y - a.y)) {
      if (!front.length || point.y > front[front.length - 1].y) front.push(point);
    }
    return front;
  }

  function tradeOff(slice) {
    const metric = metricOf(slice);
    const isAlike = (row) => at("duplication", "steered", row) > grid.readable.duplication;
    const points = measuredRows(slice)
      .filter((row) => fact("perplexity_ratio", row) !== null)
      .map((row) => ({ row, x: fact("perplexity_ratio", row), y: at(metric, state.measure.key, row) }));
    if (!points.length) return nothing(`Emotion against perplexity, ${slice.name}: nothing to draw, ${metric} or perplexity was not computed.`);
    const hollow = points.some((point) => isAlike(point.row)) ? "; hollow: not readable, too many replies begin alike" : "";
    const caption = `Emotion against perplexity, ${slice.name}: ${metric}, ${state.measure.name}; the line is the Pareto front${hollow}`;
    const front = paretoFront(points);
    const words = (point) => plain(
      `block ${blocks(point.row)}, coefficient ${fact("coefficient", point.row)}: ${signed(point.y, digitsNow(metric))}, perplexity \u00d7${shown(point.x, 2)}` +
        (isAlike(point.row) ? `, ${shown(100 * at("duplication", "steered", point.row), 0)} % begin alike` : ""),
    );
    const groups = byBlocks(points.map((point) => point.row));
    const traces = groups.flatMap(([name, own], number) => {
      const { color: hue, symbol } = look(number, groups.length);
      const mine = points.filter((point) => own.includes(point.row));
      const readable = mine.filter((point) => !isAlike(point.row));
      const alike = mine.filter((point) => isAlike(point.row));
      const trace = (some, marker) => ({
        x: some.map((point) => point.x), y: some.map((point) => point.y), mode: "markers", name: plain(`block ${name}`), text: some.map(words),
        hoverinfo: "text", customdata: some.map((point) => fact("cell_id", point.row)),
        legendgroup: name, showlegend: some === readable || !readable.length, marker: { color: hue, size: 10, ...marker },
      });
      // Apart, as the legend shows the look of a trace's first point.
      return [trace(readable, { symbol }), trace(alike, { symbol: `${symbol}-open`, line: { width: 2 } })].filter((one) => one.x.length);
    });
    traces.push({
      x: front.map((point) => point.x), y: front.map((point) => point.y), mode: "lines", name: "Pareto front", hoverinfo: "skip",
      line: { color: color("--quiet"), dash: "dash", width: 1.5 },
    });
    const limit = grid.readable.perplexity_ratio;
    const isWide = Math.max(...points.map((point) => point.x)) > 4;
    const line = { type: "line", x0: limit, x1: limit, y0: 0, y1: 1, yref: "paper", line: { color: color("--warn"), width: 1, dash: "dot" } };
    const note = {
      x: isWide ? Math.log10(limit) : limit, y: 1, yref: "paper", text: `readable up to \u00d7${limit}`, showarrow: false, xanchor: "left", yanchor: "bottom",
      font: { size: 11, color: color("--warn") },
    };
    const shape = layout("perplexity, by the baseline's" + (isWide ? " (logarithmic)" : ""), metric, {
      xaxis: { type: isWide ? "log" : "linear" }, shapes: [line], annotations: [note],
    });
    const rows = front.map((point) => [
      fact("cell_id", point.row), blocks(point.row), fact("coefficient", point.row), signed(point.y, digitsNow(metric)), `\u00d7${shown(point.x, 2)}`,
    ]);
    const alternative = table(`The Pareto front, ${slice.name}`, ["cell", "block", "coefficient", metric, "perplexity"], rows);
    return figure(caption, (chart) => plot(chart, traces, shape), alternative);
  }

  // Dialogues

  function drawTurns() {
    const places = [...document.querySelectorAll("[data-turns]")];
    return Promise.all(places.map((place) => drawFigures(place, [turnFigure(place.dataset.turns, place.dataset.metric)])));
  }

  function turnFigure(id, metric) {
    const { n, baseline, steered, delta, ci_low: low, ci_high: high } = turns[id][metric];
    const row = grid.rows.cell_id.indexOf(id);
    const x = delta.map((_, i) => i + 1);
    const digits = digitsOf(metric);
    const caption =
      `${metric} at each reply of the dialogues, ${fact("pair", row)}, block ${blocks(row)}, coefficient ${fact("coefficient", row)}: ` +
      "steered beside unsteered; the bars are the interval of their difference";
    const line = (name, y, number, more) => {
      const { color: hue, symbol } = look(number, 2);
      const text = y.map((value, i) => `${name}, reply ${x[i]}: ${shown(value, digits)}`);
      return { x, y, name, text, hoverinfo: "text", mode: "lines+markers", line: { color: hue, ...more.line }, marker: { color: hue, symbol, size: 8 }, ...more.rest };
    };
    const end = (ends, sign) => ends.map((value, i) => (value === null || delta[i] === null ? 0 : sign * (value - delta[i])));
    const error_y = { type: "data", symmetric: false, array: end(high, 1), arrayminus: end(low, -1), thickness: 1.2, width: 3 };
    const traces = [line("unsteered", baseline, 0, { line: { dash: "dot" } }), line("steered", steered, 1, { rest: { error_y } })];
    const unit = grid.units[metric] ? ` [${grid.units[metric]}]` : "";
    const shape = layout("reply of the dialogue", `${metric}${unit}`, { height: 300, xaxis: { dtick: x.length > 10 ? undefined : 1 } });
    const rows = x.map((at, i) => [
      at, shown(baseline[i], digits), shown(steered[i], digits), signed(delta[i], digits), interval(low[i], high[i], digits), n[i] ?? "\u2013",
    ]);
    const alternative = table(caption, ["reply", "unsteered", "steered", "difference", "interval", "prompts"], rows);
    return lower(figure(caption, (chart) => plot(chart, traces, shape), alternative));
  }

  // Attribution

  function drawLoci() {
    const places = [...document.querySelectorAll("[data-locus]")];
    return Promise.all(places.map((place) => drawFigures(place, locusFigures(loci[Number(place.dataset.locus)]))));
  }

  function locusFigures(locus) {
    return [...(locus.blocks.block_scores.length ? [blockScores(locus)] : []), ...locus.heatmaps.map(componentMap)];
  }

  function blockScores(locus) {
    const { block_scores: scores, block_scores_low: low, block_scores_high: high, first_share: share } = locus.blocks;
    const x = scores.map((_, block) => block);
    const errors = low.length
      ? { type: "data", symmetric: false, array: high.map((end, i) => end - scores[i]), arrayminus: low.map((end, i) => scores[i] - end), thickness: 1, width: 2 }
      : undefined;
    const caption = "What each block's attention and MLP add at the last prompt position [nats], with the bootstrap interval over prompt pairs";
    const text = scores.map((score, block) => `block ${block}: ${signed(score, 3)} nats${share.length ? `, first in ${Math.round(100 * share[block])} %` : ""}`);
    const traces = [{ type: "bar", x, y: scores, error_y: errors, text, textposition: "none", hoverinfo: "text", marker: { color: color("--accent") } }];
    const rows = scores.map((score, i) => [i, signed(score, 3), low.length ? interval(low[i], high[i], 3) : "", share.length ? `${Math.round(100 * share[i])} %` : ""]);
    const alternative = table(caption, ["block", "adds", "interval", "first in"], rows);
    return lower(figure(caption, (chart) => plot(chart, traces, layout("block", "nats", { height: 300, showlegend: false })), alternative));
  }

  function componentMap(map) {
    const limit = Math.max(...map.values.flat().map((value) => Math.abs(value ?? 0))) || 1;
    const text = map.values.map((row, i) => row.map((value, block) => `${map.rows[i]}, block ${block}: ${signed(value, 3)} nats`));
    const caption = `${map.name}: attribution score by component and block [nats]`;
    const trace = {
      type: "heatmap", z: map.values, y: map.rows, text, hoverinfo: "text", zmin: -limit, zmax: limit, colorscale: scale(), xgap: 1, ygap: 1,
      colorbar: { thickness: 12, outlinewidth: 0 },
    };
    const height = 120 + Math.max(60, 26 * map.rows.length);
    const shape = layout("block", "", { height, xaxis: { showgrid: false }, yaxis: { autorange: "reversed", type: "category", showgrid: false } });
    const rows = map.values[0].map((_, block) => [block, ...map.values.map((row) => signed(row[block], 3))]);
    return lower(figure(caption, (chart) => plot(chart, [trace], shape), table(caption, ["block", ...map.rows], rows)));
  }

  // A figure that takes no more height than it is drawn with.
  function lower(drawn) {
    drawn.whole.querySelector(".chart").classList.add("low");
    return drawn;
  }

  const scale = () => [[0, color("--fall")], [0.5, color("--paper")], [1, color("--rise")]];

  // Replies

  const list = { entries: [], page: 0, groups: [] };

  function groupReplies() {
    const rowOf = new Map(grid.rows.cell_id.map((id, row) => [id, row]));
    const groups = grid.slices.map((slice) => ({ name: slice.name, rows: slice.cells }));
    const controls = new Map();
    grid.rows.is_control.forEach((isControl, row) => {
      if (isControl) {
        const name = `control: ${fact("vector_method", row)}${fact("pair", row) ? ` (${fact("pair", row)})` : ""}`;
        controls.set(name, [...(controls.get(name) ?? []), row]);
      }
    });
    groups.push(...[...controls].map(([name, rows]) => ({ name, rows })));
    list.groups = groups.map((group) => ({ ...group, rows: group.rows.filter((row) => kept.groups[fact("cell_id", row)] && rowOf.has(fact("cell_id", row))) }));
    list.groups = list.groups.filter((group) => group.rows.length);
    list.baselines = new Map();
  }

  function baselineOf(row) {
    const id = fact("baseline_id", row);
    if (!list.baselines.has(id)) {
      const group = kept.groups[id];
      const places = new Map((group?.prompts ?? []).map((prompt, i) => [`${prompt} ${group.samples[i]} ${group.turns[i]}`, i]));
      list.baselines.set(id, { group, places });
    }
    return list.baselines.get(id);
  }

  function fillFilters() {
    const rows = list.groups.flatMap((group) => group.rows);
    const layers = unique(rows.map((row) => fact("layers", row)).filter((value) => value !== null).map(String)).sort(byBlock);
    const coefficients = unique(rows.map((row) => fact("coefficient", row)).filter(isNumber)).sort((a, b) => a - b);
    fill(byId("reply-group"), [["", "all pairs"], ...list.groups.map((group, number) => [number, group.name])]);
    fill(byId("reply-layer"), [["", "all"], ...layers.map((layer) => [layer, layer])]);
    fill(byId("reply-coefficient"), [["", "all"], ...coefficients.map((value) => [value, value])]);
    const short = (text) => (text.length > 70 ? `${text.slice(0, 69)}\u2026` : text);
    fill(byId("reply-prompt"), [["", "all"], ...kept.prompts.map(([id, text], number) => [number, `${id}: ${short(text)}`])]);
  }

  function entryOf(row, i) {
    const group = kept.groups[fact("cell_id", row)];
    const { group: unsteered, places } = baselineOf(row);
    const other = places.get(`${group.prompts[i]} ${group.samples[i]} ${group.turns[i]}`);
    const value = (metric, of, index) => (of && index !== undefined ? of.values[kept.metrics.indexOf(metric)]?.[index] ?? null : null);
    const primary = fact("primary", row) ?? grid.slices[0]?.primary;
    const [steered, before] = [value(primary, group, i), value(primary, unsteered, other)];
    const [perplexity, calm] = [value("perplexity", group, i), value("perplexity", unsteered, other)];
    return {
      row, i, other, effect: isNumber(steered) && isNumber(before) ? steered - before : null,
      cost: isNumber(perplexity) && isNumber(calm) && calm > 0 ? perplexity / calm : null,
    };
  }

  function filterReplies() {
    const [chosen, layer, coefficient, prompt] = ["group", "layer", "coefficient", "prompt"].map((name) => byId(`reply-${name}`).value);
    const groups = chosen === "" ? list.groups.filter((group) => !group.name.startsWith("control: ")) : [list.groups[Number(chosen)]];
    list.entries = [];
    for (const row of unique(groups.flatMap((group) => group.rows))) {
      if (layer !== "" && String(fact("layers", row)) !== layer) continue;
      if (coefficient !== "" && String(fact("coefficient", row)) !== coefficient) continue;
      kept.groups[fact("cell_id", row)].prompts.forEach((number, i) => {
        if (prompt === "" || String(number) === prompt) list.entries.push(entryOf(row, i));
      });
    }
    sortReplies();
    list.page = 0;
    drawReplies();
  }

  function sortReplies() {
    const order = byId("reply-order").value;
    if (order === "order") return;
    const key = order.startsWith("effect") ? "effect" : "cost";
    const sign = order.endsWith("-low") ? 1 : -1;
    list.entries.sort((a, b) => (a[key] === null ? 1 : 0) - (b[key] === null ? 1 : 0) || sign * (a[key] - b[key]));
  }

  function drawReplies() {
    const n = list.entries.length;
    const begin = list.page * PAGE;
    const end = Math.min(begin + PAGE, n);
    byId("reply-count").textContent = n ? `${n.toLocaleString("en")} replies; ${begin + 1} to ${end} are shown.` : "No reply is there that fits these filters.";
    replace("reply-list", ...list.entries.slice(begin, end).map(replyItem));
    byId("reply-back").disabled = list.page === 0;
    byId("reply-on").disabled = end >= n;
  }

  function replyItem({ row, i, other, effect, cost }) {
    const group = kept.groups[fact("cell_id", row)];
    const { group: unsteered } = baselineOf(row);
    const [id, opening] = kept.prompts[group.prompts[i]];
    const prompt = group.said[i] ?? opening;
    const turn = group.turns[i] ? `, turn ${group.turns[i] + 1}` : "";
    const pair = fact("pair", row) ?? `control: ${fact("vector_method", row)}`;
    const place = fact("layers", row) === null ? "" : `, block ${blocks(row)}, coefficient ${fact("coefficient", row)}`;
    const primary = fact("primary", row) ?? grid.slices[0]?.primary;
    const sizes = `${primary} ${signed(effect, digitsOf(primary))}, perplexity ${cost === null ? "not computed" : `\u00d7${shown(cost, 2)}`}`;
    const item = make(
      "li",
      { "data-cell-id": fact("cell_id", row), "data-prompt": id, "data-sample": group.samples[i], "data-effect": effect, "data-cost": cost },
      make("h3", { class: "of" }, make("bdi", {}, `${pair}${place}, prompt ${id}${turn}`), `: ${sizes}`),
      make("p", { class: "prompt", dir: "auto" }, prompt),
      make(
        "div",
        { class: "both" },
        replyText("Unsteered", unsteered, other),
        replyText(fact("vector_method", row) === "prompting" ? "Asked instead of steered" : "Steered", group, i),
      ),
    );
    return item;
  }

  function replyText(title, group, i) {
    const heading = make("h4", {}, title);
    if (!group || i === undefined) return make("div", {}, heading, make("p", { class: "text" }, "not there"));
    const values = kept.metrics.map((metric, number) => [metric, group.values[number][i]]).filter(([, value]) => isNumber(value));
    heading.append(values.length ? ` (${values.map(([metric, value]) => `${metric} ${shown(value, digitsOf(metric))}`).join(", ")})` : "");
    return make("div", {}, heading, make("p", { class: "text", dir: "auto" }, ...marked(group.texts[i], group.marks[i])));
  }

  function marked(text, marks) {
    const characters = [...text]; // marks count characters, not UTF-16 units
    const pieces = [];
    let place = 0;
    for (let at = 0; at < marks.length; at += 3) {
      const begin = place + marks[at];
      const end = begin + marks[at + 1];
      const categories = kept.kinds[marks[at + 2]];
      const isFirst = categories.includes("first person");
      const isEmotion = categories.length > (isFirst ? 1 : 0);
      const kind = [isEmotion ? "emotion" : "", isFirst ? "first" : ""].join(" ").trim();
      pieces.push(characters.slice(place, begin).join(""), make("mark", { class: kind, title: categories.join(", ") }, characters.slice(begin, end).join("")));
      place = end;
    }
    return [...pieces, characters.slice(place).join("")];
  }

  function showReplies(id) {
    const row = grid.rows.cell_id.indexOf(id);
    const group = list.groups.findIndex((one) => one.rows.includes(row));
    byId("reply-group").value = group < 0 ? "" : String(group);
    byId("reply-layer").value = fact("layers", row) === null ? "" : blocks(row);
    byId("reply-coefficient").value = fact("coefficient", row) === null ? "" : String(fact("coefficient", row));
    byId("reply-prompt").value = "";
    filterReplies();
    byId("replies").scrollIntoView();
    byId("reply-group").focus();
  }

  // The whole

  async function unpack(id) {
    const packed = atob(byId(id).textContent);
    const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  function fillChoice() {
    const slices = grid.slices.map((slice, number) => [number, slice.name]);
    const isFew = grid.slices.length > 1 && grid.slices.length <= MOST_SLICES;
    state.slice = isFew ? "all" : 0;
    fill(byId("slice"), isFew ? [["all", "all"], ...slices] : slices);
    fill(byId("metric"), [[PRIMARY, PRIMARY], ...grid.metrics.map((metric) => [metric, metric])]);
    const measures = MEASURES.filter((measure) => grid.metrics.some((metric) => grid.numbers[metric][measure.key]));
    fill(byId("measure"), measures.map((measure) => [measure.key, measure.name]));
  }

  function listen() {
    byId("choice").addEventListener("change", () => {
      state.slice = byId("slice").value === "all" ? "all" : Number(byId("slice").value);
      state.metric = byId("metric").value;
      state.measure = MEASURES.find((measure) => measure.key === byId("measure").value);
      drawMaps();
      drawCharts();
    });
    byId("filters").addEventListener("change", filterReplies);
    for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
    byId("reply-back").addEventListener("click", () => turn(-1));
    byId("reply-on").addEventListener("click", () => turn(1));
    document.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-cell], button[data-replies]");
      if (button?.dataset.cell) showCell(button.dataset.cell);
      if (button?.dataset.replies) showReplies(button.dataset.replies);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    addEventListener("beforeprint", () => resize(680));
    addEventListener("afterprint", () => resize(undefined));
  }

  function turn(step) {
    list.page += step;
    drawReplies();
    byId("reply-count").scrollIntoView();
  }

  // All charts anew: at first, and when the colours change.
  function redraw() {
    if (hasPlotly) inTurn(() => Promise.all([drawCurves(), drawTurns(), drawLoci()]));
  }

  function resize(width) {
    paper = width;
    if (!hasPlotly) return;
    for (const chart of document.querySelectorAll(".chart")) window.Plotly.relayout(chart, { width, autosize: width === undefined });
  }

  function tell(error) {
    byId("trouble").hidden = false;
    byId("trouble").textContent = `A part of this page could not be drawn (${error}). All numbers stand in results.csv beside this file.`;
  }

  async function begin() {
    if (!window.DecompressionStream) throw new Error("this browser cannot unpack the data; one of 2023 or later can");
    [grid, turns, loci] = (await Promise.all(["data-grid", "data-turns", "data-loci"].map(unpack))).map(JSON.parse);
    fillChoice();
    listen();
    drawMaps();
    document.documentElement.dataset.maps = "ready";
    kept = JSON.parse(await unpack("data-replies"));
    groupReplies();
    fillFilters();
    filterReplies();
    document.documentElement.dataset.replies = "ready";
    const library = document.createElement("script");
    library.textContent = await unpack("data-plotly"); // the policy lets it run by its hash
    document.head.append(library);
    hasPlotly = Boolean(window.Plotly);
    if (!hasPlotly) throw new Error("plotly did not start");
    redraw();
  }

  begin().catch(tell);
})();
