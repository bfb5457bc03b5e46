// ---------- data flow: a box per tensor, which opens to show it and to compute an entry ----------
const MOST_TERMS = 12; // products shown one by one

function flow() {
  const level = stage(), shown = exhibit(), places = new Map(level.matrices.map((m, k) => [m.symbol, k])), columns = [];
  set("flow-name", t("flow_of", { name: wordsOf(shown).title, n: level.stage }));
  for (const step of level.flow) {
    const column = (columns[step.level] ??= document.createElement("li")), box = document.createElement("div");
    const part = (name, ...nodes) => {
      const span = document.createElement("span");
      span.className = name; span.append(...nodes);
      box.append(span);
      return span;
    };
    const button = (text, action) => {
      const made = document.createElement("button");
      made.type = "button"; made.textContent = text;
      made.addEventListener("click", action);
      box.append(made);
      return made;
    };
    box.className = `box is-${step.kind}`; box.dataset.symbol = step.symbol; box.step = step;
    part("shape", `(${step.shape.join(", ")})`); part("symbol", ...typeset(step.symbol));
    part("formula", ...typeset(step.formula ? formulaOf(step.formula) : t("previous_layer"))); part("meaning", meaningOf(step.meaning));
    if (step.inputs.length) {
      const from = part("from", t("from"));
      step.inputs.forEach((name, k) => {
        const source = document.createElement("b");
        source.append(...typeset(name));
        from.append(k ? t("comma") : "", source);
      });
    }
    if (places.has(step.symbol)) button(t("show_it"), () => { chooseMatrix(places.get(step.symbol)); $("look").scrollIntoView({ behavior: "smooth" }); });
    if (step.picture) {
      const toggle = button("", () => { openStep(step.symbol, !state.open.has(step.symbol)); });
      toggle.className = "toggle";
      const opened = document.createElement("div");
      opened.className = "opened panel"; opened.hidden = true;
      box.append(opened);
    }
    column.append(box);
  }
  $("flow").replaceChildren(...columns);
  for (const box of boxes()) if (state.open.has(box.dataset.symbol)) fillStep(box).then(showSteps);
  markSteps();
}
const boxes = () => [...$("flow").querySelectorAll(".box")];
async function openStep(symbol, open) {
  if (open) state.open.add(symbol); else state.open.delete(symbol);
  const box = boxes().find((one) => one.dataset.symbol === symbol);
  if (box && open) await fillStep(box);
  markSteps(); showSteps(); keepState();
}
/** Mark open boxes and the inputs of these. */
function markSteps() {
  const inputs = new Set(boxes().filter((box) => state.open.has(box.dataset.symbol)).flatMap((box) => box.step.inputs));
  for (const box of boxes()) {
    const open = state.open.has(box.dataset.symbol), toggle = box.querySelector(".toggle");
    box.classList.toggle("is-open", open); box.classList.toggle("is-input", inputs.has(box.dataset.symbol));
    if (!toggle) continue;
    toggle.textContent = t(open ? "close_step" : "open_step");
    toggle.setAttribute("aria-expanded", String(open));
    box.querySelector(".opened").hidden = !open;
  }
}
async function fillStep(box) {
  const { step } = box, holder = box.querySelector(".opened"), canvas = document.createElement("canvas"), words = document.createElement("small");
  const values = await numbers(step.picture), [low, high] = range(values);
  holder.replaceChildren(canvas, words);
  describe(canvas, t("step_of", { symbol: step.symbol }));
  addSave(holder, () => t("step_of", { symbol: step.symbol }));
  const [a, b, colours] = scaleOf(low, high), power = powerOf(values, a, b), shape = step.picture.shape;
  box.shown = { values, shape, words, canvas };
  if (step.picture.kind === "map") {
    box.shown.picture = paint(values, shape, a, b, data.colours[colours], 0, power, true);
    canvas.className = "tap";
    attach(canvas, false);
  } else {
    const grid = step.picture.kind === "strip" ? [1, shape[0]] : shape, picture = paint(values, grid, a, b, data.colours[colours], 0, power);
    canvas.width = grid[1]; canvas.height = grid[0];
    canvas.getContext("2d").drawImage(picture, 0, 0);
    canvas.classList.toggle("strip", step.picture.kind === "strip");
    const count = step.picture.kind === "strip" ? shape[0] : step.shape[1];
    const pooled = step.picture.kind === "matrix" && shape[0] < count ? "_pooled" : "";
    words.textContent = t(`step_${step.picture.kind}${pooled}`, { count, dots: shape[0], low: formatNumber(low), high: formatNumber(high) });
  }
  const m = matrixOf(step);
  if (m) {
    const calc = document.createElement("div");
    calc.className = "calc";
    holder.append(calc);
    await ready(m);
  } else if (step.kind === "matrix") {
    const none = document.createElement("small");
    none.textContent = t("calc_none");
    holder.append(none);
  }
}
/** The matrix whose entries, or whose products, a step has. */
const matrixOf = (step) => stage().matrices.find((m) => m.calculation && [m.symbol, m.calculation.step].includes(step.symbol));

