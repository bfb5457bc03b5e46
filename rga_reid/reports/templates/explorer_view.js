// ---------- the view ----------
const exhibit = () => data.exhibits[state.exhibit];
const stage = () => exhibit().stages[state.stage];
const matrix = () => stage().matrices[state.matrix];
const wordsOf = (shown) => shown.words[settings.lang];
const readsBoth = (shown) => shown.words.en.directions === "row and column";
const labelOf = (shown) => t(shown.trained ? "label_trained" : "label_untrained", { name: shown.name }) + (shown.source ? ` (${shown.source})` : "");
const meaningOf = (text) => data.flow[settings.lang][text] ?? text;
function formulaOf(text) {
  for (const [english, other] of Object.entries(data.formula[settings.lang])) text = text.replace(english, other);
  return text;
}
const set = (id, text) => $(id).replaceChildren(...typeset(text));

/** The picture of a matrix and its colour scale. */
function pictureOf(m) {
  if (!m.drawn) {
    const sorted = Float32Array.from(m.values).sort();
    const low = sorted[0], top = sorted[sorted.length - 1];
    let high = sorted[Math.floor(0.995 * (sorted.length - 1))];
    if (high - low <= 0.02 * (top - low)) high = top;
    const power = powerOf(m.values, low, top);
    if (power !== 1) high = top;
    const [a, b, colours] = scaleOf(low, high);
    const picture = paint(m.values, m.picture.shape, a, b, data.colours[colours], 0, power);
    m.drawn = { picture, low: a, high: b, colours, more: b < top, power };
  }
  return m.drawn;
}
function drawMatrix(m) {
  const [rows, keys] = m.picture.shape, { picture, low, high, colours, more, power } = pictureOf(m);
  // as large as it is shown: a larger canvas would be scaled down with moiré
  const canvas = $("matrix"), side = Math.min(512, Math.round((canvas.clientWidth || 512) * devicePixelRatio));
  if (canvas.width !== side) canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = Math.max(rows, keys) > side;
  context.imageSmoothingQuality = "high";
  context.clearRect(0, 0, side, side);
  context.drawImage(picture, 0, 0, side, side);
  bar("bar-matrix", low, high, colours, more ? t("bar_more") : rootNote(power));
  return context;
}
/** Draw lines through the row and the column of (v, u). */
function lines(m, v, u) {
  const share = (cell(v, u, m.blocks) + 0.5) / m.picture.shape[0], keyShare = (cell(v, u, m.key_blocks) + 0.5) / m.picture.shape[1];
  const context = drawMatrix(m), side = context.canvas.width;
  context.lineWidth = 3; context.strokeStyle = colourOf("--mark");
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
const sum = (values) => values.reduce((total, value) => total + value, 0);

/** Numbers of the chosen points: nodes, entries in both directions, sum of the row. */
function readPositions() {
  const m = matrix(), place = nearest(m, state.v, state.u), node = nodeAt(m, place), row = rowOf(m, place), column = columnOf(m, place);
  const otherKey = cell(state.ov, state.ou, m.key_grid), otherNode = cell(state.ov, state.ou, m.grid);
  return { m, place, node, row, column, otherKey, otherNode, forward: entryOf(m, node, otherKey, row[otherKey]), backward: entryOf(m, otherNode, cell(...middle(node, m.grid), m.key_grid), column[otherNode]), total: sum(row) };
}
function showPositions() {
  const { m, node, row, column, otherKey, otherNode, forward, backward, total } = readPositions();
  const [v, u] = middle(node, m.grid), square = m.size[0] === m.size[1], [ov, ou] = middle(otherNode, m.grid);
  const mine = overPhoto($("photo"), exhibit().photo, null);
  if (!m.whole) m.chosen.forEach((n) => { const [a, b] = middle(n, m.grid); mine.fillStyle = "#fff"; mine.fillRect(b * mine.canvas.width - 2, a * mine.canvas.height - 2, 5, 5); });
  const all = [mine];
  const [low, high] = range([...range(row), ...range(column)]), [a, b, colours] = scaleOf(low, high), power = powerOf(row, low, high);
  all.push(overPhoto($("row"), exhibit().photo, paint(row, m.key_grid, a, b, data.colours[colours], 0, power, true)));
  all.push(overPhoto($("column"), exhibit().photo, paint(column, m.grid, a, b, data.colours[colours], 0, power, true)));
  bar("bar-row", a, b, colours, rootNote(power)); bar("bar-column", a, b, colours, rootNote(power));
  $("fig-difference").hidden = !square;
  if (square) {
    const difference = row.map((value, k) => value - column[k]), [l, h] = range(difference), most = Math.max(-l, h) || 1; // keeps 0 white if all values are 0
    all.push(overPhoto($("difference"), exhibit().photo, paint(difference, m.grid, -most, most, data.colours.diverging)));
    bar("bar-difference", -most, most, "diverging");
  }
  for (const context of all) { mark(context, v, u, m.grid, false); mark(context, ov, ou, m.grid, true); }
  lines(m, v, u);
  const at = (n, grid) => ({ row: Math.floor(n / grid[1]) + 1, column: (n % grid[1]) + 1 }), { symbol } = m;
  const parts = [[t(state.held ? "point_held" : "point_i", at(node, m.grid))], [t("point_j", at(otherNode, m.grid))],
    [t("value_row", { symbol }), "value-row", forward], [t("value_column", { symbol }), "value-column", backward], [t("value_sum"), "value-sum", total]];
  if (m.asymmetry !== null) parts.push([t("value_asymmetry"), "value-asymmetry", m.asymmetry]);
  showParts("readout", parts);
  $("readout").dataset.node = node; $("readout").dataset.other = otherKey;
}

/** Channel that a view opens with: the most active one whose row is not 0. */
function mainChannel(m) {
  if (m.main === undefined) {
    const live = new Set(m.live);
    const has = (channel) => rowOf(m, placeOfChannel(m, channel)).some((value) => value !== 0);
    const found = (m.whole ? m.live : m.chosen.filter((n) => live.has(n))).map((channel) => {
      return [has(channel), m.activity[m.map_channels.indexOf(channel)], channel];
    });
    found.sort((p, q) => q[0] - p[0] || q[1] - p[1] || p[2] - q[2]);
    m.main = found.length ? found[0][2] : nodeAt(m, 0);
  }
  return m.main;
}
/** Channels that the slider goes through. */
const choices = (m) => (m.choices ??= m.whole ? m.live : m.chosen.filter((n) => m.live.includes(n)));
function placeOfChannel(m, channel) {
  if (m.whole) return Math.min(channel, m.size[0] - 1);
  return m.chosen.reduce((best, node, k) => (Math.abs(node - channel) < Math.abs(m.chosen[best] - channel) ? k : best), 0);
}
/** Active channels except one, most related first. */
function related(m, channel) {
  const row = rowOf(m, placeOfChannel(m, channel));
  return m.live.filter((k) => k !== channel).sort((p, q) => row[q] - row[p] || p - q);
}
function readChannels() {
  const m = matrix(), place = placeOfChannel(m, state.channel ?? mainChannel(m)), channel = nodeAt(m, place), row = rowOf(m, place), column = columnOf(m, place);
  const order = related(m, channel);
  const lowest = order.toReversed().sort((p, q) => row[p] - row[q] || p - q);
  return { m, place, channel, row, column, order, lowest, forward: entryOf(m, channel, order[0], row[order[0]]), backward: entryOf(m, order[0], channel, column[order[0]]), total: sum(row) };
}
/** Whether the channels that a channel takes most from are those least similar to it. */
const takesFromUnlike = (shown) => ["cam", "dual"].includes(shown.mechanism);
function showChannels() {
  const { m, channel, row, column, order, lowest, forward, backward, total } = readChannels(), all = choices(m);
  $("channel-range").max = all.length - 1;
  $("channel-range").value = Math.max(0, all.indexOf(channel)); $("channel-number").value = channel; $("channel-number").max = m.size[0] - 1;
  set("channel-choices", m.whole ? "" : t("channel_choices", { list: all.join(t("comma")) }));
  overPhoto($("photo"), exhibit().photo, activation(m, channel));
  const most = order.slice(0, 4).filter((k, n) => n === 0 || row[k] > row[lowest[0]]); // none is both
  thumbnails("most", m, channel, most, row, column);
  thumbnails("least", m, channel, lowest.slice(0, 4), row, column);
  for (const [id, [first]] of [["tied-most", order], ["tied-least", lowest]]) {
    const count = order.filter((k) => row[k] === row[first]).length;
    const tiny = row[first] === 0 && m.calculation?.form.startsWith("soft"); // 0 as stored, but no softmax is 0
    set(id, count > 1 ? t(tiny ? "tied_tiny" : id.replace("-", "_"), { count, value: formatNumber(row[first]) }) : "");
  }
  lines(m, ...middle(channel, m.grid));
  set("head-photo", t("photo_channel", { n: channel }));
  const sizes = { grid: stage().grid.join("×"), shown: m.maps.shape.slice(1).join("×") };
  set("cap-photo", !m.live.includes(channel) ? t("cap_photo_dead", { n: channel })
    : join(t("cap_photo_channel"), sizes.grid === sizes.shown ? "" : t("cap_photo_reduced", sizes)));
  const takes = takesFromUnlike(exhibit());
  set("head-most", t(takes ? "most_takes" : "most", { n: channel })); set("head-least", t(takes ? "least_takes" : "least", { n: channel }));
  const { symbol } = m;
  const parts = [[t("channel_i", { n: channel, last: m.size[0] - 1 })], [t(takes ? "channel_row_takes" : "channel_row", { symbol, n: order[0] }), "value-row", forward],
    [t("channel_column", { symbol, n: order[0] }), "value-column", backward], [t("value_sum"), "value-sum", total]];
  if (m.asymmetry !== null) parts.push([t("value_asymmetry"), "value-asymmetry", m.asymmetry]);
  showParts("readout", parts);
  $("readout").dataset.node = channel; $("readout").dataset.other = order[0];
}
function activation(m, channel) {
  const place = m.map_channels.indexOf(channel);
  if (place < 0 || !m.live.includes(channel)) return null;
  const [, h, w] = m.maps.shape;
  return paint(m.pixels, [h, w], 0, 255, data.colours.sequential, place * h * w);
}
function thumbnails(id, m, chosen, channels, row, column) {
  const holder = $(id);
  while (holder.children.length < channels.length) {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    const pick = () => { state.channel = Number(figure.dataset.channel); soon(); };
    canvas.className = "pick"; canvas.tabIndex = 0;
    canvas.addEventListener("click", pick);
    canvas.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(); } });
    figure.append(canvas, document.createElement("figcaption"));
    holder.append(figure);
  }
  while (holder.children.length > channels.length) holder.lastChild.remove();
  channels.forEach((channel, k) => {
    const figure = holder.children[k];
    figure.dataset.channel = channel;
    overPhoto(figure.firstChild, exhibit().photo, activation(m, channel));
    describe(figure.firstChild, t("choose_channel", { n: channel }), "button");
    const shown = (value, stored) => (stored === 0 && value !== 0 ? "≈ 0" : formatNumber(value));
    figure.lastChild.textContent = t("related", { n: channel, row: shown(entryOf(m, chosen, channel, row[channel]), row[channel]), column: shown(entryOf(m, channel, chosen, column[channel]), column[channel]) });
  });
}

