// Building the page's elements, once: tokens, pictures, controls, keys.

function buildHeading() {
  byId("title").textContent = data.title;
  const edited = comparing
    ? `${data.variants[1].name}${data.variants[1].detail ? ` (${data.variants[1].detail})` : ""}`
    : "";
  byId("about").textContent = [data.model, edited].filter(Boolean).join(" · ");
  if (comparing && data.variants.every((variant) => variant.answer !== null)) {
    const answers = data.variants.map(({ name, answer }) => `${name} “${answer}”`).join(", ");
    byId("answers").textContent =
      `Both models are forced to this answer, so that rows can be compared. Unforced, they answer: ${answers}.`;
  }
  const { bits, relativeError, entriesPerRow, floor } = data.fidelity;
  const error = `Weights on this page are rounded to within ${(100 * relativeError).toPrecision(2)} % of themselves`;
  const left = !complete
    ? `. To keep it small, only the strongest of each row’s ${data.pieces.length} columns are here: ` +
      `${entriesPerRow.means} in means over heads, ${entriesPerRow.maxima} in maxima, ${entriesPerRow.heads} in single heads.`
    : `; those under ${(100 * floor).toFixed(4)} % are left out.`;
  const masses = weights.knowsRoles
    ? ` Masses of roles are rounded to ${bits === 8 ? "0.2" : "0.001"} points.`
    : "";
  const some = {
    all: "",
    image: " Only the weights of image tokens were recorded.",
    none: " No weights were recorded, only masses of roles.",
  }[data.columns];
  byId("fidelity").textContent = error + left + masses + some;
}

/** A class for each step of a tint, which a browser applies sooner than as many styles of their own. */
function buildTints() {
  const sheet = document.styleSheets[0];
  for (let step = 1; step <= TINTS; step++) {
    const colour = `color-mix(in srgb, var(--hot) ${(100 * step) / TINTS}%, transparent)`;
    sheet.insertRule(`.tint-${step} { background-color: ${colour} }`, sheet.cssRules.length);
  }
}

function buildTokens() {
  drawn.text = [];
  drawn.runs = [];
  const imageRole = data.roleNames.indexOf("image");
  let run = null;
  data.pieces.forEach((piece, token) => {
    const host = byId(token < data.prompt ? "prompt" : "answer");
    const place = placeOf.get(token);
    if (data.roles[token] === imageRole && imageRole >= 0) {
      if (!run || run.picture !== place?.picture) run = startRun(host, place?.picture);
      run.columns.push(token);
      run.label = runLabel(run);
      drawn.chips[token] = run.chip;
      return;
    }
    run = null;
    drawn.text.push(token);
    drawn.chips[token] = chipOf(token, piece);
    host.append(drawn.chips[token]);
  });
  for (const id of ["prompt", "answer"]) {
    byId(id).addEventListener("click", (event) => {
      const chip = event.target.closest(".token.live");
      if (chip) set({ token: Number(chip.dataset.token) });
    });
  }
  byId("answer-title").hidden = byId("answer").hidden = data.pieces.length === data.prompt;
}

function chipOf(token, piece) {
  const chip = element("span", { class: "token", id: `token-${token}`, role: "option", "data-token": token });
  const shown = piece.replaceAll("\n", "⏎\n");
  chip.textContent = shown || "∅";
  const role = data.roleNames[data.roles[token]];
  if (data.roles[token] >= 0) chip.style.setProperty("--role", data.roleColours[data.roles[token]]);
  chip.title = [role, `token ${token}`].filter(Boolean).join(", ");
  const isLive = rowOf(token) !== undefined;
  chip.className = chip.dataset.kind = isLive ? "token live" : "token";
  if (isLive) chip.setAttribute("aria-selected", "false");
  else chip.setAttribute("aria-disabled", "true");
  return chip;
}

function startRun(host, picture) {
  const chip = element("span", { class: "token image", role: "option", "aria-disabled": "true" });
  chip.style.setProperty("--role", data.roleColours[data.roleNames.indexOf("image")]);
  const run = { chip, columns: [], picture, label: "" };
  drawn.runs.push(run);
  host.append(chip);
  return run;
}

function runLabel({ picture, columns }) {
  if (picture === undefined) return `image · ${columns.length} tokens`;
  const { label, rows, columns: wide } = data.pictures[picture];
  return `${label} · ${rows} × ${wide} tokens`;
}

