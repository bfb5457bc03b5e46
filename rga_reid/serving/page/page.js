// The operator page: pictures to search with, filters, and what the buttons do.
import { describeGallery, forgetThumbnail, forgetToken, hasToken, hooks, search } from "./api.js";
import { askToken, openCompare, refreshCompare, takePicture } from "./dialogs.js";
import { $, clearMessages, el, frame, icon, showError, showMessage } from "./dom.js";
import { actions, keepFocus, moveFocus, renderResults } from "./results.js";
import { Picture, StoredPicture, currentWhere, isInQuery, listMatches, otherWhere, queryPictures, state } from "./state.js";
import { formatNumber, formatTime, getLanguage, setLanguage, t } from "./strings.js";
import { renderTimeline } from "./timeline.js";

const MAX_CHIPS = 16; // cameras to choose from; of more, the names are typed
const PER_GROUP = { track: 4, camera: 12, pid: 6 };
const GROUP_COLUMNS = { track: ["camera", "track"], pid: ["pid"] };
const REFUSED_PICTURE = [400, 413, 415, 422];
const THEMES = ["auto", "light", "dark"];

// ---------- language and colours ----------

function renderLanguage() {
  document.documentElement.lang = getLanguage() === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-t-label]")) element.setAttribute("aria-label", t(element.dataset.tLabel));
  for (const element of document.querySelectorAll("[data-t-title]")) element.title = t(element.dataset.tTitle);
  for (const button of document.querySelectorAll("[data-language]")) button.setAttribute("aria-pressed", String(button.dataset.language === getLanguage()));
  document.title = `${t("title")} · rga-reid`;
  $("zone").textContent = t("zone", { zone: Intl.DateTimeFormat().resolvedOptions().timeZone });
  renderTheme();
  renderGallery();
  renderPanel();
  render();
}

const theme = () => localStorage.getItem("theme") ?? "auto";

function renderTheme() {
  if (theme() === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme();
  for (const name of ["title", "aria-label"]) $("theme").setAttribute(name, t(`theme_${theme()}`));
}

$("theme").addEventListener("click", () => {
  localStorage.setItem("theme", THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]);
  renderTheme();
});
for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => {
    setLanguage(button.dataset.language);
    renderLanguage();
  });
}

// ---------- gallery ----------

async function loadGallery() {
  const first = state.gallery === null;
  state.gallery = await describeGallery();
  if (first) {
    const { threshold, columns } = state.gallery;
    if (typeof threshold === "number") $("threshold").value = Math.floor(threshold * 1e6) / 1e6; // not above a score that is equal
    for (const option of [...$("group-by").options]) if (option.value && !(option.value in columns)) option.remove();
    renderCameras();
    if (state.gallery.embeds === false) showMessage(t("no_model"));
  }
  renderGallery();
}

function renderGallery() {
  const { gallery } = state;
  $("forget-token").hidden = !hasToken();
  if (!gallery) return;
  const facts = [t("gallery_summary", { count: formatNumber(gallery.count), cameras: formatNumber(gallery.cameras.length) })];
  if (gallery.times) facts.push(t("gallery_until", { time: formatTime(gallery.times[1]) }));
  $("gallery").textContent = facts.join(" · ");
}

function renderCameras() {
  const { cameras } = state.gallery;
  const legend = $("cameras").querySelector("legend");
  if (cameras.length <= MAX_CHIPS) {
    $("cameras").replaceChildren(legend, ...cameras.map((camera, number) => el("label", { class: "chip" },
      el("input", { type: "checkbox", value: number }), icon("check"), el("span", {}, String(camera)))));
    $("cameras").hidden = !cameras.length;
  } else {
    const text = el("input", { type: "text", id: "camera-names", list: "camera-list", "aria-labelledby": "cameras-legend" });
    legend.id = "cameras-legend";
    legend.dataset.t = "cameras_text";
    legend.textContent = t("cameras_text");
    $("cameras").replaceChildren(legend, text, el("datalist", { id: "camera-list" }, ...cameras.map((camera) => el("option", { value: camera }))));
  }
}

