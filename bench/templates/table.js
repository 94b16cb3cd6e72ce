// Sort any table, rank and filter the leaderboard.
const headsOf = (table) => [...table.querySelectorAll("thead tr:last-child th")];
const sortKey = (row, column) => row.children[column].dataset.sort;
const columnOf = (table, name) => headsOf(table).findIndex((head) => head.dataset.name === name);

// Blanks stay last either way.
const sortTable = (table, column, direction) => {
  const heads = headsOf(table);
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const numeric = !heads[column].classList.contains("text");
  const rows = [...table.tBodies[0].rows].map((row) => [sortKey(row, column), row]);
  rows.sort(([x], [y]) => {
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y));
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
};
document.querySelectorAll("table.sortable").forEach((table) => {
  headsOf(table).forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const first = head.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      sortTable(table, column, head.getAttribute("aria-sort") === first ? other : first);
    });
  });
});

const BOARDS = [...document.querySelectorAll("table.ranking")].map((table) => {
  const rank = columnOf(table, "rank");
  const rows = [...table.tBodies[0].rows];
  return { table, rank, rows, name: table.dataset.dataset, ranks: rows.map((row) => sortKey(row, rank)), tips: rows.map((row) => row.children[rank].title) };
});

// Complete rows first, then by value; equal values share a rank. The records' own ranks go before that.
const ranksBy = (board, name) => {
  if (name === board.table.dataset.rank) return board.ranks;
  const known = (DATA.ranks[board.name] || {})[name];
  if (known) return known.map((rank) => (rank === null ? "" : String(rank)));
  const column = columnOf(board.table, name);
  const keys = board.rows.map((row) => {
    const value = sortKey(row, column);
    return [Number(row.dataset.below), value === "" ? 1 : -Number(value)];
  });
  const before = (a, b) => a[0] < b[0] || (a[0] === b[0] && a[1] < b[1]);
  return keys.map((key) => String(1 + keys.filter((other) => before(other, key)).length));
};
const rankBy = (name) => {
  for (const board of BOARDS) {
    const by = columnOf(board.table, name) < 0 ? board.table.dataset.rank : name;
    const column = columnOf(board.table, by);
    const ranks = ranksBy(board, by);
    ranks.forEach((rank, i) => {
      const cell = board.rows[i].children[board.rank];
      cell.dataset.sort = rank;
      cell.textContent = rank && ranks.indexOf(rank) !== ranks.lastIndexOf(rank) ? `=${rank}` : rank;
      cell.classList.toggle("blank", rank === "");
      cell.title = by === board.table.dataset.rank ? board.tips[i] : "";
    });
    [...headsOf(board.table), ...board.rows.flatMap((row) => [...row.children])].forEach((cell) => {
      cell.classList.toggle("chosen", cell.cellIndex === column);
    });
    // Rows of one rank stand in the order of their values, complete ones first.
    const order = board.rows.map((row) => [Number(row.dataset.below), -Number(sortKey(row, column) || -1), row]);
    order.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    board.table.tBodies[0].append(...order.map(([, , row]) => row));
    sortTable(board.table, board.rank, "ascending");
  }
};

const chosen = (id) => byId(id)?.value ?? "";
const showColumns = (table, threat) => {
  const heads = headsOf(table);
  const hidden = heads.map((head) => Boolean(threat && head.dataset.threat && head.dataset.threat !== threat));
  for (const row of [table.tHead.rows[table.tHead.rows.length - 1], ...table.tBodies[0].rows]) {
    [...row.children].forEach((cell, i) => { cell.hidden = hidden[i]; });
  }
  let start = 0;
  for (const group of table.querySelectorAll("tr.groups > *")) {
    group.dataset.span ??= group.colSpan;
    const span = Number(group.dataset.span);
    const left = hidden.slice(start, start + span).filter((gone) => !gone).length;
    group.hidden = left === 0;
    group.colSpan = left || span;
    start += span;
  }
};
const filterBoards = () => {
  const find = chosen("find").trim().toLowerCase();
  const [dataset, threat, recipe, flag] = ["dataset", "threat", "recipe", "flag"].map(chosen);
  let shown = 0, all = 0;
  for (const { table, rows, name } of BOARDS) {
    showColumns(table, threat);
    for (const row of rows) {
      const flags = row.dataset.flags ? row.dataset.flags.split(" ") : [];
      row.hidden = !(
        row.dataset.label.toLowerCase().includes(find) && (!recipe || row.dataset.recipe === recipe) &&
        (!flag || (flag === "-" ? flags.length === 0 : flags.includes(flag)))
      );
      all += 1;
      shown += !row.hidden && (!dataset || dataset === name);
    }
  }
  document.querySelectorAll(".dataset").forEach((part) => {
    part.hidden = Boolean(dataset) && part.dataset.dataset !== dataset;
  });
  const rank = byId("rank-by");
  const words = rank ? ` ranked by ${rank.selectedOptions[0].textContent}` : "";
  const tested = rank && BOARDS.every(({ name: set }) => DATA.ranks[set]?.[rank.value]);
  const known = tested || !rank || rank.value === rank.dataset.default;
  const ties = tested ? "; = marks models that McNemar's test does not distinguish" : known ? "" : " (by value: equal values share a rank)";
  const count = shown === all ? many(all, "row") : `${shown} of ${many(all, "row")}`;
  byId("state").textContent = `${count}${words}${ties}`;
};
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("controls").addEventListener("input", (event) => {
  if (event.target.id === "rank-by") rankBy(event.target.value);
  filterBoards();
});
rankBy(byId("rank-by")?.value ?? "");
filterBoards();
