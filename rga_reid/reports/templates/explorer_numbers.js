document.body.dataset.ready = "no"; // until everything is drawn
const state = { photo: 0, exhibit: 0, stage: 0, matrix: 0, v: 0.36, u: 0.5, ov: 0.8, ou: 0.5, channel: null, held: false, kind: "positions", open: new Set() };
const PER_PIXEL = 2; // canvas pixels for one of the photo

// ---------- numbers: half precision in two byte planes, deflated ----------
const HALVES = new Float32Array(65536);
for (let bits = 0; bits < 65536; bits++) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  HALVES[bits] = sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
}
const inflated = new Map();
function inflate(blob) {
  if (!inflated.has(blob)) {
    const bytes = Uint8Array.from(atob(data.blobs[blob]), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    inflated.set(blob, new Response(stream).arrayBuffer().then((buffer) => new Uint8Array(buffer)));
  }
  return inflated.get(blob);
}
async function numbers(reference) {
  if (!reference) return null;
  if (!reference.values) {
    const bytes = await inflate(reference.blob), n = bytes.length / 2;
    if (reference.exact) return (reference.values = new Float32Array(bytes.slice().buffer));
    const values = new Float32Array(n);
    for (let k = 0; k < n; k++) values[k] = HALVES[(bytes[k] << 8) | bytes[k + n]] * reference.scale;
    reference.values = values;
  }
  return reference.values;
}
const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
/** Format a number to three digits: 0.123, 1234, 1.23·10⁻⁵, −3.20. */
function formatNumber(value) {
  if (value === 0) return "0";
  const size = Math.abs(value), sign = value < 0 ? "−" : "";
  if (size < 1e4 && size >= 1e-3) {
    const plain = size.toPrecision(3); // has an exponent if the integer part has more digits
    return sign + (plain.includes("e") ? size.toFixed(0) : plain);
  }
  const [digit, power] = size.toExponential(2).split("e");
  return `${sign}${digit}·10${[...power.replace("+", "")].map((letter) => RAISED[letter]).join("")}`;
}
const range = (values) => {
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  return [low, high];
};

// ---------- a relation matrix: complete, or exact at chosen nodes ----------
async function ready(matrix) {
  if (matrix.ready) return matrix;
  const [picture, rows, columns] = await Promise.all([numbers(matrix.picture), numbers(matrix.rows), numbers(matrix.columns)]);
  if (matrix.maps) matrix.pixels = await inflate(matrix.maps.blob);
  const calculation = matrix.calculation;
  if (calculation) for (const name of ["lefts", "rights", "logsumexp"]) await numbers(calculation[name]);
  Object.assign(matrix, { values: picture, exactRows: rows, exactColumns: columns, ready: true });
  return matrix;
}
const cell = (v, u, grid) => Math.min(grid[0] - 1, Math.floor(v * grid[0])) * grid[1] + Math.min(grid[1] - 1, Math.floor(u * grid[1]));
const middle = (node, grid) => [(Math.floor(node / grid[1]) + 0.5) / grid[0], ((node % grid[1]) + 0.5) / grid[1]];
/** Index of the node shown for (v, u): the node itself, or the nearest chosen one. */
function nearest(matrix, v, u) {
  if (matrix.whole) return cell(v, u, matrix.grid);
  let best = 0, least = Infinity;
  matrix.chosen.forEach((node, place) => {
    const [nv, nu] = middle(node, matrix.grid), d = ((nv - v) * matrix.grid[0]) ** 2 + ((nu - u) * matrix.grid[1]) ** 2;
    if (d < least) { least = d; best = place; }
  });
  return best;
}
const nodeAt = (matrix, place) => (matrix.whole ? place : matrix.chosen[place]);
function rowOf(matrix, place) {
  const k = matrix.size[1];
  return (matrix.whole ? matrix.values : matrix.exactRows).subarray(place * k, (place + 1) * k);
}
function columnOf(matrix, place) {
  const [r, k] = matrix.size;
  if (!matrix.whole) return matrix.exactColumns.subarray(place * r, (place + 1) * r);
  const key = matrix.kind === "channels" ? place : cell(...middle(place, matrix.grid), matrix.key_grid);
  const column = new Float32Array(r);
  for (let i = 0; i < r; i++) column[i] = matrix.values[i * k + key];
  return column;
}

// ---------- drawing ----------
const photos = [];
function loadPhoto(photo) {
  return new Promise((done) => {
    const image = new Image();
    image.onload = () => {
      const grey = document.createElement("canvas");
      grey.width = photo.size[1]; grey.height = photo.size[0];
      const context = grey.getContext("2d");
      context.drawImage(image, 0, 0);
      const pixels = context.getImageData(0, 0, grey.width, grey.height);
      for (let k = 0; k < pixels.data.length; k += 4) {
        const light = 0.3 * pixels.data[k] + 0.59 * pixels.data[k + 1] + 0.11 * pixels.data[k + 2];
        pixels.data[k] = pixels.data[k + 1] = pixels.data[k + 2] = light;
      }
      context.putImageData(pixels, 0, 0);
      done({ image, grey });
    };
    image.src = photo.uri;
  });
}
/** Values as colours. A power below 1 resolves small values; over a photo, it leaves 0 transparent. */
function paint(values, grid, low, high, colours, start = 0, power = 1, over = false) {
  const canvas = document.createElement("canvas");
  canvas.width = grid[1]; canvas.height = grid[0];
  const context = canvas.getContext("2d"), pixels = context.createImageData(grid[1], grid[0]);
  const factor = high > low ? 255 / (high - low) : 0;
  for (let k = 0; k < grid[0] * grid[1]; k++) {
    let level = (values[start + k] - low) * factor;
    if (power !== 1) level = 255 * (Math.max(0, level) / 255) ** power;
    const colour = colours[Math.max(0, Math.min(255, Math.round(level)))];
    pixels.data.set([colour[0], colour[1], colour[2], over && power !== 1 && values[start + k] === 0 ? 0 : 255], 4 * k);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}
function overPhoto(canvas, photo, picture) {
  const { image, grey } = photos[photo], [height, width] = data.photos[photo].size;
  if (canvas.width !== width * PER_PIXEL || canvas.height !== height * PER_PIXEL) {
    canvas.width = width * PER_PIXEL; canvas.height = height * PER_PIXEL;
  }
  const context = canvas.getContext("2d");
  context.globalAlpha = 1;
  context.imageSmoothingEnabled = true;
  context.drawImage(picture ? grey : image, 0, 0, canvas.width, canvas.height);
  if (picture) {
    context.globalAlpha = 0.74;
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
  }
  return context;
}
/** Colour of a CSS variable under the chosen theme, in a form that a canvas takes. */
function colourOf(name) {
  const key = `${name} ${document.documentElement.dataset.theme}`;
  if (!resolved.has(key)) {
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    resolved.set(key, getComputedStyle(probe).color);
    probe.remove();
  }
  return resolved.get(key);
}
const resolved = new Map();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { resolved.clear(); themeChanged(); });
function mark(context, v, u, grid, other) {
  const { width, height } = context.canvas, h = Math.max(height / grid[0], 10), w = Math.max(width / grid[1], 10);
  for (const [colour, thick] of [["#fff", 7], [colourOf(other ? "--other" : "--mark"), 4]]) {
    context.strokeStyle = colour; context.lineWidth = thick;
    context.beginPath();
    if (other) context.rect(u * width - w / 2, v * height - h / 2, w, h);
    else context.ellipse(u * width, v * height, Math.max(w / 2, 8), Math.max(h / 2, 8), 0, 0, 7);
    context.stroke();
  }
}
function bar(id, low, high, colours, note = "") {
  const holder = $(id);
  if (!holder.firstChild) {
    for (const tag of ["span", "canvas", "span"]) holder.append(document.createElement(tag));
    holder.children[1].width = 128; holder.children[1].height = 1;
    holder.children[1].setAttribute("aria-hidden", "true");
  }
  holder.children[0].textContent = formatNumber(low);
  holder.children[2].textContent = formatNumber(high) + note;
  if (holder.dataset.colours !== colours) {
    holder.children[1].getContext("2d").drawImage(paint(Float32Array.from({ length: 128 }, (_, k) => k), [1, 128], 0, 127, data.colours[colours]), 0, 0);
    holder.dataset.colours = colours;
  }
}
/** Exponent of the colour scale: 1/3 if a few values exceed the rest by far, as in a sharp softmax. */
function powerOf(values, low, high) {
  if (isSigned(low, high) || !(high > 0)) return 1;
  let sum = 0;
  for (const value of values) sum += value;
  return sum / values.length < 0.05 * high ? 1 / 3 : 1;
}
const rootNote = (power) => (power === 1 ? "" : " ∛");
/** Whether some values are negative by more than the rounding of a number that is at least 0, such as a square. */
const isSigned = (low, high) => low < -1e-6 * Math.abs(high);
const scaleOf = (low, high) => (isSigned(low, high) ? [-Math.max(-low, high), Math.max(-low, high), "diverging"] : [low < 0 ? 0 : low, high, "sequential"]);