function chosenCameras() {
  const text = $("camera-names");
  if (text === null) return [...$("cameras").querySelectorAll(":checked")].map((box) => state.gallery.cameras[box.value]);
  const names = text.value.split(/[,，]/).map((name) => name.trim()).filter(Boolean);
  return state.gallery.columns.camera === "integer" ? names.map((name) => (/^[+-]?\d+$/.test(name) ? Number(name) : name)) : names;
}

// ---------- pictures to search with ----------

function addFiles(files) {
  const isPicture = (file) => !file.type || file.type.startsWith("image/");
  const added = [...files].filter(isPicture).map((file) => new Picture(file, file.name));
  state.pictures.push(...added);
  if (added.length) run();
  for (const file of [...files].filter((file) => !isPicture(file))) showMessage(t("not_an_image", { name: file.name }));
}

function renderPanel() {
  const pictures = (list, remove) => list.map((picture, number) => el("li", {},
    frame(picture.shown, t("query_picture", { n: number + 1 })),
    picture.match && el("span", { class: "tag" }, t("from_gallery")),
    el("button", { type: "button", class: "mini", title: t("remove_picture", { n: number + 1 }), "aria-label": t("remove_picture", { n: number + 1 }), click: () => remove(picture) }, icon("cross"))));
  $("pictures").replaceChildren(...pictures(state.pictures, (picture) => {
    state.pictures = state.pictures.filter((other) => other !== picture);
    run();
    $("choose").focus();
  }));
  $("pictures").hidden = !state.pictures.length;
  $("clear").hidden = !state.pictures.length && !state.confirmed.size && !state.rejected.length;
  const count = state.rejected.reduce((sum, one) => sum + one.count, 0);
  $("verdicts").hidden = !state.confirmed.size && !count;
  $("confirmed").hidden = !state.confirmed.size;
  $("confirmed").querySelector("b").textContent = t("confirmed", { n: formatNumber(state.confirmed.size) });
  $("confirmed").querySelector("ul").replaceChildren(...pictures([...state.confirmed.values()], ({ match }) => {
    state.confirmed.delete(match.id);
    run();
    $("choose").focus();
  }));
  $("rejected").hidden = !count;
  $("rejected").querySelector("b").textContent = t("rejected", { n: formatNumber(count) });
}

$("choose").addEventListener("click", () => $("files").click());
for (const input of [$("files"), $("snapshot")]) {
  input.addEventListener("change", () => {
    addFiles(input.files);
    input.value = ""; // so that the same file can be chosen again
  });
}
$("take").addEventListener("click", async () => {
  // on phones and tablets, the camera app takes better pictures
  if (matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices) $("snapshot").click();
  else {
    const blob = await takePicture();
    if (blob) addFiles([new File([blob], "camera.jpg", { type: blob.type })]);
  }
});
$("clear").addEventListener("click", () => {
  state.pictures = [];
  state.confirmed.clear();
  state.rejected = [];
  run();
  $("choose").focus();
});
$("show-rejected").addEventListener("click", () => {
  state.rejected = [];
  run();
  $("choose").focus();
});

document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) addFiles(files);
  else if (!event.target.closest?.("input")) showMessage(t("no_image_pasted"));
});
const carriesFiles = (event) => [...event.dataTransfer.types].includes("Files");
document.addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) $("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  $("drop").classList.remove("over");
  addFiles(event.dataTransfer.files);
});

// ---------- search ----------

let running = null; // AbortController of the latest search

function panelFilter() {
  return { cameras: chosenCameras(), from: $("from").value, to: $("to").value, where: $("where").value.trim() };
}

/** Return the features of the user's pictures; a picture that the server refuses is reported and left out. */
async function features() {
  const found = await Promise.all(state.pictures.filter(({ match }) => !match).map(async (picture) => {
    try {
      return await picture.feature();
    } catch (error) {
      if (!REFUSED_PICTURE.includes(error.status)) throw error;
      if (state.pictures.includes(picture)) showMessage(error.detail || error.message, { title: `${picture.name}:` });
      state.pictures = state.pictures.filter((other) => other !== picture);
      return null;
    }
  }));
  renderPanel();
  return found.filter(Boolean);
}

