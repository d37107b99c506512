// The page: what is chosen (`state`), and how it is drawn. Everything drawn follows from `state` and the data.

const data = JSON.parse(byId("data").textContent);
const digits = data.fidelity.bits === 8 ? 2 : 3;
const comparing = data.variants.length === 2;
const complete = Math.min(...Object.values(data.fidelity.entriesPerRow)) >= data.pieces.length;
const images = data.pictures.length > 0;
const mapped = images && data.columns !== "none"; // without weights, pictures have no map over them

const rowOfToken = new Map(data.rows.map((token, row) => [token, row]));
/** The recorded row of a token: its own in the prompt, the one that predicts it in the answer. */
const rowOf = (token) => rowOfToken.get(token < data.prompt ? token : token - 1);
const live = data.pieces.map((_, token) => token).filter((token) => rowOf(token) !== undefined);
const heads = ["mean", "max", ...Array.from({ length: data.heads }, (_, head) => head)];
const firstAnswer = live.find((token) => token >= data.prompt) ?? live[live.length - 1];

/** Where a token lies in the pictures: {picture, cell}, or undefined for text. */
const placeOf = new Map();
data.pictures.forEach((picture, number) =>
  picture.tokens.forEach((token, cell) => placeOf.set(token, { picture: number, cell })),
);

const state = {
  token: data.opening ?? firstAnswer,
  layer: ALL,
  head: "mean",
  show: comparing ? 1 : 0,
  opacity: 80,
  scale: "linear",
  smooth: false,
};
const SHOWS = comparing ? [0, 1, "difference"] : [0];
let weights;
const drawn = { chips: [], pictures: [], strips: {}, tints: [], chosen: null };

// The view as a link -----------------------------------------------------------------------------------

function toFragment() {
  const layer = state.layer === ALL ? "all" : data.layers[state.layer];
  const show = state.show === "difference" ? "difference" : ["plain", "edited"][state.show];
  return new URLSearchParams({
    token: state.token,
    layer,
    head: state.head,
    show,
    opacity: state.opacity,
    scale: state.scale,
    smooth: Number(state.smooth),
  }).toString();
}