/** Redraw what the chosen point changes in open boxes. */
function showSteps() {
  for (const box of boxes()) {
    if (!box.shown || !state.open.has(box.dataset.symbol)) continue;
    const { values, shape, words, canvas, picture } = box.shown, m = matrixOf(box.step);
    if (picture) {
      const node = cell(state.v, state.u, shape), [low, high] = range(values);
      mark(overPhoto(canvas, exhibit().photo, picture), ...middle(node, shape), shape, false);
      words.textContent = t(box.step.shape[1] === 1 ? "step_map_one" : "step_map", { low: formatNumber(low), high: formatNumber(high), value: formatNumber(values[node]) });
    }
    if (m?.ready) showCalculation(box.querySelector(".calc"), m, box.step);
  }
}

/** Nearest node to (v, u) among those with kept vectors, as [index, node]; among all nodes without these. */
function keptNode(kept, v, u, grid) {
  if (!kept) { const node = cell(v, u, grid); return [node, node]; }
  let best = 0, least = Infinity;
  kept.forEach((node, place) => {
    const [nv, nu] = middle(node, grid), distance = ((nv - v) * grid[0]) ** 2 + ((nu - u) * grid[1]) ** 2;
    if (distance < least) { least = distance; best = place; }
  });
  return [best, kept[best]];
}
/** Index of a node among those with kept vectors, which are all without a list; -1 if it is not among them. */
const keptPlace = (kept, node) => (kept ? kept.indexOf(node) : node);
/** The entry that the other pictures show, and the one of which both vectors are kept: the same if possible. */
function keptEntry(m) {
  const { nodes, keys } = m.calculation;
  if (m.kind === "positions") {
    const i = nodeAt(m, nearest(m, state.v, state.u)), j = cell(state.ov, state.ou, m.key_grid);
    return { wanted: [i, j], left: keptNode(nodes, ...middle(i, m.grid), m.grid), right: keptNode(keys, ...middle(j, m.key_grid), m.key_grid) };
  }
  const i = matrix() === m ? readChannels().channel : mainChannel(m), most = (n) => related(m, n)[0], wanted = [i, most(i)];
  const [p, q] = keptPlace(nodes, i) >= 0 && keptPlace(keys, wanted[1]) >= 0 ? wanted : [mainChannel(m), most(mainChannel(m))];
  return { wanted, left: [keptPlace(nodes, p), p], right: [keptPlace(keys, q), q] };
}
/** The entry that the box computes, with each product. */
function calculate(m) {
  const { wanted, left: [left, i], right: [right, j] } = keptEntry(m), other = i !== wanted[0] || j !== wanted[1];
  return { i, j, other, kept: m.calculation.nodes?.length, ...computeEntry(m, left, i, right, j) };
}
/** One entry from its two vectors, in double precision. */
function computeEntry(m, left, i, right, j) {
  const { form, lefts, rights, logsumexp } = m.calculation, features = lefts.shape[1];
  const terms = Array.from({ length: features }, (_, e) => {
    const a = lefts.values[left * features + e], b = rights.values[right * features + e];
    return [e, a, b, a * b];
  });
  const dot = terms.reduce((total, [, , , product]) => total + product, 0), log = logsumexp.values[i];
  const [, across] = m.grid, onCross = i % across === j % across || Math.floor(i / across) === Math.floor(j / across);
  const outside = m.name.startsWith("pass_") && !onCross; // in criss-cross attention only a row and a column count
  const value = { product: dot, mean: dot / m.size[1], softmax: outside ? 0 : Math.exp(dot - log), softmin: Math.exp(-dot - log) }[form];
  return { terms, dot, log, value, outside };
}
/** An entry as exactly as the page can tell: computed if both vectors are kept, otherwise as stored in half precision. */
function entryOf(m, i, j, stored) {
  if (!m.calculation) return stored;
  const { nodes, keys } = m.calculation, left = keptPlace(nodes, i), right = keptPlace(keys, j);
  return left < 0 || right < 0 ? stored : computeEntry(m, left, i, right, j).value;
}
/** How to write numbers so that their difference has three digits. */
function showDifference(difference) {
  const digits = difference ? Math.min(8, 2 - Math.floor(Math.log10(Math.abs(difference)))) : 0;
  return digits > 2 ? (value) => value.toFixed(digits).replace("-", "−") : formatNumber;
}
/** A number that follows a minus sign. */
const bracket = (value, show = formatNumber) => (value < 0 ? `(${show(value)})` : show(value));
function showCalculation(holder, m, step) {
  const { i, j, terms, dot, log, value, outside, other, kept } = calculate(m), { form, left, right } = m.calculation;
  if (holder.dataset.entry === `${i},${j},${other},${settings.lang}`) return;
  Object.assign(holder.dataset, { entry: `${i},${j},${other},${settings.lang}`, i, j, dot, value });
  clearInterval(holder.playing);
  const line = (text) => { const p = document.createElement("p"); p.append(...typeset(text)); return p; };
  const where = (node, grid) => (m.kind === "channels" ? String(node) : `(${Math.floor(node / grid[1]) + 1}, ${(node % grid[1]) + 1})`);
  const entry = { i: where(i, m.grid), j: where(j, m.key_grid), count: kept };
  const parts = [line(`**${t("calc_title")}**`), line(t(other ? `calc_other_${m.kind}` : "calc_nodes", entry))];
  const table = document.createElement("tbody"), box = document.createElement("table");
  const ofPositions = m.kind === "channels" && terms.length === stage().grid[0] * stage().grid[1]; // of CAM
  headings(table, [t(ofPositions ? "calc_position" : "calc_feature"), left, right, t("calc_product"), t("calc_total")]);
  // all products, or the largest ones in their order
  const largest = new Set([...terms].sort((p, q) => Math.abs(q[3]) - Math.abs(p[3])).slice(0, terms.length > MOST_TERMS ? MOST_TERMS - 1 : MOST_TERMS).map(([e]) => e));
  let total = 0, rest = 0;
  for (const [e, a, b, product] of terms) {
    if (!largest.has(e)) { rest += product; continue; }
    total += product;
    const row = table.insertRow();
    for (const text of [String(ofPositions ? e + 1 : e), formatNumber(a), formatNumber(b), formatNumber(product), formatNumber(total)]) row.insertCell().textContent = text;
  }
  if (terms.length > largest.size) {
    const row = table.insertRow(), name = row.insertCell();
    name.colSpan = 3; name.textContent = t("calc_rest", { count: terms.length - largest.size });
    for (const text of [formatNumber(rest), formatNumber(total + rest)]) row.insertCell().textContent = text;
  }
  box.append(table);
  const play = document.createElement("button");
  play.type = "button"; play.textContent = t("calc_play");
  play.addEventListener("click", () => playSum(holder, [...table.rows].slice(1)));
  parts.push(box, play, line(t("calc_dot", { left, right, sum: formatNumber(dot) })));
  const isMatrix = step.symbol === m.symbol;
  if (isMatrix && outside) parts.push(line(t("calc_outside")));
  else if (isMatrix && form === "mean") parts.push(line(t("calc_mean", { n: m.size[1], value: formatNumber(value) })));
  else if (isMatrix && form !== "product") {
    const show = showDifference((form === "softmin" ? -dot : dot) - log);
    parts.push(line(t(`calc_${form}`, { sum: show(dot), negated: bracket(dot, show), log: show(log), subtracted: bracket(log, show), value: formatNumber(value) })));
  }
  parts.push(line(`**${t(other ? "calc_result_other" : "calc_result", { symbol: step.symbol, value: formatNumber(isMatrix ? value : dot) })}**`));
  holder.replaceChildren(...parts);
}
/** Add up before the reader's eyes: one row after the other. */
function playSum(holder, rows) {
  clearInterval(holder.playing);
  rows.forEach((row) => { row.className = "later"; });
  let k = 0;
  const next = () => {
    if (k) rows[k - 1].className = "";
    if (k === rows.length) return clearInterval(holder.playing);
    rows[k].className = "now";
    k += 1;
  };
  next();
  holder.playing = setInterval(next, 550);
}