/** Search with all pictures together, and show the results. */
async function run() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  renderPanel();
  clearMessages();
  if (!state.pictures.length && !state.confirmed.size) {
    state.results = null;
    document.body.classList.remove("busy");
    render();
    return;
  }
  const panel = panelFilter();
  if (panel.from && panel.to && panel.from > panel.to) {
    document.body.classList.remove("busy");
    showMessage(t("bad_times"));
    return;
  }
  const groupBy = $("group-by").value || null;
  document.body.classList.add("busy");
  if (!state.results) {
    $("empty").hidden = true;
    $("status").replaceChildren(el("p", { class: "figures" }, t("searching")));
  }
  try {
    if (state.gallery === null) await loadGallery();
    const query = { multi: true, top_k: Number($("top-k").value) };
    const given = await features();
    if (signal.aborted) return;
    const ids = queryPictures().filter(({ match }) => match).map(({ match }) => match.id);
    if (!given.length && !ids.length) {
      state.results = null;
      render();
      return;
    }
    if (given.length) query.features = given;
    if (ids.length) query.ids = ids;
    const where = currentWhere(panel);
    if (where !== null) query.where = where;
    if (groupBy) Object.assign(query, { group_by: groupBy, per_group: PER_GROUP[groupBy] });
    if ($("rerank").checked) query.rerank = true;
    const { queries } = await search(query, signal);
    if (signal.aborted) return;
    state.results = arrange(queries[0], groupBy);
    render();
    refreshCompare();
  } catch (error) {
    if (signal.aborted) return;
    if (!state.results) render();
    showError(error);
  } finally {
    if (!signal.aborted) document.body.classList.remove("busy");
  }
}

/** Return the results as groups; without groups, or where no track is known, each match is one. */
function arrange(answer, groupBy) {
  let groups = answer.groups;
  const untracked = groupBy === "track" && groups.every(({ matches }) => matches[0].track === null);
  if (groupBy === null || untracked) groups = answer.matches.map((match) => ({ score: match.score, matches: [match] }));
  return { groups, groupBy: untracked ? null : groupBy, untracked: untracked && groups.length > 0 };
}

function render() {
  const focus = keepFocus();
  const { results } = state;
  $("empty").hidden = results !== null;
  if (results) renderResults();
  else for (const id of ["status", "above", "below"]) $(id).replaceChildren();
  renderTimeline(openCompare);
  focus();
  document.body.dataset.searches = Number(document.body.dataset.searches ?? 0) + 1;
}

Object.assign(actions, {
  open: openCompare,
  /** Confirm pictures, or take that back if all of them are confirmed. */
  confirm(matches) {
    const confirmed = matches.every(({ id }) => state.confirmed.has(id));
    for (const match of matches) {
      if (confirmed) state.confirmed.delete(match.id);
      else if (!state.confirmed.has(match.id)) state.confirmed.set(match.id, new StoredPicture(match));
    }
    run();
  },
  reject(match) {
    state.confirmed.delete(match.id);
    state.rejected.push({ id: match.id, count: 1 });
    run();
  },
  rejectGroup({ matches }) {
    for (const { id } of matches) state.confirmed.delete(id);
    const where = otherWhere(matches[0], GROUP_COLUMNS[state.results.groupBy]);
    state.rejected.push(...(where === null ? matches.map(({ id }) => ({ id, count: 1 })) : [{ where, count: matches.length }]));
    run();
  },
  addQuery(match) {
    if (!isInQuery(match)) state.pictures.push(new StoredPicture(match));
    run();
  },
  changed() {
    run();
    loadGallery().catch(showError);
  },
  erased(includes) {
    state.pictures = state.pictures.filter(({ match }) => !match || !includes(match));
    for (const [id, { match }] of state.confirmed) if (includes(match)) state.confirmed.delete(id);
    for (const { id } of listMatches().filter(includes)) forgetThumbnail(id);
    actions.changed();
  },
});

$("panel").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
$("filters").addEventListener("change", (event) => {
  if (event.target.id !== "threshold") run();
});
$("threshold").addEventListener("input", render);
$("results").addEventListener("keydown", moveFocus);
$("forget-token").addEventListener("click", () => {
  forgetToken();
  location.reload();
});
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) renderTimeline(openCompare);
  width = innerWidth;
});

// ---------- start ----------

hooks.askToken = askToken;
if (matchMedia("(max-width: 900px)").matches) $("filters").open = false;
renderLanguage();
try {
  await loadGallery();
} catch (error) {
  showError(error);
}
document.body.dataset.ready = "yes";
