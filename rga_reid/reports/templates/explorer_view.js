// ---------- the view ----------
const exhibit = () => data.exhibits[state.exhibit];
const stage = () => exhibit().stages[state.stage];
const matrix = () => stage().matrices[state.matrix];
const readsBoth = (shown) => shown.words.directions === "row and column";

function drawMatrix(m) {
  const [rows, keys] = m.picture.shape;
  if (!m.drawn) {
    const sorted = Float32Array.from(m.values).sort();
    const low = sorted[0], top = sorted[sorted.length - 1];
    let high = sorted[Math.floor(0.995 * (sorted.length - 1))];
    if (high - low <= 0.02 * (top - low)) high = top;
    const power = powerOf(m.values, low, top);
    if (power !== 1) high = top;
    const [a, b, colours] = scaleOf(low, high);
    const picture = paint(m.values, [rows, keys], a, b, data.colours[colours], 0, power);
    m.drawn = { picture, low: a, high: b, colours, note: high < top ? " and more" : rootNote(power) };
  }
  const canvas = $("matrix"), side = 512;
  if (canvas.width !== side) canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.clearRect(0, 0, side, side);
  context.drawImage(m.drawn.picture, 0, 0, side, side);
  bar("bar-matrix", m.drawn.low, m.drawn.high, m.drawn.colours, m.drawn.note);
  return context;
}
/** Draw lines through the row and the column of (v, u). */
function lines(m, v, u) {
  const share = (cell(v, u, m.blocks) + 0.5) / m.picture.shape[0], keyShare = (cell(v, u, m.key_blocks) + 0.5) / m.picture.shape[1];
  const context = drawMatrix(m), side = context.canvas.width, style = getComputedStyle(document.documentElement);
  context.lineWidth = 3; context.strokeStyle = style.getPropertyValue("--mark").trim();
  context.beginPath(); context.moveTo(0, share * side); context.lineTo(side, share * side); context.stroke();
  context.setLineDash([8, 6]);
  context.beginPath(); context.moveTo(keyShare * side, 0); context.lineTo(keyShare * side, side); context.stroke();
  context.setLineDash([]);
}
/** Show parts: [text], or [text, id, number] for a number that scripts can read. */
function showParts(id, parts) {
  $(id).replaceChildren(...parts.map(([text, name, value]) => {
    const span = document.createElement("span");
    span.append(...typeset(text));
    if (name) {
      const number = document.createElement("b");
      number.id = name; number.textContent = formatNumber(value); number.dataset.value = String(value);
      span.append(" ", number);
    }
    return span;
  }));
}

function showPositions() {
  const m = matrix(), place = nearest(m, state.v, state.u), node = nodeAt(m, place);
  const [v, u] = middle(node, m.grid), row = rowOf(m, place), column = columnOf(m, place);
  const square = m.size[0] === m.size[1];
  const otherKey = cell(state.ov, state.ou, m.key_grid), otherNode = cell(state.ov, state.ou, m.grid);
  const [ov, ou] = middle(otherNode, m.grid);
  const mine = overPhoto($("photo"), exhibit().photo, null);
  if (!m.whole) m.chosen.forEach((n) => { const [a, b] = middle(n, m.grid); mine.fillStyle = "#fff"; mine.fillRect(b * mine.canvas.width - 2, a * mine.canvas.height - 2, 5, 5); });
  const all = [mine];
  const [low, high] = range([...range(row), ...range(column)]), [a, b, colours] = scaleOf(low, high), power = powerOf(row, low, high);
  all.push(overPhoto($("row"), exhibit().photo, paint(row, m.key_grid, a, b, data.colours[colours], 0, power)));
  all.push(overPhoto($("column"), exhibit().photo, paint(column, m.grid, a, b, data.colours[colours], 0, power)));
  bar("bar-row", a, b, colours, rootNote(power)); bar("bar-column", a, b, colours, rootNote(power));
  $("fig-difference").hidden = !square;
  if (square) {
    const difference = row.map((value, k) => value - column[k]), [l, h] = range(difference), most = Math.max(-l, h) || 1; // keeps 0 white if all values are 0
    all.push(overPhoto($("difference"), exhibit().photo, paint(difference, m.grid, -most, most, data.colours.diverging)));
    bar("bar-difference", -most, most, "diverging");
  }
  for (const context of all) { mark(context, v, u, m.grid, false); mark(context, ov, ou, m.grid, true); }
  lines(m, v, u);
  const at = (n, grid) => `${Math.floor(n / grid[1]) + 1} down, ${(n % grid[1]) + 1} across`; // "row" and "column" refer to matrices
  const parts = [[`○ point i: ${at(node, m.grid)}${state.held ? " (held)" : ""}`], [`□ point j: ${at(otherNode, m.grid)}`],
    [`${m.symbol}[i, j], i → j:`, "value-row", row[otherKey]], [`${m.symbol}[j, i], j → i:`, "value-column", column[otherNode]],
    ["sum of the row:", "value-sum", row.reduce((sum, value) => sum + value, 0)]];
  if (m.asymmetry !== null) parts.push(["asymmetry of the matrix:", "value-asymmetry", m.asymmetry]);
  showParts("readout", parts);
  $("readout").dataset.node = node; $("readout").dataset.other = otherKey;
}

