// Sorts and filters the rows of the table. Without this script it is there as a whole, in the order of the run.
const byId = (id) => document.getElementById(id);
const table = byId("comparison");
const heads = [...table.tHead.rows[0].cells];
const rows = [...table.tBodies[0].rows];
const inputs = ["text", "benchmark", "figure", "kind", "significant"].map(byId);
const order = { column: null, descending: false };

const valueOf = (input) => (input.type === "checkbox" ? (input.checked ? "1" : "") : input.value);

/** Whether a row is shown under the filters. */
function matches(row, { text, benchmark, figure, kind, significant }) {
  const words = text.toLowerCase().split(/\s+/);
  const content = row.textContent.toLowerCase();
  return (
    words.every((word) => content.includes(word)) &&
    (!benchmark || row.dataset.benchmark === benchmark) &&
    (figure === "*" || (figure ? row.dataset.figure === figure : "tested" in row.dataset)) &&
    (!kind || row.dataset.kind === kind) &&
    (!significant || "significant" in row.dataset)
  );
}

/** The value that a cell is sorted by: null where there is none, which comes last in either direction. */
function keyOf(row, column) {
  const cell = row.cells[column];
  if (heads[column].classList.contains("number")) {
    return "number" in cell.dataset ? Number(cell.dataset.number) : null;
  }
  return (cell.dataset.name ?? cell.textContent).trim() || null;
}

function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  const sign = order.descending ? -1 : 1;
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
}

function update() {
  const filters = Object.fromEntries(inputs.map((input) => [input.id, valueOf(input)]));
  for (const row of rows) row.hidden = !matches(row, filters);
  const shown = rows.filter((row) => !row.hidden).length;
  byId("count").textContent = `${shown} of ${rows.length} rows`;
  const sorted = [...rows];
  if (order.column !== null) {
    sorted.sort((a, b) => compare(keyOf(a, order.column), keyOf(b, order.column)));
  }
  table.tBodies[0].append(...sorted);
  heads.forEach((head, column) => {
    const direction = order.descending ? "descending" : "ascending";
    head.setAttribute("aria-sort", column === order.column ? direction : "none");
  });
  toFragment(filters);
}

/** Sort by a column; again, the other way. Numbers begin with the largest, but p with the smallest. */
function sortBy(column) {
  const again = order.column === column;
  const head = heads[column];
  const largest = head.classList.contains("number") && !/\bp$/.test(head.textContent);
  order.descending = again ? !order.descending : largest;
  order.column = column;
  update();
}

// The view as a link -----------------------------------------------------------------------------------

function toFragment(filters) {
  const view = Object.entries(filters).filter(([, value]) => value);
  if (order.column !== null) view.push(["sort", `${order.descending ? "-" : ""}${order.column}`]);
  try {
    history.replaceState(null, "", "#" + new URLSearchParams(view));
  } catch {
    // A frame without an address, as in a notebook, has no links.
  }
}

function fromFragment() {
  const view = new URLSearchParams(location.hash.slice(1));
  for (const input of inputs) {
    const value = view.get(input.id) ?? "";
    if (input.type === "checkbox") input.checked = value === "1";
    else if (input.type === "search") input.value = value;
    else input.value = [...input.options].some((option) => option.value === value) ? value : "";
  }
  const sort = view.get("sort") ?? "";
  const column = Number(sort.replace("-", ""));
  order.column = sort && heads[column] ? column : null;
  order.descending = sort.startsWith("-");
}

heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sortBy(column));
  head.append(button);
});
byId("filters").hidden = false;
byId("filters").addEventListener("input", update);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("reset", () => {
  order.column = null;
  setTimeout(update); // once the inputs have their first values again
});
addEventListener("hashchange", () => {
  fromFragment();
  update();
});
fromFragment();
update();
document.documentElement.dataset.ready = "1";
