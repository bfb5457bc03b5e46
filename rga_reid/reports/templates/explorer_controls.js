// ---------- choice of photo, module, stage and matrix ----------
let drawn = Promise.resolve(); // the applied attention of the chosen photo
async function choose() {
  const shown = exhibit(), words = wordsOf(shown), level = stage(), has = level.matrices.length > 0;
  state.matrix = Math.min(state.matrix, Math.max(0, level.matrices.length - 1));
  options("photos", data.photos.map((photo) => photo.name), state.photo, (k) => { pickPhoto(k); });
  const here = data.exhibits.map((_, k) => k).filter((k) => data.exhibits[k].photo === state.photo);
  options("exhibits", here.map((k) => labelOf(data.exhibits[k])), here.indexOf(state.exhibit), (k) => { pickExhibit(here[k]); });
  options("stages", shown.stages.map((s) => t("stage_option", { stage: s.stage, h: s.grid[0], w: s.grid[1], channels: s.channels })), state.stage, (k) => { state.stage = k; choose(); });
  options("matrices", level.matrices.map((m) => t("matrix_head", { symbol: m.symbol, meaning: meaningOf(m.name.replaceAll("_", " ")) })), state.matrix, chooseMatrix);
  $("photos").hidden = data.photos.length < 2;
  $("start-tour").hidden = !placeOfAny();
  $("matrices").hidden = level.matrices.length < 2;
  set("idea", settings.lang === "zh" ? `${words.title}。${words.idea}` : `${words.title}. ${words.idea}`);
  const channels = has && matrix().kind === "channels";
  for (const id of ["fig-row", "fig-column", "fig-difference"]) $(id).hidden = !has || channels;
  $("fig-matrix").hidden = $("readout").hidden = !has;
  $("no-matrix").hidden = has;
  $("look-title").hidden = $("look-help").parentElement.hidden = !has;
  set("look-title", t(channels ? "look_channel" : "look"));
  if (!has) { set("cap-photo", ""); set("head-photo", t("photo")); }
  $("channels").hidden = $("channel-picker").hidden = !channels;
  flow(); same();
  if (has) {
    const m = matrix();
    await ready(m);
    if (m !== matrix()) return; // the choice has changed
    captions(shown, m);
  }
  show(); keepState();
  for (const button of document.querySelectorAll("figure[id] > .save")) button.describe(); // by the heading, which show() sets
  Promise.all([drawn, ...[...$("same-point").children].map((figure) => ready(figure.shown.matrix))]).then(() => { showSame(); document.body.dataset.ready = "yes"; });
}
function options(id, labels, chosen, pick) {
  const holder = $(id), focused = holder.contains(document.activeElement);
  while (holder.children.length > 1) holder.lastChild.remove();
  labels.forEach((text, k) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "radio", name: id, value: String(k), checked: k === chosen });
    input.addEventListener("change", () => pick(k));
    label.append(input, ...(id === "matrices" ? typeset(text) : [text]));
    holder.append(label);
    if (focused && k === chosen) input.focus();
  });
}
function chooseMatrix(k) {
  state.matrix = k;
  state.kind = matrix().kind;
  choose();
}
/** Show another exhibit at the same stage, with a matrix of the kind that the reader has chosen. */
function pickExhibit(k) {
  const level = stage().stage;
  state.exhibit = k;
  const found = exhibit().stages.findIndex((s) => s.stage === level);
  state.stage = found >= 0 ? found : exhibit().start;
  state.matrix = Math.max(0, stage().matrices.findIndex((m) => m.kind === state.kind));
  choose();
}
function pickPhoto(k) {
  const { label } = exhibit();
  state.photo = k;
  drawn = applied();
  const alike = data.exhibits.findIndex((e) => e.photo === k && e.label === label);
  pickExhibit(alike >= 0 ? alike : data.exhibits.findIndex((e) => e.photo === k));
}

