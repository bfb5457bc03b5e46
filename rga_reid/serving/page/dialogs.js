// Dialogs: comparison, label, erasure, camera, token.
import { eraseImages, explainMatch, labelImages, thumbnail } from "./api.js";
import { $, el, fillFrame, frame, icon, openDialog, showMessage } from "./dom.js";
import { actions, cameraName, formatScore, formatThreshold, timeOf } from "./results.js";
import { isBelow, isInQuery, listMatches, queryPictures, sameWhere, state, threshold } from "./state.js";
import { plural, t } from "./strings.js";

const HIDDEN_COLUMNS = ["rank", "position", "score", "id", "camid", "upload"];

// ---------- comparison ----------

let compared = null; // match in the dialog
let chosen = 0; // number of the query picture in the dialog

export function openCompare(match) {
  chosen = 0;
  show(match);
  if (!$("compare").open) openDialog($("compare")).then(() => document.querySelector(`.card[data-id="${CSS.escape(compared.id)}"] .open`)?.focus());
}

/** Show what has changed; the match may be hidden now, then the one in its place is shown. */
export function refreshCompare() {
  if (!$("compare").open) return;
  const matches = listMatches();
  if (!matches.length) $("compare").close();
  else show(matches.find(({ id }) => id === compared.id) ?? matches[Math.min(compared.position, matches.length) - 1]);
}

function show(match) {
  if (match.id !== compared?.id) $("compare-maps").hidden = true;
  compared = match;
  const matches = listMatches();
  $("compare-title").textContent = t("compare");
  $("compare-rank").textContent = t("compare_match", { rank: match.position, count: matches.length });
  fillFrame($("compare-match"), thumbnail(match.id), t("compare_match", { rank: match.position, count: matches.length }));
  showQuery();
  $("compare-score").textContent = t("score", { score: formatScore(match.score) });
  const limit = threshold();
  $("compare-verdict").textContent = limit === null ? t("score_meaning") : t(isBelow(match) ? "below_line" : "above_line", { threshold: formatThreshold(limit) });
  $("compare-columns").replaceChildren(...Object.entries(match).filter(([name]) => !HIDDEN_COLUMNS.includes(name)).flatMap(([name, value]) => [
    el("dt", {}, ["camera", "time", "track", "pid", "path"].includes(name) ? t(`column_${name}`) : name),
    el("dd", {}, value === null ? t("unknown") : name === "time" ? timeOf(match) : String(value)),
  ]));
  const confirmed = state.confirmed.has(match.id);
  $("compare-yes").setAttribute("aria-pressed", String(confirmed));
  $("compare-yes").querySelector("span").textContent = t(confirmed ? "undo_confirm" : "is_person");
  $("compare-add").disabled = isInQuery(match);
  $("compare-add").querySelector("span").textContent = t(isInQuery(match) ? "in_query" : "add_query");
  const { gallery } = state;
  const allows = (role) => !gallery.read_only && (gallery.roles ?? [role]).includes(role);
  $("compare-label").hidden = !allows("write");
  $("compare-erase").hidden = !allows("erase");
  $("compare-explain").hidden = !gallery.explains;
  $("compare-previous").disabled = match.position === 1;
  $("compare-next").disabled = match.position === matches.length;
}

function showQuery() {
  const pictures = queryPictures();
  chosen = Math.min(chosen, pictures.length - 1);
  fillFrame($("compare-query"), pictures[chosen]?.shown ?? null, t("compare_query"));
  $("compare-queries").hidden = pictures.length < 2;
  $("compare-queries").replaceChildren(...pictures.map((picture, number) => el("li", {}, el("button", {
    type: "button", "aria-pressed": String(number === chosen), "aria-label": t("query_picture", { n: number + 1 }), click: () => { chosen = number; $("compare-maps").hidden = true; showQuery(); },
  }, frame(picture.shown, "")))));
}

function step(by) {
  const next = listMatches()[compared.position - 1 + by];
  if (next) show(next);
}

$("compare-previous").addEventListener("click", () => step(-1));
$("compare-next").addEventListener("click", () => step(1));
$("compare").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
$("compare-yes").addEventListener("click", () => actions.confirm([compared]));
$("compare-no").addEventListener("click", () => actions.reject(compared));
$("compare-add").addEventListener("click", () => actions.addQuery(compared));
$("compare-explain").addEventListener("click", explain);
$("compare-label").addEventListener("click", () => openLabel(compared));
$("compare-erase").addEventListener("click", () => openErase(compared));

