// Attention weights: decoding what codec.py encoded, and reading single rows.

const ALL = -1; // every layer

/** The bytes of a text that is base64 of gzip. */
async function unpacked(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/** The weight of every code; see codec.py for the scale. */
function weightTable(bits, floor) {
  const top = 2 ** bits - 1;
  return Float32Array.from({ length: top + 1 }, (_, code) =>
    code ? floor ** ((top - code) / (top - 1)) : 0,
  );
}

/** Sparse rows with the same columns for every variant. */
class SparseRows {
  constructor(buffer, rows, { bits, indexBytes }, table) {
    const Index = indexBytes === 2 ? Uint16Array : Uint32Array;
    const counts = new Index(buffer, 0, rows);
    this.starts = new Uint32Array(rows + 1);
    counts.forEach((count, row) => (this.starts[row + 1] = this.starts[row] + count));
    this.total = this.starts[rows];
    this.gaps = new Index(buffer, rows * indexBytes, this.total);
    this.codes = new (bits === 8 ? Uint8Array : Uint16Array)(buffer, (rows + this.total) * indexBytes);
    this.table = table;
  }

  /** Add a row to `out`, an array by column; `show` is a variant, or "difference" for second - first. */
  read(row, show, out) {
    const { codes, gaps, table, total } = this;
    const end = this.starts[row + 1];
    let column = 0;
    for (let i = this.starts[row]; i < end; i++) {
      column += gaps[i];
      if (show !== "difference") out[column] = table[codes[show * total + i]];
      // Neighbouring codes may be one weight: a difference that cannot be told from rounding is none.
      else if (Math.abs(codes[total + i] - codes[i]) > 1)
        out[column] = table[codes[total + i]] - table[codes[i]];
    }
  }
}

/** All weights and role masses of a page. */
class Weights {
  static async open(data) {
    const names = Object.keys(data.sections);
    const buffers = await Promise.all(names.map((name) => unpacked(data.sections[name])));
    return new Weights(data, Object.fromEntries(names.map((name, i) => [name, buffers[i]])));
  }

  constructor(data, buffers) {
    const { layers, heads, rows, fidelity } = data;
    this.sizes = { layers: layers.length, heads, rows: rows.length, roles: data.roleNames.length };
    const table = weightTable(fidelity.bits, fidelity.floor);
    const planes = { means: layers.length + 1, maxima: layers.length + 1, heads: layers.length * heads };
    for (const [name, count] of Object.entries(planes)) {
      this[name] = new SparseRows(buffers[name], count * rows.length, fidelity, table);
    }
    this.fixed = buffers.masses && new (fidelity.bits === 8 ? Uint8Array : Uint16Array)(buffers.masses);
    this.unit = 2 ** fidelity.bits - 1;
    this.out = new Float32Array(data.pieces.length);
  }

  get knowsRoles() {
    return Boolean(this.fixed);
  }

  /** Weights of one row by column; valid until the next call. `head` is "mean", "max" or a number. */
  row(show, layer, head, row) {
    this.out.fill(0);
    const { heads, rows } = this.sizes;
    if (typeof head === "number") this.heads.read((layer * heads + head) * rows + row, show, this.out);
    else this[head === "max" ? "maxima" : "means"].read((layer + 1) * rows + row, show, this.out);
    return this.out;
  }

  /** Mass of each role in one row: of a head, or their mean ("mean" and "max"). */
  masses(show, layer, head, row) {
    if (show === "difference") {
      const before = this.masses(0, layer, head, row);
      return this.masses(1, layer, head, row).map((mass, role) => mass - before[role]);
    }
    const { layers, heads, rows, roles } = this.sizes;
    const [firstLayer, lastLayer] = layer === ALL ? [0, layers - 1] : [layer, layer];
    const [firstHead, lastHead] = typeof head === "number" ? [head, head] : [0, heads - 1];
    const sum = new Float64Array(roles);
    for (let l = firstLayer; l <= lastLayer; l++) {
      for (let h = firstHead; h <= lastHead; h++) {
        const at = (((show * layers + l) * heads + h) * rows + row) * roles;
        for (let role = 0; role < roles; role++) sum[role] += this.fixed[at + role];
      }
    }
    const count = (lastLayer - firstLayer + 1) * (lastHead - firstHead + 1) * this.unit;
    return sum.map((value) => value / count);
  }
}