/** Name a picture for screen readers. */
function describe(canvas, words, role = "img") {
  canvas.setAttribute("role", role); canvas.setAttribute("aria-label", words);
}

/** Redraw what a hover changes: pictures and numbers of the chosen point or channel. */
function show() {
  if (stage().matrices.length && !matrix().ready) return; // still being unpacked: choose() shows it afterwards
  if (!stage().matrices.length) overPhoto($("photo"), exhibit().photo, null);
  else if (matrix().kind === "channels") showChannels();
  else showPositions();
  showSame(); showSteps(); showTour();
}
function showSame() {
  for (const figure of $("same-point").children) {
    const { matrix: m, direction, photo } = figure.shown;
    if (!m.ready) continue;
    const place = nearest(m, state.v, state.u), values = direction === "row" ? rowOf(m, place) : columnOf(m, place);
    const grid = direction === "row" ? m.key_grid : m.grid, [low, high] = range(values), [a, b, colours] = scaleOf(low, high);
    const power = powerOf(values, a, b);
    const context = overPhoto(figure.firstChild, photo, paint(values, grid, a, b, data.colours[colours], 0, power, true));
    mark(context, ...middle(nodeAt(m, place), m.grid), m.grid, false);
    figure.numbers.textContent = t("range", { low: formatNumber(a), high: formatNumber(b) }) + rootNote(power);
  }
  for (const canvas of document.querySelectorAll("#applied canvas.tap")) {
    const { photo, picture, grid } = canvas.shown;
    mark(overPhoto(canvas, photo, picture), ...middle(cell(state.v, state.u, grid), grid), grid, false);
  }
}

