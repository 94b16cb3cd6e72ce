// What the other parts share: the data, elements, the theme.
document.documentElement.classList.add("js");
const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// An element; text goes in as text, so nothing that a record says is ever markup.
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
};
const many = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

// Each row of the charts with its panels; the rows of the leaderboard by id.
const ROWS = new Map();
for (const set of DATA.charts) for (const row of set.rows) ROWS.set(row.id, { ...row, set });
const lineOf = (id) => byId(`row-${id}`);

// One curve as points: x, value, low, high, samples, seeds, and the share without an answer, null for none.
const curveOf = (row, panel) => {
  const raw = row.curves[panel];
  if (!raw) return [];
  const [values, lows, highs, samples, seeds, silent] = raw;
  const at = (counts, i) => (Array.isArray(counts) ? counts[i] : counts);
  return row.set.panels[panel].x.map((x, i) => ({
    x, value: values[i], low: lows[i], high: highs[i], samples: at(samples, i), seeds: at(seeds, i), silent: silent?.[i] || null,
  }));
};

// The theme: as the system says, or as the reader chose.
const dark = matchMedia("(prefers-color-scheme: dark)");
const THEMES = ["auto", "light", "dark"];
const stored = () => { try { return localStorage.getItem("robustode-theme"); } catch { return null; } };
let theme = THEMES.includes(stored()) ? stored() : "auto";
const isDark = () => (theme === "auto" ? dark.matches : theme === "dark");
const themeWatchers = [];
const showTheme = () => {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
  themeWatchers.forEach((redraw) => redraw());
};
byId("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  try { localStorage.setItem("robustode-theme", theme); } catch { /* a page without storage forgets it */ }
  showTheme();
});
dark.addEventListener("change", showTheme);
showTheme();

document.addEventListener("click", (event) => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const code = button.parentElement.querySelector("code");
  const say = (word) => { button.textContent = word; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
  const select = () => { getSelection().selectAllChildren(code); say("Selected"); };
  if (!navigator.clipboard) { select(); return; }
  navigator.clipboard.writeText(code.textContent).then(() => say("Copied"), select);
});
