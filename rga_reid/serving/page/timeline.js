// Sightings by camera and time, as an SVG with one lane for each camera.
import { $, el, svg } from "./dom.js";
import { cameraName, describeMatch } from "./results.js";
import { isBelow, listMatches, state, threshold } from "./state.js";
import { formatTime, locale, plural, t } from "./strings.js";

const LANE = 30, TOP = 6, AXIS = 24, RADIUS = 6, TICK_WIDTH = 64; // pixels
const SECOND = 1000, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const STEPS = [1, 2, 5, 10, 15, 30].map((n) => n * SECOND)
  .concat([1, 2, 5, 10, 15, 30].map((n) => n * MINUTE), [1, 2, 3, 6, 12].map((n) => n * HOUR), [1, 2, 7, 14, 30, 90, 365, 3650].map((n) => n * DAY));

/** Draw the timeline of the results; `open` is called with a match that is chosen. */
export function renderTimeline(open) {
  const all = listMatches();
  const matches = all.filter((match) => match.time !== null).sort((a, b) => Date.parse(a.time) - Date.parse(b.time));
  $("timeline").hidden = !matches.length;
  if (!matches.length) return;
  const times = matches.map((match) => Date.parse(match.time));
  const range = times.at(-1) - times[0];
  const pad = range ? range * 0.04 : 30 * MINUTE;
  const [start, end] = [times[0] - pad, times.at(-1) + pad];
  const lanes = [...new Set(matches.map(cameraName))].sort((a, b) => a.localeCompare(b, locale(), { numeric: true }));
  const width = Math.max(240, $("timeline-chart").clientWidth);
  const left = Math.min(width * 0.34, 24 + 7 * Math.max(...lanes.map((name) => name.length + name.replace(/[ -~]/g, "").length)));
  const height = TOP + lanes.length * LANE + AXIS;
  const x = (time) => left + ((time - start) / (end - start)) * (width - left - 12);
  const y = (match) => TOP + (lanes.indexOf(cameraName(match)) + 0.5) * LANE;
  const label = t("timeline_label", { from: formatTime(times[0]), to: formatTime(times.at(-1)) });
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": label });
  for (const tick of ticks(start, end, (width - left) / TICK_WIDTH)) {
    const atEnd = width - x(tick.time) < TICK_WIDTH / 2;
    chart.append(
      svg("line", { class: "tick", x1: x(tick.time), x2: x(tick.time), y1: TOP, y2: height - AXIS }),
      svg("text", { x: atEnd ? width : x(tick.time), y: height - 7, "text-anchor": atEnd ? "end" : "middle" }, tick.text),
    );
  }
  lanes.forEach((name, row) => {
    const middle = TOP + (row + 0.5) * LANE;
    chart.append(
      svg("line", { class: "lane", x1: left, x2: width, y1: middle, y2: middle }),
      svg("text", { class: "camera-name", x: 0, y: middle + 4 }, name),
    );
  });
  for (const track of tracks(matches)) {
    chart.append(svg("line", { class: "span", x1: x(Date.parse(track[0].time)), x2: x(Date.parse(track.at(-1).time)), y1: y(track[0]), y2: y(track[0]) }));
  }
  const marks = matches.map((match, number) => {
    const mark = shape(markOf(match), x(times[number]), y(match));
    mark.setAttribute("tabindex", number ? "-1" : "0");
    mark.setAttribute("role", "button");
    mark.setAttribute("data-id", match.id);
    mark.setAttribute("aria-label", describeMatch(match));
    mark.append(svg("title", {}, describeMatch(match)));
    mark.addEventListener("click", () => open(match));
    mark.addEventListener("keydown", (event) => moveMark(event, marks, number, () => open(match)));
    return mark;
  });
  const isFirst = (mark) => mark.classList.contains("below"); // other marks are drawn over them
  chart.append(...marks.filter(isFirst), ...marks.filter((mark) => !isFirst(mark)));
  $("timeline-chart").replaceChildren(chart);
  renderLegend(matches, all.length - matches.length);
}

function markOf(match) {
  if (state.confirmed.has(match.id)) return "confirmed";
  return isBelow(match) ? "below" : "above";
}

function shape(kind, x, y) {
  if (kind !== "confirmed") return svg("circle", { class: `mark ${kind}`, cx: x, cy: y, r: RADIUS });
  const r = RADIUS + 2;
  return svg("path", { class: "mark confirmed", d: `M${x} ${y - r}L${x + r} ${y}L${x} ${y + r}L${x - r} ${y}z` });
}

function moveMark(event, marks, number, open) {
  const next = { ArrowRight: number + 1, ArrowLeft: number - 1, Home: 0, End: marks.length - 1 }[event.key];
  if (event.key === "Enter" || event.key === " ") open();
  else if (next === undefined) return;
  event.preventDefault();
  if (next !== undefined && marks[next]) {
    marks[number].setAttribute("tabindex", "-1");
    marks[next].setAttribute("tabindex", "0");
    marks[next].focus();
  }
}

/** Return the matches of each track, by time. */
function tracks(matches) {
  const found = new Map();
  for (const match of matches.filter(({ track }) => track !== null)) {
    const key = JSON.stringify([match.camera, match.track]);
    found.set(key, [...(found.get(key) ?? []), match]);
  }
  return found.values();
}

/** Return times on round numbers of local time, at most `most` of them, with their texts. */
function ticks(start, end, most) {
  const several = new Date(start).toDateString() !== new Date(end).toDateString();
  const fits = (step) => (end - start) / step <= (several && step < DAY ? most / 2 : most); // with the date, texts are longer
  const step = STEPS.find(fits) ?? STEPS.at(-1);
  const date = { month: "short", day: "numeric" };
  const clock = { hour: "2-digit", minute: "2-digit", hourCycle: "h23", ...(step < MINUTE && { second: "2-digit" }) };
  const style = step >= DAY ? { ...date, ...(step >= 90 * DAY && { year: "numeric" }) } : several ? { ...date, ...clock } : clock;
  const format = new Intl.DateTimeFormat(locale(), style);
  const shift = (time) => new Date(time).getTimezoneOffset() * MINUTE; // another one after the clocks change
  const found = [];
  for (let local = Math.ceil((start - shift(start)) / step) * step; ; local += step) {
    const time = local + shift(local + shift(start));
    if (time > end) return found;
    found.push({ time, text: format.format(time) });
  }
}

function renderLegend(matches, untimed) {
  const names = { above: threshold() === null ? t("mark_result") : t("mark_above"), below: t("mark_below"), confirmed: t("mark_confirmed") };
  const present = new Set(matches.map(markOf));
  const times = matches.map((match) => formatTime(match.time));
  $("timeline-legend").replaceChildren(
    el("li", {}, times[0] === times.at(-1) ? times[0] : `${times[0]} – ${times.at(-1)}`),
    ...Object.keys(names).filter((kind) => present.has(kind)).map((kind) => el("li", {}, svg("svg", { viewBox: "0 0 16 16", height: 16, "aria-hidden": "true" }, shape(kind, 8, 8)), names[kind])),
    ...(untimed ? [el("li", {}, plural("untimed", untimed))] : []),
  );
}
