// What is shown beside the tokens and pictures: bars by role, the strongest columns, strips of stacked bars.

const STRONGEST = 12; // columns that are listed

/** An element with attributes and children; texts are never read as HTML. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const byId = (id) => document.getElementById(id);

/** A share of a row for people, with as many digits as it is known to. */
function percent(share, digits, signed = false) {
  const size = Math.abs(share) * 100;
  const sign = share < 0 ? "−" : signed && share > 0 ? "+" : "";
  const unit = signed ? " pt" : " %";
  if (!size) return "0" + unit;
  if (size < 0.001) return (signed ? sign : "") + "<0.001" + unit;
  return sign + size.toFixed(Math.min(3, Math.max(0, digits - 1 - Math.floor(Math.log10(size))))) + unit;
}

/** A token as a word in a sentence or list: without the spaces around it, but never nothing. */
function visible(piece) {
  const shown = piece.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  return shown.trim() || (shown ? "␣" : "∅");
}

function bar(share, colour) {
  const fill = element("i");
  fill.style.width = `${Math.min(100, 100 * share)}%`;
  if (colour) fill.style.setProperty("--role", colour);
  return element("span", { class: "bar" }, fill);
}

/** Rows of a table: the mass of each role, and of two models how it changed. */
function showRoles(table, names, colours, masses, before, digits) {
  table.replaceChildren(
    ...names.map((name, role) => {
      const swatch = element("span", { class: "swatch" });
      swatch.style.setProperty("--role", colours[role]);
      const value = element("td", {}, percent(masses[role], digits));
      if (before) {
        const change = percent(masses[role] - before[role], digits, true);
        value.append(element("span", { class: "delta" }, `  ${change}`));
      }
      return element(
        "tr",
        {},
        element("th", { scope: "row" }, swatch, name),
        element("td", {}, bar(masses[role], colours[role])),
        value,
      );
    }),
  );
}

/** The columns with the largest weights; `point(column)` marks one (null none), `choose(column)` goes there. */
function showStrongest(list, weights, { label, colour, digits, signed, point, choose }) {
  const columns = [];
  weights.forEach((weight, column) => weight && columns.push(column));
  columns.sort((a, b) => Math.abs(weights[b]) - Math.abs(weights[a]) || a - b);
  const largest = columns.length ? Math.abs(weights[columns[0]]) : 1;
  list.replaceChildren(
    ...columns.slice(0, STRONGEST).map((column) => {
      const button = element(
        "button",
        {
          type: "button",
          "data-column": column,
          onclick: () => choose(column),
          onmouseenter: () => point(column),
          onmouseleave: () => point(null),
          onfocus: () => point(column),
          onblur: () => point(null),
        },
        element("span", { class: "name" }, label(column)),
        element("span", {}, percent(weights[column], digits, signed)),
        bar(Math.abs(weights[column]) / largest, colour(column)),
      );
      return element("li", {}, button);
    }),
  );
  if (!columns.length)
    list.append(
      element(
        "li",
        { class: "note" },
        signed ? "no difference beyond rounding" : "none on this page",
      ),
    );
}

/** A row of stacked bars to choose from, such as one per layer. */
class Strip {
  constructor(host, items, { colours, names, title, words, choose }) {
    this.colours = colours;
    this.names = names;
    this.items = items;
    this.cells = items.map((item, i) => {
      const cell = element("div", { class: "cell", role: "option", "data-item": i }, element("i"));
      if (item.style) cell.classList.add(item.style);
      cell.append(element("span", { "aria-hidden": "true" }, item.short));
      return cell;
    });
    const box = element("div", { class: "cells", role: "listbox", "aria-labelledby": title }, ...this.cells);
    box.addEventListener("click", (event) => {
      const cell = event.target.closest(".cell");
      if (cell) choose(items[Number(cell.dataset.item)].value);
    });
    if (words && items.length > 28) box.classList.add("dense"); // no room for words
    this.chosen = -1;
    host.replaceChildren(box);
  }