function captions(shown, m) {
  const words = wordsOf(shown), both = readsBoth(shown), { symbol } = m;
  // how an own module uses its matrix is unknown
  const known = shown.words.en.directions, use = both ? "both" : known ? "takes" : "plain";
  set("head-row", t(`row_${use}`)); set("head-column", t(`column_${use}`));
  set("head-difference", t("difference"));
  const heading = document.createElement("span"); // one flex item
  heading.append(...typeset(t("matrix_head", { symbol, meaning: meaningOf(m.meaning) })));
  $("head-matrix").replaceChildren(heading);
  if (m.kind === "positions") {
    set("head-photo", t("photo"));
    set("cap-photo", m.whole ? t("cap_photo") : t("cap_photo_pooled", { rows: m.size[0], keys: m.size[1], count: m.chosen.length }));
  }
  set("cap-row", join(words.row_caption, t("cap_scale"))); set("cap-column", words.column_caption);
  set("cap-difference", both ? t("cap_difference_both") : join(t(known ? "cap_difference" : "cap_difference_plain"), known === "row only" ? t("cap_difference_row_only") : ""));
  const reach = m.reach < 0.9999 ? t("cap_reach", { share: formatNumber(100 * m.reach) }) : m.name === "both_passes" ? t("cap_both_passes") : "";
  const pooled = m.whole ? t("cap_whole") : t(`cap_pooled_${m.kind}`, { dots: m.picture.shape.join(" × "), values: m.size.join(" × ") });
  const root = pictureOf(m).power === 1 ? "" : t("cap_root");
  set("cap-matrix", join(t("cap_formula", { formula: formulaOf(m.formula) }), t(`cap_row_${use}`), pooled, root, reach));
  const all = m.size[0], live = m.live.length;
  const parts = [t(both ? "channels_both" : takesFromUnlike(shown) ? "channels_minus" : "channels_plain"),
    live < all ? t("live", { live, all }) : t("live_all", { all }), m.whole ? "" : t("exact_channels", { count: m.chosen.length, all })];
  set("cap-channels", join(...parts));
}

