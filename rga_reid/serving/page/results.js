// The list of results: groups of cards above and below the threshold.
import { thumbnail } from "./api.js";
import { $, el, frame, icon } from "./dom.js";
import { isBelow, numberMatches, state, threshold } from "./state.js";
import { formatNumber, formatTime, plural, t } from "./strings.js";

/** What the buttons of a card do: open(match), confirm(matches), reject(match), rejectGroup(group). Set by page.js. */
export const actions = {};

/** Write a score, with more than three decimals where these would hide on which side of the threshold it is. */
export function formatScore(score) {
  const limit = threshold();
  let decimals = 3;
  while (limit !== null && score !== limit && decimals < 6 && score.toFixed(decimals) === limit.toFixed(decimals)) decimals += 1;
  return score.toFixed(decimals);
}

export const formatThreshold = (limit) => limit.toLocaleString("en", { minimumFractionDigits: 3, maximumFractionDigits: 6 });

export const cameraName = (match) => (match.camera === null ? t("camera_unknown") : t("camera", { value: match.camera }));
const trackName = (match) => (match.track === null ? t("track_unknown") : t("track", { value: match.track }));
const JUNK = -1; // pid of background and of people who are cut off
const personName = ({ pid }) => (pid === null ? t("person_unknown") : pid === JUNK ? t("person_none") : t("person", { value: pid }));
export const timeOf = (match) => (match.time === null ? t("time_unknown") : formatTime(match.time));

/** Return the name of a result for screen readers. */
export function describeMatch(match) {
  const details = [cameraName(match), match.track !== null && trackName(match), timeOf(match), match.pid !== null && personName(match), isBelow(match) && t("below"), state.confirmed.has(match.id) && t("is_person")];
  return t("card", { rank: match.position, score: formatScore(match.score), details: details.filter(Boolean).join(", ") });
}

export function renderResults() {
  const { groups, groupBy } = state.results;
  numberMatches();
  const limit = threshold();
  const flat = groupBy === null;
  const isAbove = (group) => limit === null || group.score >= limit;
  const above = groups.filter(isAbove);
  const below = groups.filter((group) => !isAbove(group));
  const rendered = (some) => el("div", { class: flat ? "flat" : "groups" }, ...some.map((group) => (flat ? card(group.matches[0], null) : groupBox(group, groupBy))));
  renderStatus(groups, groupBy);
  const first = above.length ? [rendered(above)] : nobody(groups, limit);
  if (above.length && !flat) first[0].prepend(...confirmedBox());
  else first.unshift(...confirmedBox());
  $("above").replaceChildren(...first);
  if (!below.length) {
    $("below").replaceChildren();
    return;
  }
  const count = below.reduce((sum, group) => sum + group.matches.length, 0);
  $("below").replaceChildren(
    el("p", { class: "line" }, t("threshold_line", { threshold: formatThreshold(limit) })),
    el("details", { open: above.length > 0 }, el("summary", {}, plural("below_count", count)), rendered(below)),
  );
}

function renderStatus(groups, groupBy) {
  const count = groups.reduce((sum, { matches }) => sum + matches.length, 0);
  const figures = [count ? plural("summary_matches", count) : t("no_results")];
  if (count && groupBy) figures[0] += ` ${plural(`summary_${groupBy}`, groups.length)}`;
  if (count) figures.push(t("summary_best", { score: formatScore(bestScore(groups)) }));
  if (state.confirmed.size) figures.push(t("summary_confirmed", { n: formatNumber(state.confirmed.size) }));
  const notes = [t("score_meaning")];
  if (threshold() === null) notes.push(t("no_threshold"));
  else if (state.gallery.threshold_note) notes.push(t(state.gallery.count < state.gallery.threshold_gallery_size ? "threshold_strict" : "threshold_note"));
  if (state.results.untracked) notes.push(t("no_tracks"));
  $("status").replaceChildren(el("p", { class: "figures" }, figures.join(" · ")), ...notes.map((note) => el("p", { class: "hint" }, note)));
}

const bestScore = (groups) => Math.max(...groups.map((group) => group.score));

/** Say honestly that no picture reaches the threshold. */
function nobody(groups, limit) {
  if (!groups.length) return [];
  const values = { threshold: formatThreshold(limit), best: formatScore(bestScore(groups)) };
  return [el("div", { class: "nobody", id: "nobody" }, el("h2", {}, icon("warning", "bad"), t(state.confirmed.size ? "nobody_else" : "nobody")), el("p", {}, t("nobody_detail", values)))];
}