function showChannels() {
  const m = matrix();
  let place = m.whole ? Math.min(state.channel, m.size[0] - 1) : 0;
  if (!m.whole) m.chosen.forEach((node, k) => { if (Math.abs(node - state.channel) < Math.abs(m.chosen[place] - state.channel)) place = k; });
  const channel = nodeAt(m, place), row = rowOf(m, place), column = columnOf(m, place);
  $("channel-range").max = $("channel-number").max = m.whole ? m.size[0] - 1 : m.chosen.length - 1;
  $("channel-range").value = place; $("channel-number").value = channel; $("channel-number").max = m.size[0] - 1;
  overPhoto($("photo"), exhibit().photo, activation(m, channel));
  const order = Array.from(row.keys()).filter((k) => k !== channel).sort((p, q) => row[q] - row[p] || p - q);
  thumbnails("most", m, order.slice(0, 4), row, column);
  thumbnails("least", m, order.slice(-4).reverse(), row, column);
  lines(m, ...middle(channel, m.grid));
  $("head-most").textContent = `Most related channels of ${channel}`;
  $("head-least").textContent = `Least related channels of ${channel}`;
  const parts = [[`channel i: ${channel}, of 0 to ${m.size[0] - 1}`],
    [`${m.symbol}[i, ${order[0]}], its most related:`, "value-row", row[order[0]]], [`${m.symbol}[${order[0]}, i], the other way:`, "value-column", column[order[0]]],
    ["sum of the row:", "value-sum", row.reduce((sum, value) => sum + value, 0)]];
  if (m.asymmetry !== null) parts.push(["asymmetry of the matrix:", "value-asymmetry", m.asymmetry]);
  showParts("readout", parts);
  $("readout").dataset.node = channel; $("readout").dataset.other = order[0];
}
function activation(m, channel) {
  const place = m.map_channels.indexOf(channel);
  if (place < 0) return null;
  const [, h, w] = m.maps.shape;
  return paint(m.pixels, [h, w], 0, 255, data.colours.sequential, place * h * w);
}
function thumbnails(id, m, channels, row, column) {
  const holder = $(id);
  while (holder.children.length < channels.length) {
    const figure = document.createElement("figure");
    figure.append(document.createElement("canvas"), document.createElement("figcaption"));
    holder.append(figure);
  }
  channels.forEach((channel, k) => {
    overPhoto(holder.children[k].firstChild, exhibit().photo, activation(m, channel));
    describe(holder.children[k].firstChild, `activation of channel ${channel}`);
    holder.children[k].lastChild.textContent = `channel ${channel}: i → it ${formatNumber(row[channel])}, it → i ${formatNumber(column[channel])}`;
  });
}

/** Name a picture for screen readers. */
function describe(canvas, words) {
  canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", words);
}

