// Charts of accuracy against strength, drawn by uPlot, in the colours of the theme.
const probe = make("span", { hidden: true });
document.body.append(probe);
const shades = {};
const shade = (name) => {
  const key = `${name} ${isDark()}`;
  if (!(key in shades)) {
    probe.style.color = `var(--${name})`;
    shades[key] = getComputedStyle(probe).color;
  }
  return shades[key];
};
const colourOf = (row) => (isDark() ? row.dark : row.light);
// matplotlib's dashes are in line widths.
const dashOf = (row) => row.dash.map((length) => 1.6 * length);
const percent = (value) => (value === null || value === undefined ? "–" : value.toFixed(1));
const charts = new Map();
const redrawCharts = () => charts.forEach((chart) => chart.redraw(false));
themeWatchers.push(redrawCharts);

const sizes = new ResizeObserver((entries) => {
  requestAnimationFrame(() => {
    for (const { target } of entries) {
      const chart = charts.get(target);
      const width = Math.floor(target.clientWidth);
      if (chart && width > 0 && width !== chart.width) chart.setSize({ width, height: chart.height });
    }
  });
});
const dropCharts = (host) => {
  for (const plot of host.querySelectorAll(".plot")) {
    sizes.unobserve(plot);
    charts.get(plot)?.destroy();
    charts.delete(plot);
  }
};

// How a curve is drawn: certified accuracy as round dots, the others with their own dashes or the model's.
// Between two strengths the certified accuracy is taken to be that at the larger one, a lower bound.
const stepsBefore = uPlot.paths.stepped({ align: -1 });
const styleOf = (curve) => (curve.dotted
  ? { dash: [0.1, 6], width: 3, cap: "round" }
  : { dash: curve.dash ?? dashOf(curve.row), width: curve.faint ? 1 : 1.8, cap: "butt" });
const swatch = (curve) => {
  const { dash, width, cap } = styleOf(curve);
  const { row } = curve;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const set = (name, value) => line.setAttribute(name, value);
  ["x1", "y1", "x2", "y2"].forEach((name, i) => set(name, ["0", "50%", "100%", "50%"][i]));
  set("stroke-dasharray", dash.join(" "));
  set("stroke-width", String(width + 0.4));
  set("stroke-linecap", cap);
  line.style.stroke = `light-dark(${row.light}, ${row.dark})`;
  svg.setAttribute("aria-hidden", "true");
  svg.append(line);
  return svg;
};
const legendOf = (curves, label) => make("ul", { class: "legend", "aria-label": label }, ...curves.map((curve) => make(
  "li", {}, make("span", { class: "item" }, swatch(curve), curve.label),
)));

// Samples without an answer lie above the accuracy, in the colour that they have in the figures.
const SILENT = "#e9b949";
const silentIn = (points) => points.some((point) => point.silent);
const silentNote = () => make("p", { class: "axis silent" }, "no answer: counts as broken");