function buildPictures() {
  byId("main").classList.toggle("text", !images);
  byId("pictures").hidden = !mapped && !data.pictures.some(({ source }) => source);
  if (!images) byId("strips").before(byId("row"));
  document.querySelectorAll(".pictorial").forEach((control) => (control.hidden = !mapped));
  const mosaics = new Map();
  drawn.pictures = data.pictures.map((picture, number) => {
    const made = buildPicture(picture, number);
    if (isTile(picture)) {
      if (!mosaics.has(picture.image)) mosaics.set(picture.image, startMosaic(picture));
      mosaics.get(picture.image).add(made, picture);
    } else {
      made.frame.style.aspectRatio = `${picture.width ?? picture.columns} / ${picture.height ?? picture.rows}`;
      byId("figures").append(figureOf(made, `${picture.label} · ${picture.rows} × ${picture.columns}`));
    }
    return made;
  });
  const count = byId("figures").children.length;
  if (count > 1) byId("figures").style.setProperty("--figure", count > 4 ? "130px" : "200px");
}

function buildPicture(picture, number) {
  const frame = element("div", { class: "frame" });
  const image = picture.source && element("img", { src: picture.source, alt: picture.label });
  if (image) frame.append(image);
  const canvas = element("canvas", {
    width: picture.columns,
    height: picture.rows,
    role: "img",
    id: `map-${number}`,
  });
  canvas.setAttribute(
    "aria-label",
    `Attention over ${picture.label}, ${picture.rows} rows of ${picture.columns} cells`,
  );
  frame.append(canvas);
  const made = { frame, canvas, image, output: element("output") };
  canvas.addEventListener("pointermove", (event) => {
    made.output.textContent = weightUnderPointer(canvas, picture, event);
  });
  canvas.addEventListener("pointerleave", () => (made.output.textContent = ""));
  canvas.addEventListener("click", (event) => {
    const { token } = underPointer(canvas, picture, event);
    if (rowOf(token) !== undefined) set({ token }); // a record of all rows has those of cells, too
  });
  return made;
}

const figureOf = ({ frame, output }, caption) =>
  element("figure", {}, frame, element("figcaption", {}, element("span", {}, caption), output));

const isTile = ({ box }) => box && box.join() !== "0,0,1,1";

/** The tiles of one image, laid out as they lie in it. */
function startMosaic(first) {
  const box = element("div", { class: "frame mosaic" });
  const [left, top, right, bottom] = first.box;
  const aspect =
    (first.width ?? first.columns) / (right - left) / ((first.height ?? first.rows) / (bottom - top));
  box.style.aspectRatio = aspect;
  const output = element("output");
  const name =
    data.pictures.find(({ image, box: part }) => image === first.image && !isTile({ box: part }))?.label ??
    "image";
  const figure = figureOf({ frame: box, output }, "");
  byId("figures").append(figure);
  let tiles = 0;
  return {
    add(made, { box: [x0, y0, x1, y1], rows, columns }) {
      Object.assign(made.frame.style, {
        left: `${100 * x0}%`,
        top: `${100 * y0}%`,
        width: `${100 * (x1 - x0)}%`,
        height: `${100 * (y1 - y0)}%`,
      });
      made.output = output;
      box.append(made.frame);
      tiles += 1;
      figure.querySelector("figcaption span").textContent =
        `${name} · ${tiles} tiles of ${rows} × ${columns}`;
    },
  };
}

/** The row, column and token of the cell under the pointer. */
function underPointer(canvas, picture, event) {
  const box = canvas.getBoundingClientRect();
  const at = (place, size, cells) => Math.min(cells - 1, Math.max(0, Math.floor((place / size) * cells)));
  const x = at(event.clientX - box.left, box.width, picture.columns);
  const y = at(event.clientY - box.top, box.height, picture.rows);
  return { x, y, token: picture.tokens[y * picture.columns + x] };
}

function weightUnderPointer(canvas, picture, event) {
  const { x, y, token } = underPointer(canvas, picture, event);
  const weight = weights.row(state.show, state.layer, state.head, rowOf(state.token))[token];
  return `row ${y + 1}, column ${x + 1}: ${percent(weight, digits, state.show === "difference")}`;
}