/** Redraw what a hover changes: pictures and numbers of the chosen point or channel. */
function show() {
  if (!stage().matrices.length) return overPhoto($("photo"), exhibit().photo, null);
  if (!matrix().ready) return; // still being unpacked: choose() shows it afterwards
  if (matrix().kind === "channels") showChannels(); else showPositions();
  showSame();
}
function showSame() {
  for (const figure of $("same-point").children) {
    const { matrix: m, direction, photo } = figure.shown;
    if (!m.ready) continue;
    const place = nearest(m, state.v, state.u), values = direction === "row" ? rowOf(m, place) : columnOf(m, place);
    const grid = direction === "row" ? m.key_grid : m.grid, [low, high] = range(values), [a, b, colours] = scaleOf(low, high);
    const power = powerOf(values, a, b);
    const context = overPhoto(figure.firstChild, photo, paint(values, grid, a, b, data.colours[colours], 0, power));
    mark(context, ...middle(nodeAt(m, place), m.grid), m.grid, false);
    figure.numbers.textContent = `${formatNumber(a, 3)} to ${formatNumber(b, 3)}${rootNote(power)}`;
  }
}

// ---------- choice of photo, module, stage and matrix ----------
let drawn = Promise.resolve(); // the applied attention of the chosen photo
async function choose() {
  const shown = exhibit(), words = shown.words, level = stage(), has = level.matrices.length > 0;
  state.matrix = Math.min(state.matrix, Math.max(0, level.matrices.length - 1));
  options("photos", data.photos.map((photo) => photo.name), state.photo, (k) => { pickPhoto(k); });
  const here = data.exhibits.map((_, k) => k).filter((k) => data.exhibits[k].photo === state.photo);
  options("exhibits", here.map((k) => data.exhibits[k].label), here.indexOf(state.exhibit), (k) => { pickExhibit(here[k]); });
  options("stages", shown.stages.map((s) => `${s.stage} (${s.grid[0]}×${s.grid[1]}, ${s.channels} channels)`), state.stage, (k) => { state.stage = k; choose(); });
  options("matrices", level.matrices.map((m) => `${m.symbol}: ${m.name.replaceAll("_", " ")}`), state.matrix, (k) => { state.matrix = k; choose(); }, typeset);
  $("photos").hidden = data.photos.length < 2;
  $("matrices").hidden = level.matrices.length < 2;
  $("idea").textContent = `${words.title}. ${words.idea}`;
  const channels = has && matrix().kind === "channels";
  for (const id of ["fig-row", "fig-column", "fig-difference"]) $(id).hidden = !has || channels;
  $("fig-matrix").hidden = $("readout").hidden = !has;
  $("no-matrix").hidden = has;
  $("look-help").hidden = !has;
  if (!has) $("cap-photo").textContent = "";
  $("channels").hidden = $("channel-picker").hidden = !channels;
  flow(); same();
  if (has) {
    const m = matrix();
    await ready(m);
    if (m !== matrix()) return; // the choice has changed
    captions(shown, m);
  }
  show();
  Promise.all([drawn, ...[...$("same-point").children].map((figure) => ready(figure.shown.matrix))]).then(() => { showSame(); document.body.dataset.ready = "yes"; });
}
function captions(shown, m) {
  const { words } = shown, both = readsBoth(shown);
  $("head-row").textContent = both ? "Relations of this point to all" : "What this point takes from";
  $("head-column").textContent = both ? "Relations of all to this point" : "Which points take from it";
  const heading = document.createElement("span"); // one flex item
  heading.append(...typeset(`${m.symbol}: ${m.meaning}`));
  $("head-matrix").replaceChildren(heading);
  $("cap-photo").textContent = m.kind === "channels" ? "Activation map of the chosen channel." :
    m.whole ? "○ is the chosen point i, □ a second point j. Move over the other pictures to place j." :
    `A matrix of ${m.size[0]} × ${m.size[1]} nodes is too large for this page. Rows are exact at the ${m.chosen.length} white points; ○ jumps to the nearest.`;
  $("cap-row").textContent = words.row_caption;
  $("cap-column").textContent = words.column_caption;
  $("cap-difference").textContent = both ? "Orange: the relation of i to a place exceeds that of the place to i. Purple: the reverse. White: equal. RGA uses both." :
    `Orange: i takes more from a place than it gives. Purple: the reverse. ${words.directions === "row only" ? "This module uses the row alone." : ""}`;
  const reach = m.reach < 0.9999 ? ` On average ${formatNumber(100 * m.reach, 3)} % of a row is not 0.` : m.name === "both_passes" ? " No entry is 0: together the passes reach every place." : "";
  const pooled = m.whole ? "All values are shown." : `Pooled: each dot is the mean over a block of ${m.kind === "channels" ? "neighbouring channels" : "positions"}, ${m.picture.shape.join(" × ")} dots for ${m.size.join(" × ")} values.`;
  $("cap-matrix").replaceChildren(...typeset(`${m.formula}. Row i (line): ${both ? "relation of i to each j" : "how much i takes from each j"}; column i (dashed): the other direction. ${pooled}${reach}`));
  const exact = m.whole ? "" : ` Exact rows for the ${m.chosen.length} most active channels of ${m.size[0]}.`;
  $("cap-channels").textContent = (both ? "“i → it” is row i, the relation of the chosen channel to the other; “it → i” is column i, the other direction. RGA computes the weight of each channel from both." :
    shown.mechanism === "cam" || shown.mechanism === "dual" ? "“i → it” is how much the chosen channel takes from the other: weights that sum to 1. The minus sign favours channels that are active in other places. Only rows are used." :
    "“i → it” is row i of the matrix, “it → i” column i.") + exact;
}
function options(id, labels, chosen, pick, words = (text) => [text]) {
  const holder = $(id), focused = holder.contains(document.activeElement);
  while (holder.children.length > 1) holder.lastChild.remove();
  labels.forEach((text, k) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "radio", name: id, value: String(k), checked: k === chosen });
    input.addEventListener("change", () => pick(k));
    label.append(input, ...words(text));
    holder.append(label);
    if (focused && k === chosen) input.focus();
  });
}
function pickExhibit(k) {
  const level = stage().stage, name = stage().matrices[state.matrix]?.kind;
  state.exhibit = k;
  const found = exhibit().stages.findIndex((s) => s.stage === level);
  state.stage = Math.max(0, found);
  state.matrix = Math.max(0, stage().matrices.findIndex((m) => m.kind === name));
  choose();
}
function pickPhoto(k) {
  const { label } = exhibit();
  state.photo = k;
  drawn = applied();
  const alike = data.exhibits.findIndex((e) => e.photo === k && e.label === label);
  pickExhibit(alike >= 0 ? alike : data.exhibits.findIndex((e) => e.photo === k));
}
function flow() {
  const level = stage(), shown = exhibit(), places = new Map(level.matrices.map((m, k) => [m.symbol, k])), columns = [];
  $("flow-name").textContent = `${shown.words.title}, after stage ${level.stage}`;
  for (const step of level.flow) {
    const column = (columns[step.level] ??= document.createElement("li")), box = document.createElement("div");
    const part = (name, ...nodes) => {
      const span = document.createElement("span");
      span.className = name; span.append(...nodes);
      box.append(span);
      return span;
    };
    box.className = `box is-${step.kind}`;
    part("shape", `(${step.shape.join(", ")})`); part("symbol", ...typeset(step.symbol));
    part("formula", ...typeset(step.formula || "output of the previous layer")); part("meaning", step.meaning);
    if (step.inputs.length) {
      const from = part("from", "from ");
      step.inputs.forEach((name, k) => {
        const source = document.createElement("b");
        source.append(...typeset(name));
        from.append(k ? ", " : "", source);
      });
    }
    if (places.has(step.symbol)) {
      const button = document.createElement("button");
      button.type = "button"; button.textContent = "show it";
      button.addEventListener("click", () => { state.matrix = places.get(step.symbol); choose(); $("look").scrollIntoView({ behavior: "smooth" }); });
      box.append(button);
    }
    column.append(box);
  }
  $("flow").replaceChildren(...columns);
}
function same() {
  const level = stage().stage, figures = [];
  for (const shown of data.exhibits) {
    if (shown.photo !== state.photo) continue;
    for (const m of shown.stages.find((s) => s.stage === level)?.matrices ?? []) {
      if (m.kind !== "positions") continue;
      for (const direction of readsBoth(shown) ? ["row", "column"] : ["row"]) {
        const figure = document.createElement("figure"), caption = document.createElement("figcaption"), name = document.createElement("b"), values = document.createElement("span");
        name.textContent = shown.label;
        caption.append(name, document.createElement("br"), ...typeset(`${direction} of ${m.symbol}: `), values);
        figure.append(document.createElement("canvas"), caption);
        describe(figure.firstChild, `${direction} of ${m.symbol} over the photo, ${shown.label}`);
        Object.assign(figure, { shown: { matrix: m, direction, photo: shown.photo }, numbers: values });
        figures.push(figure);
      }
    }
  }
  $("same-point").replaceChildren(...figures);
  $("same").hidden = !figures.length;
}
/** Whether two numbers are equal to four digits: colours between them would show rounding errors. */
const even = (low, high) => formatNumber(low) === formatNumber(high);
async function applied() {
  const { photo } = state;
  const table = document.createElement("tbody"), numbersOf = [...new Set(data.exhibits.flatMap((e) => e.stages.map((s) => s.stage)))].sort();
  $("applied").style.setProperty("--stages", numbersOf.length);
  const head = table.insertRow();
  for (const text of ["Module", ...numbersOf.map((number) => `after stage ${number}`)]) {
    const name = document.createElement("th");
    name.scope = "col"; name.textContent = text;
    head.append(name);
  }
  for (const shown of data.exhibits.filter((e) => e.photo === photo)) {
    const line = table.insertRow();
    const name = document.createElement("th");
    name.scope = "row"; name.textContent = shown.label;
    line.append(name);
    for (const number of numbersOf) {
      const level = shown.stages.find((s) => s.stage === number), place = line.insertCell();
      if (!level) { place.textContent = "none"; continue; }
      const say = (text) => { const small = document.createElement("small"); small.textContent = text; place.append(small); };
      const weight = await numbers(level.attention), change = await numbers(level.change), channel = await numbers(level.channel_attention);
      const map = weight ?? (channel ? null : change), [low, high] = range(map ?? []);
      if (map && !weight && high === 0) say(`no change: the module is the identity here${level.matrices.length ? ", as γ or W is initialised to 0" : ""}`);
      else if (map && even(low, high)) say(weight ? `every place has the weight ${formatNumber(low)}` : `every place changes by ${formatNumber(100 * low, 3)} %`);
      else if (map) {
        const canvas = document.createElement("canvas");
        describe(canvas, `${weight ? "weights" : "change"} over the photo, ${shown.label}, after stage ${number}`);
        overPhoto(canvas, shown.photo, paint(map, level.grid, weight ? low : 0, high, data.colours.sequential));
        place.append(canvas);
        say(weight ? `weights ${formatNumber(low)} to ${formatNumber(high)}` : `change ${formatNumber(100 * low, 3)} to ${formatNumber(100 * high, 3)} %`);
      }
      if (channel && even(...range(channel))) say(`every channel has the weight ${formatNumber(channel[0])}`);
      else if (channel) {
        const [low, high] = range(channel), strip = document.createElement("canvas");
        const ordered = Float32Array.from(channel).sort();
        describe(strip, `weights of the channels, sorted, ${shown.label}, after stage ${number}`);
        strip.className = "strip"; strip.width = ordered.length; strip.height = 1;
        strip.getContext("2d").drawImage(paint(ordered, [1, ordered.length], low, high, data.colours.sequential), 0, 0);
        place.append(strip);
        say(`channels, sorted: ${formatNumber(low)} to ${formatNumber(high)}`);
      }
    }
  }
  if (photo === state.photo) $("applied").replaceChildren(table); // unless the choice has changed
}

