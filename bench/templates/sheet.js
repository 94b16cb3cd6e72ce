// A model's sheet: what the page carries of it, in a panel, with its charts.
const sheet = byId("sheet");
let lent = null; // the details element whose body is in the panel

const cellsOf = (id) => {
  const line = lineOf(id);
  return headsOf(line.closest("table")).map((head, i) => {
    const cell = line.children[i];
    const small = cell.querySelector("small");
    const text = [...cell.childNodes].filter((node) => node !== small).map((node) => node.textContent).join("").trim();
    const title = head.dataset.name === "rank" ? "Rank" : head.querySelector("button").textContent;
    const note = head.querySelector("small")?.textContent ?? "";
    return {
      name: head.dataset.name, title, note, text, interval: small?.textContent ?? "", tip: cell.title,
    };
  }).filter((cell) => cell.name !== "model");
};

const tilesOf = (id) => make("dl", { class: "tiles" }, ...cellsOf(id).filter((cell) => cell.text && cell.name !== "rank").map((cell) => make(
  "div", {}, make("dt", {}, cell.title, cell.note ? make("small", {}, ` ${cell.note}`) : null),
  make("dd", {}, cell.text, cell.interval ? make("small", {}, cell.interval) : null, cell.tip ? make("small", {}, cell.tip) : null),
)));

// The worst case is solid, its attacks are not.
const DASHES = [[6, 3], [2, 3], [9, 3, 2, 3], [9, 3, 2, 3, 2, 3]];
const drawSheet = (row, host) => {
  for (const [, panels] of groupsOf(row.set)) {
    const shown = panels.filter((panel) => curveOf(row, panel.number).some((point) => point.value !== null && point.x > 0));
    if (!shown.length) continue;
    const norm = panels.some((panel) => panel.kind === "worst");
    const own = shown.filter((panel) => panel.kind !== "certified" || curveOf(row, panel.number).some((point) => point.value > 0 && point.x > 0));
    const split = norm ? [own] : own.map((panel) => [panel]);
    for (const part of split) {
      const attacks = part.filter((panel) => panel.kind === "attack");
      const curves = part.map((panel) => ({
        label: panel.title, row, points: curveOf(row, panel.number),
        dotted: panel.kind === "certified", faint: panel.kind === "attack", dash: attacks.includes(panel) ? DASHES[attacks.indexOf(panel) % DASHES.length] : [],
      }));
      const { chart } = draw(host, { ...part[0], title: norm ? `Attacks in ${part[0].group}` : part[0].title, curves });
      if (curves.length > 1) chart.append(legendOf(curves, `Lines of attacks in ${part[0].group}`));
    }
  }
};

// The numbers of some panels of some rows, as a table.
const numbersOf = (rows, panels, label) => {
  const silent = panels.some((panel) => rows.some((row) => silentIn(curveOf(row, panel.number))));
  const body = panels.flatMap((panel) => rows.flatMap((row) => curveOf(row, panel.number).filter((point) => point.samples || point.x > 0).map((point) => make(
    "tr", {}, make("th", { scope: "row" }, rows.length > 1 ? row.label : panel.title), rows.length > 1 ? make("td", { class: "text" }, panel.title) : null,
    make("td", {}, point.x === 0 ? "clean" : `${panel.symbol} = ${point.x}`), make("td", {}, percent(point.value)),
    make("td", {}, point.low === null ? "" : `${percent(point.low)} – ${percent(point.high)}`),
    silent ? make("td", {}, point.silent ? percent(point.silent) : "") : null,
    make("td", {}, point.samples ? point.samples.toLocaleString("en") : ""), make("td", {}, point.seeds || ""),
  ))));
  const columns = ["Strength", "Accuracy (%)", "95% interval", ...(silent ? ["No answer (%)"] : []), "Samples", "Seeds"];
  const heads = columns.map((text) => make("th", { scope: "col" }, text));
  const names = (rows.length > 1 ? ["Model", "Threat"] : ["Threat"]).map((text) => make("th", { scope: "col", class: "text" }, text));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...names, ...heads)), make("tbody", {}, ...body));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);
};
const numbered = (set) => set.panels.map((panel, number) => ({ ...panel, number }));

const giveBack = () => {
  if (!lent) return;
  const body = byId("sheet-body").querySelector(".body");
  dropCharts(body);
  body.querySelectorAll(".tiles, .charts > *, .numbers > *").forEach((part) => part.remove());
  lent.append(body);
  lent = null;
};
const showSheet = (details) => {
  giveBack();
  const row = ROWS.get(details.id);
  const body = details.querySelector(".body");
  byId("sheet-title").textContent = details.dataset.label;
  byId("sheet-facts").textContent = details.querySelector("summary .quiet").textContent;
  body.prepend(tilesOf(details.id));
  byId("sheet-body").replaceChildren(body);
  lent = details;
  if (!sheet.open) sheet.showModal();
  sheet.scrollTop = 0;
  const some = Object.keys(row.curves).length > 0;
  body.querySelectorAll("[data-part]").forEach((part) => { part.hidden = !some; });
  if (!some) return;
  drawSheet(row, body.querySelector(".charts"));
  body.querySelector(".numbers").append(numbersOf([row], numbered(row.set), `All accuracies of ${row.label}`));
};
