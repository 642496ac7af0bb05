"use strict";
// Draws the figures of the page in its colours, sorts its table, and changes between dark and light.
const figures = JSON.parse(document.getElementById("figures").textContent);
const root = document.documentElement;

function colours() {
  const style = getComputedStyle(root);
  const read = (name) => style.getPropertyValue(name).trim();
  const line = { gridcolor: read("--line"), zerolinecolor: read("--line"), linecolor: read("--line"), automargin: true };
  return {
    font: { color: read("--text"), size: 12 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: read("--panel"), bordercolor: read("--line"), font: { color: read("--text") } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: read("--soft"), activecolor: read("--accent") },
    xaxis: line, yaxis: line,
  };
}

function layoutOf(figure) {
  const margin = { l: 70, r: 30, t: figure.layout.updatemenus ? 70 : 45, b: 55 };
  return { height: 400, margin, ...figure.layout, template: { layout: colours() } };
}

async function draw() {
  const config = { responsive: true, displaylogo: false };
  for (const [name, figure] of Object.entries(figures)) {
    await Plotly.react(document.getElementById(name), figure.data, layoutOf(figure), config);
  }
  root.dataset.drawn = Object.keys(figures).length;
}

function setTheme(theme) {
  root.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "light" : "dark";
}

function valueOf(row, column) {
  const text = row.cells[column].textContent;
  return text !== "" && isFinite(text) ? Number(text) : text;
}

function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");  // a cell without a value stays last
  if (typeof a === "number" && typeof b === "number") return a - b;
  return typeof a === typeof b ? a.localeCompare(b) : typeof a === "number" ? -1 : 1;
}

function sort(header) {
  const column = header.cellIndex;
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = header.closest("table").tBodies[0];
  const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
  rows.sort(([a], [b]) => (a === "" || b === "" || !down ? compare(a, b) : compare(b, a)));
  body.append(...rows.map(([, row]) => row));
}

setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
document.getElementById("theme").addEventListener("click", () => {
  setTheme(root.dataset.theme === "dark" ? "light" : "dark");
  draw();
});
for (const header of document.querySelectorAll("th")) header.addEventListener("click", () => sort(header));
draw();