// ---------- all modules at one point, applied attention, the modules at a glance ----------
function same() {
  const level = stage().stage, figures = [];
  for (const shown of data.exhibits) {
    if (shown.photo !== state.photo) continue;
    for (const m of shown.stages.find((s) => s.stage === level)?.matrices ?? []) {
      if (m.kind !== "positions") continue;
      for (const direction of readsBoth(shown) ? ["row", "column"] : ["row"]) {
        const figure = document.createElement("figure"), canvas = document.createElement("canvas"), caption = document.createElement("figcaption"), name = document.createElement("b"), values = document.createElement("span");
        const { symbol } = m, label = labelOf(shown);
        name.textContent = label;
        caption.append(name, document.createElement("br"), ...typeset(t(`${direction}_of`, { symbol })), values);
        canvas.className = "tap";
        figure.className = "panel";
        figure.append(canvas, caption);
        describe(canvas, t(`${direction}_over`, { symbol, label }));
        Object.assign(figure, { shown: { matrix: m, direction, photo: shown.photo }, numbers: values });
        attach(canvas, false);
        addSave(figure, () => t(`${direction}_over`, { symbol, label }));
        figures.push(figure);
      }
    }
  }
  $("same-point").replaceChildren(...figures);
  $("same").hidden = !figures.length;
}
/** Whether two numbers are equal to three digits: colours between them would show rounding errors. */
const even = (low, high) => formatNumber(low) === formatNumber(high);
/** The ends of a range with three digits, or as many as show their difference with two. */
function ends(low, high) {
  const digits = 2 + Math.floor(Math.log10(Math.max(Math.abs(low), Math.abs(high)))) - Math.floor(Math.log10(high - low));
  const write = (value) => (digits > 3 ? value.toPrecision(Math.min(7, digits)).replace("-", "−") : formatNumber(value));
  return { low: write(low), high: write(high) };
}
async function applied() {
  const { photo } = state;
  const table = document.createElement("tbody"), numbersOf = [...new Set(data.exhibits.flatMap((e) => e.stages.map((s) => s.stage)))].sort();
  $("applied").style.setProperty("--stages", numbersOf.length);
  headings(table, [t("module"), ...numbersOf.map((n) => t("after_stage", { n }))]);
  for (const shown of data.exhibits.filter((e) => e.photo === photo)) {
    const line = table.insertRow(), label = labelOf(shown);
    line.append(heading("row", label));
    for (const n of numbersOf) {
      const level = shown.stages.find((s) => s.stage === n), place = line.insertCell();
      if (!level) { place.textContent = t("none"); continue; }
      const say = (key, values) => { const small = document.createElement("small"); small.textContent = t(key, values); place.append(small); };
      const weight = await numbers(level.attention), change = await numbers(level.change), channel = await numbers(level.channel_attention);
      const map = weight ?? (channel ? null : change), [low, high] = range(map ?? []);
      if (map && !weight && high === 0) say(level.matrices.length ? "no_change_gamma" : "no_change");
      else if (map && even(low, high)) say(weight ? "every_place_weight" : "every_place_change", { value: weight ? formatNumber(low) : formatNumber(100 * low) });
      else if (map) {
        const canvas = document.createElement("canvas"), figure = document.createElement("figure");
        const name = () => t(weight ? "weights_over" : "change_over", { label, n });
        describe(canvas, name());
        canvas.className = "tap"; figure.className = "panel";
        canvas.shown = { photo: shown.photo, picture: paint(map, level.grid, weight ? low : 0, high, data.colours.sequential), grid: level.grid };
        overPhoto(canvas, shown.photo, canvas.shown.picture);
        attach(canvas, false);
        figure.append(canvas); place.append(figure);
        addSave(figure, name);
        if (weight) say("weights_range", ends(low, high));
        else say("change_range", { low: formatNumber(0), high: formatNumber(100 * high) });
      }
      if (channel && even(...range(channel))) say("every_channel", { value: formatNumber(channel[0]) });
      else if (channel) {
        const [low, high] = range(channel), strip = document.createElement("canvas");
        const ordered = Float32Array.from(channel).sort();
        describe(strip, t("strip_label", { label, n }));
        strip.className = "strip"; strip.width = ordered.length; strip.height = 1;
        strip.getContext("2d").drawImage(paint(ordered, [1, ordered.length], low, high, data.colours.sequential), 0, 0);
        place.append(strip);
        say("channels_range", ends(low, high));
      }
    }
  }
  if (photo === state.photo) $("applied").replaceChildren(table); // unless the choice has changed
}
function heading(scope, text) {
  const name = document.createElement("th");
  name.scope = scope; name.append(...typeset(text));
  return name;
}
function headings(table, texts) {
  table.insertRow().append(...texts.map((text) => heading("col", text)));
}
function glance() {
  const table = document.createElement("tbody"), columns = ["nodes", "entry", "row", "use", "directions"];
  headings(table, [t("module"), ...columns.map((name) => t(`head_${name}`)), t("head_asymmetry")]);
  for (const { words, asymmetry, related } of data.modules) {
    const line = table.insertRow(), mine = words[settings.lang], name = heading("row", mine.title), paper = document.createElement("small");
    paper.className = "help"; paper.textContent = mine.paper;
    name.append(document.createElement("br"), paper);
    line.append(name);
    const measured = asymmetry.length ? t("range", { low: asymmetry[0].toFixed(2), high: asymmetry[1].toFixed(2) }) : t(related ? "not_square" : "without_matrix");
    [...columns.map((column) => mine[column] || "–"), measured].forEach((text, k) => {
      const place = line.insertCell();
      place.dataset.head = k < columns.length ? t(`head_${columns[k]}`) : t("head_asymmetry");
      place.append(...typeset(text));
    });
  }
  $("glance").replaceChildren(table);
}