// ---------- pointer, touch, keyboard ----------
const inside = (event) => {
  const box = event.currentTarget.getBoundingClientRect(), clip = (value) => Math.min(0.99999, Math.max(0, value));
  return [clip((event.clientY - box.top) / box.height), clip((event.clientX - box.left) / box.width)];
};
let asked = false;
const soon = () => { if (!asked) { asked = true; requestAnimationFrame(() => { asked = false; timed(); }); } };
function timed() {
  const start = performance.now();
  show();
  document.body.dataset.answer = String(performance.now() - start);
}
const positions = () => stage().matrices.length && matrix().ready && matrix().kind === "positions";
$("photo").addEventListener("pointermove", (event) => {
  if (!positions() || state.held || event.pointerType === "touch") return;
  [state.v, state.u] = inside(event); soon();
});
$("photo").addEventListener("click", (event) => {
  if (!positions()) return;
  const [v, u] = inside(event), m = matrix(), again = nearest(m, v, u) === nearest(m, state.v, state.u);
  state.held = !(state.held && again);
  [state.v, state.u] = [v, u]; soon();
});
for (const id of ["row", "column", "difference"]) {
  for (const kind of ["pointermove", "pointerdown"]) {
    $(id).addEventListener(kind, (event) => {
      if (!positions() || (kind === "pointermove" && event.pointerType === "touch")) return;
      [state.ov, state.ou] = inside(event); soon();
    });
  }
}
for (const kind of ["pointermove", "pointerdown"]) {
  $("matrix").addEventListener(kind, (event) => {
    if (!matrix()?.ready || (kind === "pointermove" && event.pointerType === "touch")) return;
    const [share, keyShare] = inside(event), m = matrix(), [rows, keys] = m.picture.shape, place = middle(Math.floor(share * rows), m.blocks);
    if (m.kind === "channels") { if (kind === "pointerdown") state.channel = cell(...place, m.grid); else return; }
    else {
      if (!state.held) [state.v, state.u] = place;
      [state.ov, state.ou] = middle(Math.floor(keyShare * keys), m.key_blocks);
    }
    soon();
  });
}
$("photo").addEventListener("keydown", (event) => {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!positions() || (!steps && event.key !== "Enter" && event.key !== " ")) return;
  event.preventDefault();
  const m = matrix(), clip = (value) => Math.min(0.99999, Math.max(0, value));
  if (!steps) state.held = !state.held;
  else if (event.shiftKey) {
    const [v, u] = middle(cell(state.ov, state.ou, m.grid), m.grid);
    [state.ov, state.ou] = [clip(v + steps[0] / m.grid[0]), clip(u + steps[1] / m.grid[1])];
  } else {
    const [v, u] = middle(nodeAt(m, nearest(m, state.v, state.u)), m.grid), grid = m.whole ? m.grid : chosenGrid(m);
    [state.v, state.u] = [clip(v + steps[0] / grid[0]), clip(u + steps[1] / grid[1])];
  }
  soon();
});
function chosenGrid(m) {
  const across = new Set(m.chosen.map((node) => node % m.grid[1])).size;
  return [m.chosen.length / across, across];
}
$("channel-range").addEventListener("input", () => { const m = matrix(); state.channel = nodeAt(m, Number($("channel-range").value)); soon(); });
$("channel-number").addEventListener("change", () => { state.channel = Math.max(0, Math.round(Number($("channel-number").value) || 0)); soon(); });

Promise.all(data.photos.map(loadPhoto)).then((loaded) => {
  photos.push(...loaded);
  const whole = exhibit().stages.map((s, k) => [k, s.matrices.every((m) => m.whole || m.kind === "channels")]).filter(([, all]) => all);
  state.stage = whole.length ? whole[whole.length - 1][0] : exhibit().stages.length - 1;
  drawn = applied();
  return choose();
});