  /** Draw `masses(i)`, an array by role, for every item; differences stand on both sides of a middle line. */
  draw(masses, chosen, { signed, digits }) {
    const all = this.items.map((_, i) => Array.from(masses(i)));
    const sum = (values, sign) => values.reduce((total, value) => total + Math.max(0, sign * value), 0);
    const reach = signed
      ? Math.max(1e-9, ...all.map((values) => Math.max(sum(values, 1), sum(values, -1))))
      : 1;
    all.forEach((values, i) => {
      const listed = this.names
        .map((name, role) => `${name} ${percent(values[role], digits, signed)}`)
        .join(", ");
      const cell = this.cells[i];
      cell.setAttribute("aria-label", `${this.items[i].name}: ${listed}`);
      cell.title = `${this.items[i].name}\n${listed.replaceAll(", ", "\n")}`;
      cell.firstChild.style.background = signed ? this.twoSided(values, reach) : this.stacked(values);
    });
    if (this.chosen !== chosen) {
      this.cells[this.chosen]?.setAttribute("aria-selected", "false");
      this.cells[chosen]?.setAttribute("aria-selected", "true");
      this.chosen = chosen;
    }
  }

  stacked(values) {
    let at = 0;
    const stops = values.map((value, role) => `${this.colours[role]} ${100 * at}% ${100 * (at += value)}%`);
    return `linear-gradient(to top, ${stops.join(", ")}, transparent ${100 * at}%)`;
  }

  twoSided(values, reach) {
    const side = (sign, direction) => {
      let at = 0;
      const stops = values.map((value, role) => {
        const from = at;
        at += Math.max(0, sign * value) / reach;
        return `${this.colours[role]} ${100 * from}% ${100 * at}%`;
      });
      return `linear-gradient(to ${direction}, ${stops.join(", ")}, transparent ${100 * at}%)`;
    };
    const upper = `${side(1, "top")} top / 100% 50% no-repeat`;
    return `${upper}, ${side(-1, "bottom")} bottom / 100% 50% no-repeat, var(--well)`;
  }
}

/** One number for each head of each layer, as a map to choose from. */
class HeadGrid {
  constructor(host, numbers, heads, { choose, point }) {
    const layers = numbers.length;
    Object.assign(this, { layers, heads });
    this.canvas = element("canvas", { width: heads, height: layers, role: "img" });
    this.canvas.style.height = `${Math.min(320, Math.max(60, layers * 14))}px`;
    this.mark = element("div", { class: "mark", hidden: "" });
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const cell = (place, size, cells) =>
        Math.min(cells - 1, Math.max(0, Math.floor((place / size) * cells)));
      return [
        cell(event.clientY - box.top, box.height, layers),
        cell(event.clientX - box.left, box.width, heads),
      ];
    };
    this.canvas.addEventListener("click", (event) => choose(...at(event)));
    this.canvas.addEventListener("pointermove", (event) => point(...at(event)));
    this.canvas.addEventListener("pointerleave", () => point(null));
    const down = this.ticks(numbers, 14, "top", "layer-ticks");
    const across = this.ticks([...Array(heads).keys()], 16, "left", "head-ticks");
    host.replaceChildren(element("div", { class: "map" }, this.canvas, this.mark, down), across);
  }

  /** At most `most` of the numbers along an axis, each in the middle of its cells. */
  ticks(numbers, most, side, name) {
    const every = Math.ceil(numbers.length / most);
    const axis = element("div", { class: name, "aria-hidden": "true" });
    numbers.forEach((number, i) => {
      if (i % every) return;
      const tick = element("span", {}, String(number));
      tick.style[side] = `${(100 * (i + 0.5)) / numbers.length}%`;
      axis.append(tick);
    });
    return axis;
  }

  /** Draw `value(layer, head)`; `paint(pixels, at, share)` colours, `chosen` is [layer, head]. Returns the largest. */
  draw(value, paint, chosen, label) {
    const values = new Float64Array(this.layers * this.heads);
    for (let i = 0; i < values.length; i++) values[i] = value(Math.floor(i / this.heads), i % this.heads);
    const most = values.reduce((largest, each) => Math.max(largest, Math.abs(each)), 0) || 1;
    const map = new ImageData(this.heads, this.layers);
    values.forEach((each, i) => paint(map.data, 4 * i, each / most));
    this.canvas.getContext("2d").putImageData(map, 0, 0);
    this.canvas.setAttribute("aria-label", label);
    const [layer, head] = chosen;
    this.mark.hidden = layer < 0;
    const whole = typeof head !== "number";
    Object.assign(this.mark.style, {
      top: `${(100 * layer) / this.layers}%`,
      height: `${100 / this.layers}%`,
      left: `${whole ? 0 : (100 * head) / this.heads}%`,
      width: `${whole ? 100 : 100 / this.heads}%`,
    });
    return most;
  }
}