/** Show the places that make the two pictures similar to the model. */
async function explain() {
  const [match, box] = [compared, $("compare-maps")];
  const shown = await queryPictures()[chosen]?.shown;
  if (!shown) return;
  box.replaceChildren(el("p", { role: "status" }, t("explain_wait")));
  box.hidden = false;
  $("compare-explain").disabled = true;
  try {
    const { maps } = await explainMatch(shown.blob, match.id);
    const figure = (map, name) => el("figure", {}, el("figcaption", {}, name), el("span", { class: "frame" }, el("img", { src: map.map, alt: name })));
    if (compared.id === match.id) {
      box.replaceChildren(el("h3", {}, t("explain_title")), el("p", { class: "hint" }, t("explain_note")),
        el("div", { class: "pair-of-maps" }, figure(maps[0], t("explain_query")), figure(maps[1], t("explain_match"))));
      box.scrollIntoView({ block: "nearest" });
    }
  } catch (error) {
    box.replaceChildren(el("p", { class: "problem", role: "alert" }, icon("warning"), el("span", {}, error.detail || error.message)));
  } finally {
    $("compare-explain").disabled = false;
  }
}

// ---------- which pictures to label or erase ----------

/** Return the choices {text, which, includes}: `which` for the API, `includes` tells whether a match is one of them. */
function scopes(match) {
  const found = [{ text: t("scope_one"), which: { ids: [match.id] }, includes: ({ id }) => id === match.id }];
  for (const [key, columns] of [["track", ["camera", "track"]], ["pid", ["pid"]]]) {
    const where = sameWhere(match, columns);
    if (where === null) continue;
    found.push({ text: t(`scope_${key}`, match), which: { where }, includes: (other) => columns.every((column) => other[column] === match[column]) });
  }
  return found;
}

function fillScopes(dialog, match) {
  const choices = scopes(match);
  dialog.querySelector(".scope > div").replaceChildren(...choices.map(({ text }, number) => el("label", {}, el("input", { type: "radio", name: `${dialog.id}-scope`, value: number, checked: number === 0 }), el("span", {}, text))));
  dialog.querySelector(".problem").hidden = true;
  return () => choices[dialog.querySelector(".scope :checked").value];
}

/** Send what a dialog asks for when its form is submitted; the dialog stays open, with the message, if that fails. */
async function submitDialog(dialog, send) {
  const form = dialog.querySelector("form");
  form.onsubmit = async (event) => {
    event.preventDefault();
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    try {
      await send();
      dialog.close();
    } catch (error) {
      const problem = dialog.querySelector(".problem");
      problem.replaceChildren(icon("warning"), el("span", {}, error.detail || error.message));
      problem.hidden = false;
    } finally {
      button.disabled = false;
    }
  };
  await openDialog(dialog);
}

function openLabel(match) {
  const scope = fillScopes($("label-dialog"), match);
  $("label-name").value = match.pid ?? "";
  const known = new Set(listMatches().map(({ pid }) => pid).filter((pid) => pid !== null));
  $("known-persons").replaceChildren(...[...known].map((pid) => el("option", { value: pid })));
  submitDialog($("label-dialog"), async () => {
    const pid = $("label-name").value.trim() || null;
    const { which, includes } = scope();
    const { changed } = await labelImages(which, pid);
    const shown = [...listMatches(), ...state.pictures.flatMap(({ match }) => match ?? [])];
    for (const match of shown.filter(includes)) match.pid = pid; // of results until they are searched again
    actions.changed();
    showMessage(plural("labelled", changed), { done: true });
  });
  $("label-name").select();
}

function openErase(match) {
  const scope = fillScopes($("erase-dialog"), match);
  submitDialog($("erase-dialog"), async () => {
    const { which, includes } = scope();
    const { deleted } = await eraseImages(which);
    actions.erased(includes);
    showMessage(plural("erased", deleted), { done: true });
  });
}

// ---------- camera ----------

/** Take a picture with the camera of this computer; returns a blob, or null if the user does not. */
export async function takePicture() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, height: { ideal: 1280 } } });
  } catch (error) {
    showMessage(t("capture_failed", { detail: error.message }));
    return null;
  }
  const video = $("video");
  video.srcObject = stream;
  let taken = null;
  $("capture").onclick = async () => {
    const canvas = el("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    taken = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
    $("capture-dialog").close();
  };
  await openDialog($("capture-dialog"));
  for (const track of stream.getTracks()) track.stop();
  video.srcObject = null;
  return taken;
}

// ---------- token ----------

/** Ask for a token; returns it, or null. */
export async function askToken(refused) {
  const dialog = $("token-dialog");
  dialog.querySelector(".problem").hidden = !refused;
  $("token").value = "";
  let given = null;
  dialog.querySelector("form").onsubmit = () => { given = $("token").value.trim() || null; };
  await openDialog(dialog);
  $("token").value = "";
  return given;
}
