
// ---------- feature map: data.map ----------
const map = data.map, plot = $("map"), seen = $("map-seen"), near = $("neighbours");
const SHAPES = { v: "M-6 -5H6L0 6z", o: "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0z", "^": "M-6 5H6L0 -6z" };
const SIDE = 600, EDGE = 24; // units of the plot
const placeOf = (n) => [EDGE + map.x[n] * (SIDE - 2 * EDGE), EDGE + map.y[n] * (SIDE - 2 * EDGE)];
let pointed = -1, selected = -1;

for (let n = 0; n < map.images.length; n++) {
  const [cx, cy] = placeOf(n);
  plot.append(svgNode("circle", { class: "image", cx, cy, r: 3 }));
}
const dots = [...plot.querySelectorAll(".image")];
for (const group of map.groups) {
  const rows = group.points.sort((a, b) => (a in group.labels) - (b in group.labels)); // the queries on top
  for (const n of rows) {
    const [x, y] = placeOf(n), label = group.labels[n];
    const mark = svgNode("path", { class: "mark", d: SHAPES[group.marker], fill: group.colour, transform: `translate(${x} ${y}) scale(${label ? 1.7 : 0.9})` });
    dots[n].remove(); plot.append(mark); dots[n] = mark;
    if (label) plot.append(svgNode("text", { x: x + 13, y: y - 8 }, label));
  }
}
const overlay = svgNode("g");
plot.append(overlay);

const describe = (image) => [
  image.pid === null ? t("person_unknown") : t("person", { value: image.pid }),
  ...(image.camid === null ? [] : [t("camera", { value: image.camid })]),
  t(image.query ? "neighbour_query" : "neighbour_gallery"),
].join(", ");
const element = (name, className, ...children) => {
  const made = document.createElement(name);
  made.className = className; made.append(...children);
  return made;
};
function crop(n) {
  const { width, height, columns } = map.crop, box = element("span", "crop");
  box.style.backgroundPosition = `${-width * (n % columns)}px ${-height * Math.floor(n / columns)}px`;
  return box;
}
/** A picture that selects its image. */
function cropButton(n, ...lines) {
  const button = element("button", "found-image", crop(n), ...lines.map((line) => element("span", "", line)));
  button.type = "button"; button.title = `${describe(map.images[n])}\n${map.images[n].path}`;
  button.addEventListener("click", () => select(n));
  button.addEventListener("pointerenter", () => pointAt(n));
  return button;
}
function pointAt(n) {
  pointed = n;
  drawOverlay();
  seen.replaceChildren();
  if (n < 0) return;
  seen.append(crop(n), element("span", "", describe(map.images[n]), document.createElement("br"), map.images[n].path));
}
function drawOverlay() {
  overlay.replaceChildren();
  if (selected >= 0) {
    const [x1, y1] = placeOf(selected);
    for (const n of map.neighbours[selected]) {
      const [x2, y2] = placeOf(n);
      overlay.append(svgNode("line", { class: "near", x1, y1, x2, y2 }), svgNode("circle", { class: "ring", cx: x2, cy: y2, r: 8 }));
    }
    overlay.append(svgNode("circle", { class: "ring chosen", cx: x1, cy: y1, r: 11 }));
  }
  if (pointed >= 0) {
    const [cx, cy] = placeOf(pointed);
    overlay.append(svgNode("circle", { class: "ring", cx, cy, r: 11 }));
  }
}
function select(n) {
  selected = n;
  near.replaceChildren();
  if (n >= 0) {
    const image = map.images[n], list = element("div", "images");
    map.neighbours[n].forEach((other, place) => {
      const mark = image.pid === null || map.images[other].pid === null ? "" : map.images[other].pid === image.pid ? "✓" : "✗";
      const button = cropButton(other, `${mark} ${map.similarities[n][place].toFixed(3)}`);
      if (mark) { button.classList.add(mark === "✓" ? "correct" : "wrong"); button.title = `${t(mark === "✓" ? "neighbour_same" : "neighbour_other")}: ${button.title}`; }
      list.append(button);
    });
    near.append(element("div", "about", crop(n), element("span", "", describe(image), document.createElement("br"), image.path)), list);
  } else near.append(t("neighbours_none"));
  pointAt(n);
}
const eventPlace = (event) => {
  const box = plot.getBoundingClientRect();
  return [(event.clientX - box.left) * SIDE / box.width, (event.clientY - box.top) * SIDE / box.height];
};
function nearest([x, y], allowed = () => true) {
  let best = -1, least = Infinity;
  for (let n = 0; n < map.images.length; n++) {
    if (!allowed(n)) continue;
    const [px, py] = placeOf(n), far = Math.hypot(px - x, py - y);
    if (far < least) { least = far; best = n; }
  }
  return best;
}
plot.addEventListener("pointermove", (event) => pointAt(nearest(eventPlace(event))));
plot.addEventListener("pointerleave", () => pointAt(selected));
plot.addEventListener("click", (event) => select(nearest(eventPlace(event))));
plot.addEventListener("keydown", (event) => {
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
  if (event.key === "Enter" && pointed >= 0) select(pointed);
  if (!dx && !dy) return;
  event.preventDefault();
  const [x, y] = pointed < 0 ? [SIDE / 2, SIDE / 2] : placeOf(pointed);
  const ahead = nearest([x + 12 * dx, y + 12 * dy], (n) => { // the nearest one within 45 degrees of the direction
    const [px, py] = placeOf(n), along = (px - x) * dx + (py - y) * dy;
    return n !== pointed && along > 0 && along >= Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
  });
  if (ahead >= 0) pointAt(ahead);
});

// ---------- search by person or file ----------
const MAX_FOUND = 60; // pictures listed
function find() {
  const wanted = $("find").value.trim().toLowerCase();
  const fits = (image) => String(image.pid ?? "") === wanted || image.path.toLowerCase().includes(wanted);
  const hits = wanted ? map.images.flatMap((image, n) => (fits(image) ? [n] : [])) : [];
  const chosen = new Set(hits);
  dots.forEach((dot, n) => dot.classList.toggle("faded", Boolean(wanted) && !chosen.has(n)));
  $("found").textContent = wanted ? t("found", { count: hits.length, all: map.images.length }) : "";
  $("hits").replaceChildren(...hits.slice(0, MAX_FOUND).map((n) => cropButton(n, String(map.images[n].pid ?? ""))));
}
$("find").addEventListener("input", find);
const redrawCharts = languageChanged;
languageChanged = () => { redrawCharts(); find(); select(selected); };
select(-1);