function buildControls() {
  const option = (value, text) => element("option", { value }, text);
  byId("layer").append(option(ALL, "all"), ...data.layers.map((layer, i) => option(i, layer)));
  byId("head").append(...heads.map((head) => option(head, head)));
  byId("shows").append(
    ...SHOWS.map((show) => {
      const name = show === "difference" ? "Difference" : data.variants[show].name;
      return element(
        "button",
        { type: "button", role: "radio", "data-show": show, onclick: () => set({ show }) },
        name,
      );
    }),
  );
  byId("shows").hidden = !comparing;
  byId("layer").addEventListener("change", (event) => set({ layer: Number(event.target.value) }));
  byId("head").addEventListener("change", (event) => set({ head: heads[event.target.selectedIndex] }));
  byId("scale").addEventListener("change", (event) => set({ scale: event.target.value }));
  byId("opacity").addEventListener("input", (event) => set({ opacity: Number(event.target.value) }));
  byId("smooth").addEventListener("change", (event) => set({ smooth: event.target.checked }));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const [id, act] of Object.entries({
    "layer-down": "ArrowDown",
    "layer-up": "ArrowUp",
    "head-down": "[",
    "head-up": "]",
    theme: "t",
    help: "?",
    copy: "c",
  })) {
    byId(id).addEventListener("click", () => KEYS.find((key) => key.keys.includes(act)).act(act));
  }
  byId("copy").hidden = location.protocol === "about:";
}

function buildGrid() {
  const choose = (layer, head) => set({ layer, head });
  const point = (layer, head) => {
    const role = byId("grid-role").selectedIndex;
    const mass = layer === null ? null : weights.masses(state.show, layer, head, rowOf(state.token))[role];
    byId("grid-value").textContent =
      layer === null
        ? ""
        : `layer ${data.layers[layer]}, head ${head}: ${percent(mass, digits, state.show === "difference")}`;
  };
  drawn.grid = new HeadGrid(byId("grid"), data.layers, data.heads, { choose, point });
  byId("grid-role").append(...data.roleNames.map((name) => element("option", {}, name)));
  byId("grid-role").addEventListener("change", () => drawGrid(rowOf(state.token)));
}

function buildStrips() {
  const common = { colours: data.roleColours, names: data.roleNames };
  for (const id of ["strips", "roles-panel", "rows-panel"]) byId(id).hidden = !weights.knowsRoles;
  byId("strongest-panel").hidden = data.columns === "none";
  byId("roles-key").append(
    ...data.roleNames.map((name, role) => {
      const swatch = element("span", { class: "swatch" });
      swatch.style.setProperty("--role", data.roleColours[role]);
      return element("span", {}, swatch, name);
    }),
  );
  if (!weights.knowsRoles) return;
  const every = (values) => Math.max(1, Math.ceil(values.length / 16));
  const numbered = (noun, numbers) =>
    numbers.map((number, i) => ({
      value: i,
      short: i % every(numbers) ? "" : String(number),
      name: `${noun} ${number}`,
    }));
  const layers = [
    { value: ALL, short: "all", name: "all layers", style: "first" },
    ...numbered("layer", data.layers),
  ];
  const byHead = [
    { value: "mean", short: "mean", name: "mean over heads", style: "first" },
    ...numbered("head", heads.slice(2)),
  ];
  const tokens = live.map((token) => ({
    value: token,
    short: visible(data.pieces[token]).trim(),
    name: `“${nameOf(token)}”`,
    style: token === data.prompt && "apart",
  }));
  const strip = (id, items, name) =>
    new Strip(byId(id), items, {
      ...common,
      title: `strip-${id}`,
      words: name === "token",
      choose: (value) => set({ [name]: value }),
    });
  drawn.strips = {
    layers: strip("layers", layers, "layer"),
    heads: strip("heads", byHead, "head"),
    rows: strip("rows", tokens, "token"),
  };
  buildGrid();
}

// Start --------------------------------------------------------------------------------------------------

/** A long prompt begins to be of interest where rows were recorded. */
function showFirstLive() {
  const box = byId("prompt");
  const chip = drawn.chips[live[0]];
  if (chip.parentNode !== box) return;
  const distance = chip.getBoundingClientRect().top - box.getBoundingClientRect().top;
  box.scrollTop += distance - box.clientHeight / 3;
}

async function start() {
  weights = await Weights.open(data);
  buildHeading();
  buildTints();
  buildTokens();
  buildPictures();
  buildControls();
  buildStrips();
  buildKeys();
  fromFragment(location.hash);
  showFirstLive();
  set({});
  addEventListener("hashchange", () => {
    fromFragment(location.hash);
    set({});
  });
  document.documentElement.dataset.ready = "1";
}

start().catch((error) => {
  byId("title").textContent = `This page cannot be shown: ${error.message}`;
  throw error;
});