/** Return the group of the confirmed pictures, which the search leaves out of its results. */
function confirmedBox() {
  const confirmed = [...state.confirmed.values()];
  if (!confirmed.length) return [];
  return [el("section", { class: "group confirmed", "aria-labelledby": "confirmed-title" },
    el("header", {}, el("h3", { id: "confirmed-title" }, icon("check", "good"), " ", t("confirmed", { n: formatNumber(confirmed.length) }))),
    el("div", { class: "cards" }, ...confirmed.map(({ match }) => card(match, null))))];
}

function groupBox(group, groupBy) {
  const [first] = group.matches;
  const names = { track: () => `${cameraName(first)} · ${trackName(first)}`, camera: () => cameraName(first), pid: () => personName(first) };
  const judged = group.matches.length > 1 && groupBy !== "camera" && first[groupBy] !== null;
  return el("section", { class: "group", "aria-label": names[groupBy]() },
    el("header", {},
      el("h3", {}, names[groupBy]()),
      judged && el("div", { class: "judge", role: "group", "aria-label": t("group_actions") },
        ...judgeButtons(false, () => actions.confirm(group.matches), () => actions.rejectGroup(group)))),
    el("div", { class: "cards" }, ...group.matches.map((match) => card(match, groupBy))));
}

function judgeButtons(confirmed, confirm, reject) {
  const yes = confirmed ? t("undo_confirm") : t("is_person");
  return [
    el("button", { type: "button", class: "yes", title: yes, "aria-label": t("is_person"), "aria-pressed": String(confirmed), click: confirm }, icon("check", confirmed ? "" : "good")),
    el("button", { type: "button", class: "no", title: t("not_person"), "aria-label": t("not_person"), click: reject }, icon("cross", "bad")),
  ];
}

function card(match, groupBy) {
  const confirmed = state.confirmed.has(match.id);
  const below = isBelow(match);
  const lines = [];
  if (groupBy !== "track" && groupBy !== "camera") lines.push(cameraName(match));
  if (match.time !== null) lines.push(timeOf(match));
  if (groupBy === "camera" && match.track !== null) lines.push(trackName(match));
  if (groupBy !== "pid" && match.pid !== null) lines.push(personName(match));
  const badge = confirmed ? el("span", { class: "badge" }, icon("check"), t("mark_confirmed")) : below && el("span", { class: "badge" }, t("below"));
  const box = frame(thumbnail(match.id), "");
  return el("div", { class: `card${confirmed ? " is-confirmed" : ""}${below ? " is-below" : ""}`, "data-id": match.id },
    el("button", { type: "button", class: "open", "aria-label": describeMatch(match), click: () => actions.open(match) },
      el("span", { class: "picture" }, box, badge),
      el("span", { class: "caption" },
        el("span", { class: "first" }, el("b", {}, formatScore(match.score)), el("span", { class: "soft" }, `#${match.position}`)),
        ...lines.map((line) => el("span", {}, line)))),
    el("div", { class: "judge" }, ...judgeButtons(confirmed, () => actions.confirm([match]), () => actions.reject(match))));
}

/** Move the focus among the results with the arrow keys: to the neighbour, or to the nearest in the next row. */
export function moveFocus(event) {
  if (!event.key.startsWith("Arrow") || !event.target.classList.contains("open")) return;
  const cards = [...document.querySelectorAll("#results .open")].filter((button) => button.offsetParent !== null);
  const here = cards.indexOf(event.target);
  const box = event.target.getBoundingClientRect();
  const middle = (rect) => rect.left + rect.width / 2;
  let next = null;
  if (event.key === "ArrowRight") next = cards[here + 1];
  else if (event.key === "ArrowLeft") next = cards[here - 1];
  else {
    const down = event.key === "ArrowDown";
    let best = Infinity;
    for (const other of cards) {
      const rect = other.getBoundingClientRect();
      const rows = down ? rect.top - box.top : box.top - rect.top;
      if (rows < box.height / 2) continue;
      const distance = rows * 10 + Math.abs(middle(rect) - middle(box));
      if (distance < best) [best, next] = [distance, other];
    }
  }
  event.preventDefault();
  next?.focus();
}

/** Return a function that gives the focus back to the card that has it, or to the one in its place, after rendering. */
export function keepFocus() {
  const focused = document.activeElement;
  const id = focused?.closest("#results .card")?.dataset.id;
  if (id === undefined) return () => {};
  const kind = [...focused.classList].find((name) => ["open", "yes", "no"].includes(name));
  const order = [...document.querySelectorAll("#results .card")].findIndex((element) => element.dataset.id === id);
  return () => {
    const cards = [...document.querySelectorAll("#results .card")];
    const found = cards.find((element) => element.dataset.id === id) ?? cards[Math.min(order, cards.length - 1)];
    found?.querySelector(`.${kind}`)?.focus();
  };
}