// Draw curves with one axis. A curve is {label, row, points, dotted, faint, dash}; points as `curveOf` gives them.
const draw = (host, { title, axis, symbol, curves, height = 176 }) => {
  const xs = [...new Set(curves.flatMap((curve) => curve.points.map((point) => point.x)))].sort((a, b) => a - b);
  // null is a failed or missing cell, and a gap; undefined is a strength that the curve was not asked at.
  const lookup = curves.map((curve) => new Map(curve.points.map((point) => [point.x, point])));
  const column = (i, name) => xs.map((x) => lookup[i].get(x)?.[name]);
  const data = [xs], series = [{}], bands = [], spans = [];
  const ends = { width: 0, points: { show: false }, stroke: "transparent" };
  curves.forEach((curve, i) => {
    spans.push(series.length);
    const stroke = () => colourOf(curve.row);
    data.push(column(i, "value"));
    series.push({
      label: curve.label, stroke, ...styleOf(curve), paths: curve.dotted ? stepsBefore : undefined,
      alpha: curve.faint ? 0.75 : 1, points: { show: !curve.dotted, size: 5, fill: stroke, width: 0 },
    });
    if (curve.dotted || curve.faint) return;
    if (silentIn(curve.points)) {
      const above = (point) => (point && point.value !== null ? point.value + (point.silent ?? 0) : point?.value);
      data.push(xs.map((x) => above(lookup[i].get(x))));
      series.push({ ...ends });
      bands.push({ series: [data.length - 1, spans[i]], fill: `${SILENT}80` });
    }
    data.push(column(i, "high"), column(i, "low"));
    series.push({ ...ends }, { ...ends });
    bands.push({ series: [data.length - 2, data.length - 1], fill: () => `${colourOf(curve.row)}24` });
  });
  const plot = make("div", { class: "plot" });
  const names = curves.map((curve) => curve.label).join(", ");
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", `${title}: accuracy against strength of ${names}. The numbers are in the table.`);
  const tip = make("div", { class: "tip", hidden: true });
  const chart = make("div", { class: "chart" }, make("h4", {}, title), plot, make("p", { class: "axis" }, axis), tip);
  if (curves.some((curve) => !curve.dotted && !curve.faint && silentIn(curve.points))) chart.append(silentNote());
  host.append(chart);

  const showTip = (u) => {
    const { idx, left } = u.cursor;
    if (idx === null || idx === undefined || left < 0) { tip.hidden = true; return; }
    const at = curves.map((curve, i) => ({ curve, point: lookup[i].get(xs[idx]) }));
    const found = at.filter(({ point }) => point && point.value !== null).sort((a, b) => b.point.value - a.point.value);
    if (!found.length) { tip.hidden = true; return; }
    const behind = ({ samples, seeds }) => `n = ${samples.toLocaleString("en")}, ${many(seeds, "seed")}`;
    const counts = new Set(found.map(({ point }) => behind(point)));
    const rows = found.slice(0, 14).map(({ curve, point }) => make(
      "tr", {}, make("td", {}, curve.label), make("td", {}, percent(point.value)),
      make("td", {}, point.low === null ? "" : `${percent(point.low)} – ${percent(point.high)}`),
      point.silent ? make("td", {}, `no answer ${percent(point.silent)}`) : null,
      counts.size > 1 ? make("td", {}, behind(point)) : null,
    ));
    tip.replaceChildren(
      make("b", {}, xs[idx] === 0 ? "clean" : `${symbol} = ${xs[idx]}`), make("table", {}, make("tbody", {}, ...rows)),
      ...(counts.size > 1 ? [] : [make("p", {}, [...counts][0])]),
    );
    tip.hidden = false;
    // Below the lines that are read, or above them where the window ends.
    const room = chart.clientWidth - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(room, u.over.offsetLeft + left - tip.offsetWidth / 2))}px`;
    const below = plot.offsetTop + plot.offsetHeight - 2;
    const fits = chart.getBoundingClientRect().top + below + tip.offsetHeight < innerHeight;
    tip.style.top = `${fits ? below : plot.offsetTop - tip.offsetHeight}px`;
  };
  const lines = { stroke: () => shade("line"), width: 1 };
  const labels = { stroke: () => shade("quiet"), font: "11px system-ui, sans-serif", ticks: { show: false }, grid: lines };
  const short = (u, values) => values.map((value) => (value === null ? "" : String(Number(value.toPrecision(6)))));
  const u = new uPlot({
    width: Math.max(160, Math.floor(plot.clientWidth)), height, series, bands,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false, setScale: false }, points: { size: 7 } },
    scales: { x: { time: false, range: [0, xs[xs.length - 1] || 1] }, y: { range: [0, 100] } },
    axes: [
      { ...labels, size: 26, gap: 4, space: 42, values: short },
      { ...labels, size: 34, gap: 4, splits: () => [0, 20, 40, 60, 80, 100] },
    ],
    padding: [8, 10, 0, 0],
    hooks: { setCursor: [showTip] },
  }, data, plot);
  charts.set(plot, u);
  sizes.observe(plot);
  u.over.addEventListener("mouseleave", () => { tip.hidden = true; });
  return { chart, show: (i, visible) => {
    const end = spans[i + 1] ?? series.length;
    u.batch(() => { for (let k = spans[i]; k < end; k += 1) u.setSeries(k, { show: visible }); });
  } };
};

// The panels of one axis: a norm (worst case, certified accuracy, single attacks), or one noise.
const groupsOf = (set) => {
  const groups = new Map();
  set.panels.forEach((panel, number) => {
    if (!groups.has(panel.group)) groups.set(panel.group, []);
    groups.get(panel.group).push({ ...panel, number });
  });
  return groups;
};
const certifiedOf = (set, panel) => set.panels.findIndex((other) => other.kind === "certified" && other.group === panel.group);
const curvesAt = (row, panel, number) => {
  const own = curveOf(row, number);
  if (!own.length) return [];
  const curves = [{ label: row.label, row, points: own }];
  const bound = panel.kind === "worst" ? certifiedOf(row.set, panel) : -1;
  const proven = bound < 0 ? [] : curveOf(row, bound);
  if (proven.some((point) => point.value > 0 && point.x > 0)) {
    curves.push({ label: `${row.label}, certified`, row, points: proven, dotted: true });
  }
  return curves;
};

// The first figure as interactive charts, one per threat; a model is shown or hidden in all of them.
const explore = (figure) => {
  const set = DATA.charts.find((one) => one.name === figure.dataset.explorer);
  if (!set) return;
  const rows = set.rows.filter((row) => Object.keys(row.curves).length).slice(0, DATA.named).map((row) => ROWS.get(row.id));
  const grid = make("div", { class: "charts" });
  const legend = make("ul", { class: "legend", "aria-label": "Models" });
  const host = make("div", { class: "explorer" }, legend, grid);
  figure.prepend(host);
  figure.classList.add("ready");
  const drawn = [];
  set.panels.forEach((panel, number) => {
    if (panel.kind === "certified") return;
    const curves = rows.flatMap((row) => curvesAt(row, panel, number));
    if (curves.length) drawn.push({ curves, ...draw(grid, { ...panel, curves }) });
  });
  for (const row of rows) {
    const button = make("button", { type: "button", "aria-pressed": "true" }, swatch({ row }), row.label);
    button.addEventListener("click", () => {
      const visible = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(visible));
      for (const { curves, show } of drawn) curves.forEach((curve, i) => curve.row === row && show(i, visible));
    });
    legend.append(make("li", {}, button));
  }
  if (set.rows.length > rows.length) {
    legend.append(make("li", { class: "quiet" }, `the first ${rows.length} of ${set.rows.length} models; tick others in the leaderboard to compare them`));
  }
};
const waiting = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    waiting.unobserve(target);
    explore(target);
  }
}, { rootMargin: "600px" });
document.querySelectorAll("figure[data-explorer]").forEach((figure) => waiting.observe(figure));