// ---------- pointer, touch, keyboard ----------
const clip = (value) => Math.min(0.99999, Math.max(0, value));
const inside = (event) => {
  const box = event.currentTarget.getBoundingClientRect();
  return [clip((event.clientY - box.top) / box.height), clip((event.clientX - box.left) / box.width)];
};
let asked = false;
const soon = () => { if (!asked) { asked = true; requestAnimationFrame(() => { asked = false; timed(); }); } };
function timed() {
  const start = performance.now();
  show();
  document.body.dataset.answer = String(performance.now() - start);
  keepState();
}
const positions = () => stage().matrices.length && matrix().ready && matrix().kind === "positions";
/** Whether a picture of the photo moves the point now: where nodes are channels, only pictures of other modules do. */
const follows = (canvas) => positions() || canvas.closest("#same, #applied, #flow");
function moveBy(step, second) {
  const m = positions() ? matrix() : null, grid = m && (m.whole || second ? m.grid : chosenGrid(m)), [h, w] = grid ?? stage().grid;
  if (second) {
    const [v, u] = middle(cell(state.ov, state.ou, [h, w]), [h, w]);
    [state.ov, state.ou] = [clip(v + step[0] / h), clip(u + step[1] / w)];
  } else {
    const [v, u] = m ? middle(nodeAt(m, nearest(m, state.v, state.u)), m.grid) : middle(cell(state.v, state.u, [h, w]), [h, w]);
    [state.v, state.u] = [clip(v + step[0] / h), clip(u + step[1] / w)];
  }
  soon();
}
/** Move the point to the next row of a matrix, or the second point to the next column. */
function moveNode(m, step, second) {
  const within = (place, count) => Math.min(count - 1, Math.max(0, place + step));
  if (second) [state.ov, state.ou] = middle(within(cell(state.ov, state.ou, m.key_grid), m.size[1]), m.key_grid);
  else [state.v, state.u] = middle(nodeAt(m, within(nearest(m, state.v, state.u), m.whole ? m.size[0] : m.chosen.length)), m.grid);
  soon();
}
/** Let a picture of the photo move the point, or the second point: hover, tap and keyboard. */
function attach(canvas, second) {
  canvas.tabIndex = 0;
  canvas.addEventListener("pointermove", (event) => {
    if (!follows(canvas) || event.pointerType === "touch" || (state.held && !second)) return;
    if (second) [state.ov, state.ou] = inside(event); else [state.v, state.u] = inside(event);
    soon();
  });
  canvas.addEventListener(second ? "pointerdown" : "click", (event) => {
    if (!follows(canvas)) return;
    const [v, u] = inside(event);
    if (second) [state.ov, state.ou] = [v, u];
    else {
      const again = !positions() || nearest(matrix(), v, u) === nearest(matrix(), state.v, state.u);
      state.held = !(state.held && again);
      [state.v, state.u] = [v, u];
    }
    soon();
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!follows(canvas) || (!step && event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    if (step) moveBy(step, second || event.shiftKey);
    else { state.held = !state.held; soon(); }
  });
}
attach($("photo"), false);
for (const id of ["row", "column", "difference"]) attach($(id), true);
for (const kind of ["pointermove", "pointerdown"]) {
  $("matrix").addEventListener(kind, (event) => {
    if (!matrix()?.ready || (kind === "pointermove" && event.pointerType === "touch")) return;
    const [share, keyShare] = inside(event), m = matrix(), [rows, keys] = m.picture.shape, place = middle(Math.floor(share * rows), m.blocks);
    if (m.kind === "channels") { if (kind === "pointerdown") state.channel = nearestLive(m, cell(...place, m.grid)); else return; }
    else {
      if (!state.held) [state.v, state.u] = place;
      [state.ov, state.ou] = middle(Math.floor(keyShare * keys), m.key_blocks);
    }
    soon();
  });
}
$("matrix").addEventListener("keydown", (event) => {
  const m = matrix(), step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!m?.ready || !step) return;
  event.preventDefault();
  if (m.kind === "positions") return moveNode(m, step[0] + step[1], !step[0]);
  const all = choices(m), k = all.indexOf(readChannels().channel) + step[0] + step[1];
  state.channel = all[Math.min(all.length - 1, Math.max(0, k))];
  soon();
});
const nearestLive = (m, channel) => choices(m).reduce((best, one) => (Math.abs(one - channel) < Math.abs(best - channel) ? one : best), choices(m)[0]);
function chosenGrid(m) {
  const across = new Set(m.chosen.map((node) => node % m.grid[1])).size;
  return [m.chosen.length / across, across];
}
$("channel-range").addEventListener("input", () => { state.channel = choices(matrix())[Number($("channel-range").value)]; soon(); });
$("channel-number").addEventListener("change", () => { state.channel = Math.max(0, Math.round(Number($("channel-number").value) || 0)); soon(); });

