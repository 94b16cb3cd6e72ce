"use strict";
// Sort a table by the heading that was pressed; blanks stay last either way.
document.querySelectorAll("table.sortable").forEach((table) => {
  const heads = [...table.querySelectorAll("thead tr:last-child th")];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort");
      const first = head.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const now = was === first ? other : first;
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", now);
      const sign = now === "ascending" ? 1 : -1;
      const numeric = !head.classList.contains("text");
      const value = (row) => row.children[column].dataset.sort;
      const body = table.tBodies[0];
      [...body.rows]
        .sort((a, b) => {
          const x = value(a), y = value(b);
          if (x === "" || y === "") return (x === "") - (y === "");
          return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y));
        })
        .forEach((row) => body.append(row));
    });
  });
});
// A link to a model opens its details.
const open = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") target.open = true;
};
addEventListener("hashchange", open);
open();
