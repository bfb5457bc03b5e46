// ---------- guided tour: six steps from "a position is a row" to "why G[i, j] is not G[j, i] in RGA" ----------
let tour = 0; // step, or 0
let before = null; // the view from which the tour was started
const positionPlaces = (wanted) => {
  for (const [e, shown] of data.exhibits.entries()) {
    if (shown.photo !== state.photo || !shown.words.en.directions || !wanted(shown)) continue; // the texts are about known modules
    const stages = [shown.start, ...shown.stages.keys()];
    for (const s of stages) {
      const m = shown.stages[s].matrices.findIndex((one) => one.kind === "positions" && one.size[0] === one.size[1]);
      if (m >= 0) return [e, s, m];
    }
  }
  return null;
};
const placeOfBoth = () => positionPlaces(readsBoth);
const placeOfAny = () => placeOfBoth() ?? positionPlaces((shown) => shown.trained) ?? positionPlaces(() => true);
const sumsToOne = (shown) => shown.words.en.row.includes("sums to 1");
const placeOfShares = () => positionPlaces((shown) => sumsToOne(shown) && shown.trained) ?? positionPlaces(sumsToOne);
const STEPS = [
  { at: placeOfAny, marked: ["photo", "matrix"] },
  { at: placeOfAny, marked: ["row"] },
  { at: placeOfAny, marked: [], open: true },
  { at: placeOfAny, marked: ["column", "matrix"] },
  { at: () => placeOfShares() ?? placeOfAny(), marked: ["row", "readout"] },
  { at: placeOfAny, marked: ["difference", "readout"] },
];

async function goTour(step) {
  const starts = step && !tour;
  tour = step;
  for (const element of document.querySelectorAll(".toured")) element.classList.remove("toured");
  $("tour").hidden = !step;
  remember({ tour: step || null });
  if (!step) {
    if (before) { Object.assign(state, before); before = null; choose(); }
    return $("start-tour").focus({ preventScroll: true });
  }
  if (starts) before = { ...state, open: new Set(state.open) };
  const { at, marked, open } = STEPS[step - 1], place = at();
  if (!place) return goTour(0);
  const [e, s, m] = place;
  Object.assign(state, { exhibit: e, stage: s, matrix: m, kind: "positions" });
  await choose();
  if (starts && matrix().calculation) { // points whose vectors the page has, so that every step shows the entry that one step computes
    await ready(matrix());
    const { left, right } = keptEntry(matrix()), [v, u] = middle(left[1], matrix().grid), [ov, ou] = middle(right[1], matrix().key_grid);
    Object.assign(state, { v, u, ov, ou });
    show();
  }
  for (const name of marked) ($(`fig-${name}`) ?? $(name)).classList.add("toured");
  showTour();
  let target = $("look");
  if (open) {
    await openStep(matrix().symbol, true);
    target = boxes().find((box) => box.dataset.symbol === matrix().symbol) ?? target;
    target.classList.add("toured");
    // on a small screen the box is higher than the room between photo and tour: show the calculation
    const room = $("tour").getBoundingClientRect().top - $("dock").getBoundingClientRect().bottom;
    if (innerWidth <= 640 && target.offsetHeight > room) target = target.querySelector(".calc") ?? target;
  }
  $("tour").classList.remove("left");
  target.scrollIntoView({ block: "start" });
  $("tour").classList.toggle("left", Boolean(open) && covers($("tour"), target));
  // on a small screen, the picture that the step is about may be below the window or under the step
  const picture = marked.map((name) => $(`fig-${name}`)).find((figure) => figure && !$("dock").contains(figure));
  if (picture && (picture.getBoundingClientRect().bottom > innerHeight || covers($("tour"), picture))) picture.scrollIntoView({ block: "start" });
  $("tour-next").focus({ preventScroll: true });
}
/** Whether one element hides a part of another. */
function covers(above, below) {
  const a = above.getBoundingClientRect(), b = below.getBoundingClientRect();
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}
function showTour() {
  if (!tour || !matrix()?.ready || matrix().kind !== "positions") return;
  const { m, node, forward, backward, total } = readPositions(), both = readsBoth(exhibit());
  const values = {
    symbol: m.symbol, node: node + 1, h: m.grid[0], w: m.grid[1], n: m.size[0], keys: m.size[1], kh: m.key_grid[0], kw: m.key_grid[1], name: wordsOf(exhibit()).title, stage: stage().stage,
    row: formatNumber(forward), column: formatNumber(backward), sum: formatNumber(total), asymmetry: formatNumber(m.asymmetry ?? 0),
  };
  const key = tour === 5 && !sumsToOne(exhibit()) ? "tour_5_plain" : tour === 6 && !both ? "tour_6_plain" : `tour_${tour}`;
  set("tour-step", t("tour_step", { n: tour, count: STEPS.length }));
  set("tour-text", t(key, values));
  $("tour-back").disabled = tour === 1; $("tour-next").disabled = tour === STEPS.length;
}
$("start-tour").addEventListener("click", () => goTour(1));
$("tour-back").addEventListener("click", () => goTour(tour - 1));
$("tour-next").addEventListener("click", () => goTour(tour + 1));
$("tour-end").addEventListener("click", () => goTour(0));
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && tour) goTour(0); });
