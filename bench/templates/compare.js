// Two or more models side by side: one chart, their numbers, and the settings in which they differ.
const compare = byId("compare");
const MOST = 8;
const ticked = () => [...document.querySelectorAll("input.compare:checked")].map((box) => box.closest("tr").dataset.id);

const settingsOf = (id) => {
  const found = new Map();
  const body = byId(id).querySelector(".settings") ?? (lent?.id === id ? byId("sheet-body").querySelector(".settings") : null);
  body?.querySelectorAll("code").forEach((code) => {
    const name = code.dataset.name ?? "solver";
    found.set(name, code.textContent.replace(`${name} = `, ""));
  });
  return found;
};

const sideBySide = (rows, lines, label) => {
  const head = make("tr", {}, make("th", { scope: "col", class: "text" }, label), ...rows.map((row) => make("th", { scope: "col" }, row.label)));
  const body = lines.map(({ name, cells, differs }) => make(
    "tr", {}, make("th", { scope: "row" }, name), ...cells.map((cell) => make("td", { class: differs ? "differs" : "" }, ...cell)),
  ));
  const table = make("table", { class: "side-by-side" }, make("thead", {}, head), make("tbody", {}, ...body));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);
};
const numbersBeside = (rows) => {
  const cells = rows.map((row) => new Map(cellsOf(row.id).map((cell) => [cell.name, cell])));
  const names = new Map(cells.flatMap((map) => [...map.values()].map((cell) => [cell.name, `${cell.title}${cell.note ? ` (${cell.note})` : ""}`])));
  return [...names].map(([key, name]) => ({ name, cells: cells.map((map) => {
    const cell = map.get(key);
    return cell ? [cell.text || "–", cell.interval ? make("small", {}, cell.interval) : null].filter(Boolean) : ["–"];
  }) }));
};
const settingsBeside = (rows) => {
  const settings = rows.map((row) => settingsOf(row.id));
  const names = [...new Set(settings.flatMap((map) => [...map.keys()]))];
  return names.map((name) => ({ name, values: settings.map((map) => map.get(name) ?? "–") }))
    .filter(({ values }) => new Set(values).size > 1)
    .map(({ name, values }) => ({ name, cells: values.map((value) => [value]) }));
};

const showCompare = (ids) => {
  const chosenRows = [...new Set(ids)].map((id) => ROWS.get(id)).filter(Boolean);
  const rows = chosenRows.filter((row) => row.set === chosenRows[0]?.set).slice(0, MOST);
  if (rows.length < 2) return false;
  const { set } = rows[0];
  const body = byId("compare-body");
  dropCharts(body);
  byId("compare-title").textContent = rows.map((row) => row.label).join(", ");
  const drawable = numbered(set).filter((panel) => panel.kind !== "certified" && rows.some((row) => row.curves[panel.number]));
  const select = make("select", { id: "compare-threat" }, ...drawable.map((panel) => make("option", { value: panel.number }, panel.title)));
  const board = BOARDS.find(({ name }) => name === set.name);
  const by = columnOf(board.table, byId("rank-by")?.value || board.table.dataset.rank);
  const key = headsOf(board.table)[by]?.dataset.threat;
  const first = drawable.find((panel) => panel.key === key) ?? drawable[0];
  const host = make("div", { id: "compare-chart" });
  const numbers = make("div", {});
  const show = (panel) => {
    dropCharts(host);
    const curves = rows.flatMap((row) => curvesAt(row, panel, panel.number));
    host.replaceChildren();
    if (curves.length) draw(host, { ...panel, curves, height: 320 });
    const bound = certifiedOf(set, panel);
    const panels = panel.kind === "worst" && bound >= 0 ? [panel, numbered(set)[bound]] : [panel];
    numbers.replaceChildren(numbersOf(rows, panels, `Numbers of the chart: ${panel.title}`));
  };
  select.addEventListener("change", () => show(drawable.find((panel) => panel.number === Number(select.value))));
  const legend = legendOf(rows.map((row) => ({ row, label: row.label })), "Models");
  const settings = settingsBeside(rows);
  const left = chosenRows.length - rows.length;
  body.replaceChildren(
    ...(left ? [make("p", { class: "notice" }, `${many(left, "model")} of another dataset, or beyond ${MOST}, not shown.`)] : []),
    ...(first ? [make("div", { class: "picker" }, make("label", { for: "compare-threat" }, "Threat"), select), legend, host] : []),
    make("p", { class: "quiet" }, "Bands are 95% Wilson intervals; round dots are certified accuracy, a lower bound."),
    make("h3", {}, "Side by side"), sideBySide(rows, numbersBeside(rows), "Value"),
    make("h3", {}, "Settings that differ"),
    settings.length ? sideBySide(rows, settings, "Setting") : make("p", { class: "quiet" }, "None."),
    make("h3", {}, "Numbers of the chart"), numbers,
  );
  if (!compare.open) compare.showModal();
  compare.scrollTop = 0;
  if (first) { select.value = first.number; show(first); }
  return true;
};

const showTray = () => {
  const ids = ticked();
  byId("tray").hidden = ids.length === 0;
  byId("tray-names").textContent = ids.map((id) => ROWS.get(id).label).join(", ");
  byId("tray-open").disabled = ids.length < 2;
  document.querySelectorAll("input.compare").forEach((box) => box.closest("tr").classList.toggle("ticked", box.checked));
};
document.addEventListener("change", (event) => event.target.matches("input.compare") && showTray());
byId("tray-open").addEventListener("click", () => { location.hash = `compare=${ticked().join(",")}`; });
byId("tray-clear").addEventListener("click", () => {
  document.querySelectorAll("input.compare:checked").forEach((box) => { box.checked = false; });
  showTray();
});
showTray();