/** Take from a fragment what makes sense on this page. */
function fromFragment(text) {
  const parameters = new URLSearchParams(text.replace(/^#/, ""));
  const token = Number(parameters.get("token") ?? NaN);
  if (live.includes(token)) state.token = token;
  const layer = data.layers.indexOf(Number(parameters.get("layer") ?? NaN));
  if (layer >= 0 || parameters.get("layer") === "all") state.layer = layer;
  const head = heads.find((each) => String(each) === parameters.get("head"));
  if (head !== undefined) state.head = head;
  const show = { plain: 0, edited: 1, difference: "difference" }[parameters.get("show")];
  if (SHOWS.includes(show)) state.show = show;
  const opacity = Number(parameters.get("opacity") ?? NaN);
  if (opacity >= 0 && opacity <= 100) state.opacity = opacity;
  if (["linear", "root"].includes(parameters.get("scale"))) state.scale = parameters.get("scale");
  if (parameters.has("smooth")) state.smooth = parameters.get("smooth") === "1";
}

/** Change the view, and draw what follows from it. */
function set(change) {
  Object.assign(state, change);
  if (state.layer === ALL && typeof state.head === "number") {
    // A head's number means nothing across layers: choosing a head chooses a layer, too.
    if ("head" in change) state.layer = 0;
    else state.head = "mean";
  }
  draw();
  try {
    history.replaceState(null, "", "#" + toFragment());
  } catch {
    // A frame without an address, as in a notebook, has no links.
  }
}

function step(name, values, by) {
  const at = values.indexOf(state[name]) + by;
  if (at >= 0 && at < values.length) set({ [name]: values[at] });
}

// Drawing ------------------------------------------------------------------------------------------------

function draw() {
  const row = rowOf(state.token);
  const now = weights.row(state.show, state.layer, state.head, row);
  drawControls();
  drawTokens(now);
  drawPictures(now);
  drawRow(now, row);
  if (weights.knowsRoles) drawStrips(row);
}

const tint = (share) => (state.scale === "root" ? Math.sqrt(share) : share);
const largest = (values, columns) =>
  columns.reduce((most, column) => Math.max(most, Math.abs(values[column])), 0);

function drawControls() {
  byId("layer").value = state.layer;
  byId("head").value = state.head;
  byId("scale").value = state.scale;
  byId("opacity").value = state.opacity;
  byId("smooth").checked = state.smooth;
  for (const button of byId("shows").children) {
    const on = button.dataset.show === String(state.show);
    button.setAttribute("aria-checked", on);
    button.tabIndex = on ? 0 : -1;
  }
}

const TINTS = 50; // steps of a tint: a text of thousands of tokens is drawn sooner where few of them change

function drawTokens(now) {
  const signed = state.show === "difference";
  const most = largest(now, drawn.text.length > 1 ? drawn.text.slice(1) : drawn.text) || 1;
  for (const column of drawn.text) {
    const weight = now[column];
    const step = Math.round(TINTS * tint(Math.min(1, Math.abs(weight) / most)));
    const change = !signed || !step ? "" : weight > 0 ? " gained" : " lost";
    if (drawn.tints[column] === step + change) continue;
    drawn.tints[column] = step + change;
    const chip = drawn.chips[column];
    chip.className = chip.dataset.kind + (step ? ` warm tint-${step}` : "") + change;
  }
  for (const { chip, columns, label } of drawn.runs) {
    const mass = columns.reduce((sum, column) => sum + now[column], 0);
    chip.textContent =
      label +
      (data.columns === "none" || state.head === "max" || (signed && !complete)
        ? ""
        : ` · ${complete ? "" : "≥ "}${percent(mass, digits, signed)}`);
  }
  const chosen = drawn.chips[state.token];
  if (drawn.chosen !== chosen) {
    drawn.chosen?.setAttribute("aria-selected", "false");
    chosen.setAttribute("aria-selected", "true");
    chosen.parentNode.setAttribute("aria-activedescendant", chosen.id);
    drawn.chosen = chosen;
    reveal(chosen);
  }
}

/** Scroll a token's own box, and not the page, so that it is seen. */
function reveal(chip) {
  const [own, around] = [chip, chip.parentNode].map((each) => each.getBoundingClientRect());
  if (own.top < around.top) chip.parentNode.scrollTop += own.top - around.top;
  else if (own.bottom > around.bottom) chip.parentNode.scrollTop += own.bottom - around.bottom;
}

/** Colours of shares in [-1, 1] as red, green, blue and opacity, which is `faintest` where nothing looks. */
function paint(pixels, at, share, faintest = FAINTEST) {
  const size = Math.round(255 * tint(Math.min(1, Math.abs(share))));
  if (state.show === "difference") pixels.set([...(share > 0 ? GAINED : LOST), size], at);
  else
    pixels.set([...COLOURS.subarray(3 * size, 3 * size + 3), faintest + ((255 - faintest) * size) / 255], at);
}

const COLOURS = Uint8Array.from(data.colours.match(/../g), (pair) => parseInt(pair, 16));
const FAINTEST = 110; // of 255, over a picture
const GAINED = [255, 140, 0];
const LOST = [0, 140, 255];

function drawPictures(now) {
  if (!mapped) return;
  const most = Math.max(...data.pictures.map((picture) => largest(now, picture.tokens))) || 0;
  data.pictures.forEach((picture, number) => {
    const { canvas, frame, image } = drawn.pictures[number];
    const map = new ImageData(picture.columns, picture.rows);
    picture.tokens.forEach((token, cell) => paint(map.data, 4 * cell, most ? now[token] / most : 0));
    canvas.getContext("2d").putImageData(map, 0, 0);
    canvas.style.opacity = state.opacity / 100;
    if (image) image.style.filter = `grayscale(${Math.min(1, state.opacity / 50)})`;
    frame.classList.toggle("smooth", state.smooth);
  });
  drawLegend("legend", most, paint);
}

/** A strip of the colours from 0, or from the largest loss, to `most`; `fill` as `paint`. */
function drawLegend(id, most, fill) {
  const strip = new ImageData(256, 1);
  const signed = state.show === "difference";
  for (let i = 0; i < 256; i++) fill(strip.data, 4 * i, signed ? (i - 127.5) / 127.5 : i / 255);
  byId(id).getContext("2d").putImageData(strip, 0, 0);
  byId(`${id}-low`).textContent = signed ? percent(-most, digits, true) : "0";
  byId(`${id}-high`).textContent = percent(most, digits, signed);
}

function drawRow(now, row) {
  const layer = state.layer === ALL ? "mean over layers" : `layer ${data.layers[state.layer]}`;
  const head =
    state.head === "mean"
      ? "mean over heads"
      : state.head === "max"
        ? "maximum over heads"
        : `head ${state.head}`;
  const where =
    state.layer === ALL && state.head === "max" ? ["maximum over layers and heads"] : [layer, head];
  const kind = state.token < data.prompt ? "row of" : "row that predicts";
  const show =
    state.show === "difference"
      ? `${data.variants[1].name} − ${data.variants[0].name}`
      : data.variants[state.show].name;
  const parts = [...where, ...(comparing ? [show] : [])];
  if (data.columns === "all" && state.head !== "max" && state.show !== "difference") {
    const kept = now.reduce((sum, weight) => sum + weight, 0);
    const columns = now.reduce((count, weight) => count + (weight > 0), 0);
    parts.push(
      `${Math.min(100, 100 * kept).toFixed(kept > 0.995 ? 0 : 1)} % of it is on this page (${columns} columns)`,
    );
  }
  byId("readout").replaceChildren(
    `${kind} `,
    element("b", {}, `“${nameOf(state.token)}”`),
    ` · ${parts.join(" · ")}`,
  );
  if (weights.knowsRoles) {
    const signed = state.show === "difference";
    const masses = weights.masses(signed ? 1 : state.show, state.layer, state.head, row);
    const before = signed ? weights.masses(0, state.layer, state.head, row) : null;
    showRoles(byId("roles"), data.roleNames, data.roleColours, masses, before, digits);
  }
  if (data.columns !== "none") {
    const colour = (column) => data.roleColours[data.roles[column]];
    const choose = (column) => rowOf(column) !== undefined && set({ token: column });
    showStrongest(byId("strongest"), now, {
      label: nameOf,
      colour,
      digits,
      signed: state.show === "difference",
      point,
      choose,
    });
  }
}

function drawStrips(row) {
  const options = { signed: state.show === "difference", digits };
  const { layers, heads: byHead, rows } = drawn.strips;
  const head = typeof state.head === "number" ? state.head : "mean";
  layers.draw((i) => weights.masses(state.show, i - 1, i ? head : "mean", row), state.layer + 1, options);
  byHead.draw(
    (i) => weights.masses(state.show, state.layer, i ? i - 1 : "mean", row),
    head === "mean" ? 0 : head + 1,
    options,
  );
  byHead.cells.forEach((cell, i) => (cell.hidden = i > 0 && state.layer === ALL));
  byId("heads").hidden = byId("strip-heads").hidden = state.layer === ALL;
  rows.draw(
    (i) => weights.masses(state.show, state.layer, head, rowOf(live[i])),
    live.indexOf(state.token),
    options,
  );
  drawGrid(row);
}

function drawGrid(row) {
  const role = byId("grid-role").selectedIndex;
  const value = (layer, head) => weights.masses(state.show, layer, head, row)[role];
  const solid = (pixels, at, share) => paint(pixels, at, share, 255);
  const most = drawn.grid.draw(
    value,
    solid,
    [state.layer, state.head],
    `Mass on ${data.roleNames[role]} of every head of every layer`,
  );
  drawLegend("grid-legend", most, solid);
}

/** What a column is called. */
function nameOf(column) {
  const place = placeOf.get(column);
  if (!place)
    return data.roles[column] >= 0 && data.roleNames[data.roles[column]] === "image"
      ? "image token"
      : visible(data.pieces[column]);
  const { label, columns } = data.pictures[place.picture];
  return `${label}, row ${Math.floor(place.cell / columns) + 1}, column ${(place.cell % columns) + 1}`;
}

/** Mark a column in its picture or in the text; null ends that. */
function point(column) {
  document.querySelectorAll(".mark").forEach((mark) => mark.remove());
  document.querySelectorAll(".pointed").forEach((chip) => chip.classList.remove("pointed"));
  if (column === null) return;
  const place = placeOf.get(column);
  if (!place) return drawn.chips[column]?.classList.add("pointed");
  const { rows, columns } = data.pictures[place.picture];
  const mark = element("div", { class: "mark" });
  const [x, y] = [place.cell % columns, Math.floor(place.cell / columns)];
  Object.assign(mark.style, {
    left: `${(100 * x) / columns}%`,
    top: `${(100 * y) / rows}%`,
    width: `${100 / columns}%`,
    height: `${100 / rows}%`,
  });
  drawn.pictures[place.picture].frame.append(mark);
}
