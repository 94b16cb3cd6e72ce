// What is open follows the address: #model-... is a sheet, #compare=a,b models side by side.
const openByAddress = () => {
  const name = decodeURIComponent(location.hash.slice(1));
  const ids = name.startsWith("compare=") ? name.slice(8).split(",") : [];
  const target = name && byId(name);
  if (compare.open && !ids.length) compare.close();
  if (sheet.open && !(target && target.matches("details.sheet"))) sheet.close();
  if (target && target.matches("details.sheet")) showSheet(target);
  else if (ids.length) showCompare(ids);
};
const forget = () => {
  const name = decodeURIComponent(location.hash.slice(1));
  if (name.startsWith("compare=") || byId(name)?.matches("details.sheet")) {
    history.replaceState(null, "", location.pathname + location.search);
  }
};
// Following an address takes the focus away from its link, so it is given back by hand.
sheet.addEventListener("close", () => {
  const line = lent && lineOf(lent.id);
  giveBack();
  forget();
  line?.querySelector("th a").focus();
});
compare.addEventListener("close", () => {
  dropCharts(compare);
  forget();
  byId("tray-open").focus();
});
for (const panel of [sheet, compare]) {
  panel.querySelector(".close").addEventListener("click", () => panel.close());
  panel.addEventListener("click", (event) => event.target === panel && panel.close());
}
// A click anywhere on a row opens its model; the link in it does so for the keyboard.
for (const { rows } of BOARDS) {
  for (const row of rows) {
    row.addEventListener("click", (event) => {
      if (event.target.closest("a, input, button") || String(getSelection())) return;
      row.querySelector("th a").focus();
      location.hash = row.dataset.id;
    });
  }
}
addEventListener("hashchange", openByAddress);
openByAddress();