// ---------- pictures as files ----------
/** A panel as one picture: its name, the drawing, and its scale or caption. */
function panelPicture(figure, name) {
  const canvas = figure.querySelector("canvas"), scale = figure.querySelector(".bar"), caption = figure.querySelector("figcaption, small");
  const factor = Math.max(1, Math.round(320 / canvas.width)), width = Math.max(canvas.width * factor, 320);
  const height = canvas.classList.contains("strip") ? Math.max(canvas.clientHeight, 1) : canvas.height * factor;
  const text = scale?.firstChild ? `${scale.firstChild.textContent} – ${scale.lastChild.textContent}` : caption?.innerText.split("\n").pop() ?? "";
  const picture = document.createElement("canvas"), context = picture.getContext("2d");
  const font = 'system-ui, "DejaVu Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif';
  Object.assign(picture, { width: width + 24, height: height + 76 });
  context.fillStyle = colourOf("--sheet"); context.fillRect(0, 0, picture.width, picture.height);
  context.fillStyle = colourOf("--ink"); context.font = `600 15px ${font}`; context.fillText(name, 12, 25, width);
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, 12, 38, canvas.width * factor, height);
  context.fillStyle = colourOf("--soft"); context.font = `13px ${font}`; context.fillText(text, 12, height + 62, width);
  return picture;
}
function addSave(figure, name) {
  const button = document.createElement("button");
  button.type = "button"; button.className = "save"; button.textContent = "PNG"; button.title = t("save");
  button.describe = () => button.setAttribute("aria-label", t("save_panel", { name: name() }));
  button.describe();
  button.addEventListener("click", () => panelPicture(figure, name()).toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${name().replace(/[^\p{L}\p{N}]+/gu, "_")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }));
  figure.append(button);
}

// ---------- state in the address ----------
const point = (v, u) => `${v.toFixed(4)},${u.toFixed(4)}`;
function keepState() {
  remember({
    photo: state.photo || null, exhibit: state.exhibit, stage: stage().stage, matrix: matrix()?.name ?? null, i: point(state.v, state.u), j: point(state.ov, state.ou),
    channel: state.channel, held: state.held ? 1 : null, open: [...state.open].join(" ") || null, tour: tour || null,
  });
}
function readAddress() {
  const kept = fromAddress(), whole = (text, count) => (/^\d+$/.test(text ?? "") && Number(text) < count ? Number(text) : null);
  state.exhibit = whole(kept.exhibit, data.exhibits.length) ?? 0;
  state.photo = exhibit().photo;
  const found = exhibit().stages.findIndex((s) => String(s.stage) === kept.stage);
  state.stage = found >= 0 ? found : exhibit().start;
  state.matrix = Math.max(0, stage().matrices.findIndex((m) => m.name === kept.matrix));
  state.kind = matrix()?.kind ?? "positions";
  for (const [name, v, u] of [["i", "v", "u"], ["j", "ov", "ou"]]) {
    const pair = (kept[name] ?? "").split(",").map(Number);
    if (pair.length === 2 && pair.every((one) => one >= 0 && one < 1)) [state[v], state[u]] = pair;
  }
  state.channel = whole(kept.channel, 1e6);
  state.held = kept.held === "1";
  state.open = new Set((kept.open ?? "").split(" ").filter(Boolean));
  return whole(kept.tour, STEPS.length + 1) ?? 0;
}

// ---------- start ----------
function redraw() {
  for (const button of document.querySelectorAll("figure[id] > .save")) button.remove();
  for (const id of ["photo", "row", "column", "difference", "matrix"]) addSave($(`fig-${id}`), () => $(`head-${id}`).textContent);
  drawn = applied(); glance();
  return choose();
}
languageChanged = redraw;
themeChanged = () => { resolved.clear(); show(); };
addEventListener("resize", () => soon());
addEventListener("hashchange", () => {
  if (location.hash.slice(1) === String(new URLSearchParams(Object.entries(settings).filter(([, value]) => value !== null && value !== undefined && value !== "")))) return;
  Object.assign(settings, { theme: null }, fromAddress());
  showTheme(); translatePage();
  const step = readAddress();
  redraw().then(() => goTour($("start-tour").hidden ? 0 : step));
});
Promise.all(data.photos.map(loadPhoto)).then((loaded) => {
  photos.push(...loaded);
  const step = readAddress();
  return redraw().then(() => (step && !$("start-tour").hidden ? goTour(step) : null));
});
