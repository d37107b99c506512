// Sorts and filters the rows of tables. Without this script they are there as a whole, in the order of the page.
//
// An input of the form #filters, by its id: a select keeps the rows whose data-ID is its value (or one of several,
// joined by "|"), and rows without data-ID. Its value "*" keeps all; so does "", but where the select has
// data-default, only rows with an attribute data-* of that name. A checkbox keeps the rows with data-ID.
const byId = (id) => document.getElementById(id);
const inputs = [...byId("filters").elements].filter((element) => element.id);
const tables = [...document.querySelectorAll("table.sortable")].map((table) => ({
  name: table.dataset.rows ?? "rows",
  body: table.tBodies[0],
  heads: [...table.tHead.rows[0].cells],
  rows: [...table.tBodies[0].rows],
  order: { column: null, descending: false },
}));

const valueOf = (input) => (input.type === "checkbox" ? (input.checked ? "1" : "") : input.value);

/** Whether a row is shown under an input with this value. */
function matches(row, input, value) {
  const own = row.dataset[input.id];
  if (input.type === "search") {
    const content = row.textContent.toLowerCase();
    return value.toLowerCase().split(/\s+/).every((word) => content.includes(word));
  }
  if (input.type === "checkbox") return !value || own !== undefined;
  if (!value) return !input.dataset.default || input.dataset.default in row.dataset;
  return value === "*" || own === undefined || own.split("|").includes(value);
}

/** The value that a cell is sorted by: null where there is none, which comes last in either direction. */
function keyOf(head, cell) {
  if (head.classList.contains("number")) return "number" in cell.dataset ? Number(cell.dataset.number) : null;
  return (cell.dataset.name ?? cell.textContent).trim() || null;
}

function compare(a, b, descending) {
  if (a === null || b === null) return (a === null) - (b === null);
  const sign = descending ? -1 : 1;
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
}

function arrange({ body, heads, rows, order }) {
  const { column, descending } = order;
  const sorted = [...rows];
  if (column !== null) {
    const keys = new Map(rows.map((row) => [row, keyOf(heads[column], row.cells[column])]));
    sorted.sort((a, b) => compare(keys.get(a), keys.get(b), descending));
  }
  body.append(...sorted);
  heads.forEach((head, at) => {
    head.setAttribute("aria-sort", at !== column ? "none" : descending ? "descending" : "ascending");
  });
}

function update() {
  const values = inputs.map(valueOf);
  const shown = tables.map(({ rows, name }) => {
    for (const row of rows) row.hidden = !inputs.every((input, at) => matches(row, input, values[at]));
    return `${rows.filter((row) => !row.hidden).length} of ${rows.length} ${name}`;
  });
  byId("count").textContent = shown.join(", ");
  tables.forEach(arrange);
  toFragment(values);
}

/** Sort by a column; again, the other way. Numbers begin with the largest, but p with the smallest. */
function sortBy({ heads, order }, column) {
  const head = heads[column];
  const largest = head.classList.contains("number") && !/\bp$/.test(head.textContent);
  order.descending = order.column === column ? !order.descending : largest;
  order.column = column;
  update();
}

// The view as a link -----------------------------------------------------------------------------------

const nameOfOrder = (at) => (at ? `sort${at + 1}` : "sort");

function toFragment(values) {
  const view = inputs.map((input, at) => [input.id, values[at]]).filter(([, value]) => value);
  tables.forEach(({ order: { column, descending } }, at) => {
    if (column !== null) view.push([nameOfOrder(at), `${descending ? "-" : ""}${column}`]);
  });
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
  tables.forEach(({ heads, order }, at) => {
    const sort = view.get(nameOfOrder(at)) ?? "";
    const column = Number(sort.replace("-", ""));
    order.column = sort && heads[column] ? column : null;
    order.descending = sort.startsWith("-");
  });
}

for (const table of tables) {
  table.heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, column));
    head.append(button);
  });
}
byId("filters").hidden = false;
byId("filters").addEventListener("input", update);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("reset", () => {
  for (const { order } of tables) order.column = null;
  setTimeout(update); // once the inputs have their first values again
});
addEventListener("hashchange", () => {
  fromFragment();
  update();
});
fromFragment();
update();
document.documentElement.dataset.ready = "1";
