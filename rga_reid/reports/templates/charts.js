
// ---------- charts: data.charts, each drawn in the figure of its name ----------
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "light-dark(#000, #fff)", "#8a7f00"];
const DASHES = ["", "7 4", "2 3"];
const svgNode = (name, values = {}, text = "") => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(values)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
};
const colourOf = (number) => PALETTE[number % PALETTE.length];
const dashOf = (number) => DASHES[Math.floor(number / PALETTE.length) % DASHES.length];
const shortNumber = (value) => String(Number(value.toPrecision(4))).replace("-", "−");
/** Round values from low to high, about as many as wanted. */
function roundTicks(low, high, wanted) {
  const raw = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, n) => Number(((first + n) * step).toPrecision(12)));
}
function extent(values, margin) {
  const low = Math.min(...values), high = Math.max(...values), more = margin * (high - low || Math.abs(high) || 1);
  return [low - more, high + more];
}

function showChart(figure, chart) {
  const hidden = new Set(), svg = svgNode("svg", { tabindex: 0, role: "img" });
  const tip = document.createElement("div"), names = document.createElement("div");
  tip.className = "tip"; tip.setAttribute("role", "status"); names.className = "names";
  let places = [], chosen = -1, view = null;
  const centre = (one, n) => (chart.kind === "steps" ? (one.x[n] + one.x[n + 1]) / 2 : one.x[n]);
  const visible = () => chart.series.map((one, number) => ({ ...one, number })).filter((one) => !hidden.has(one.number));

  function draw() {
    const width = Math.max(260, figure.clientWidth), height = Math.round(Math.min(360, 0.62 * width));
    const box = { left: 46, right: width - 14, top: 12, bottom: height - 42 };
    const shown = visible(), points = chart.kind === "points";
    const xs = shown.flatMap((one) => one.x), ys = shown.flatMap((one) => [...one.y, ...one.low, ...one.high]);
    let [left, right] = xs.length ? extent(xs, points ? 0.08 : 0) : [0, 1];
    if (left === right) [left, right] = [left - 1, right + 1];
    let [low, high] = ys.length ? extent(ys, 0.06) : [0, 1];
    if (chart.kind === "steps" || (low < 0 && Math.min(...ys) >= 0)) low = 0;
    if (points && left < 0) left = 0;
    const whole = chart.kind === "lines";
    const ticks = roundTicks(left, right, width < 400 ? 4 : 7).filter((one) => !whole || Number.isInteger(one));
    // the last label may be at the end of its axis; a digit is up to 7 pixels wide
    box.right = width - Math.max(14, ...ticks.slice(-1).map((one) => 3.5 * shortNumber(one).length + 2));
    const x = (value) => box.left + (value - left) / (right - left) * (box.right - box.left);
    const y = (value) => box.bottom - (value - low) / (high - low) * (box.bottom - box.top);
    view = { x, y, box, width };
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-label", t(`chart_${chart.name}`));
    svg.replaceChildren();
    for (const value of roundTicks(low, high, 5)) {
      svg.append(svgNode("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }));
      svg.append(svgNode("text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, shortNumber(value)));
    }
    for (const value of ticks) {
      svg.append(svgNode("text", { x: x(value), y: box.bottom + 17, "text-anchor": "middle" }, shortNumber(value)));
    }
    svg.append(svgNode("line", { class: "grid", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
    svg.append(svgNode("text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, t(`chart_${chart.name}_x`)));
    svg.append(svgNode("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(11 ${(box.top + box.bottom) / 2}) rotate(-90)` }, t(`chart_${chart.name}_y`)));
    for (const one of shown) drawSeries(one, x, y);
    svg.append(svgNode("g", { class: "marks" }));
    places = points ? shown.map((one, n) => n) : [...new Set(shown.flatMap((one) => one.y.map((_, n) => centre(one, n))))].sort((a, b) => a - b);
    chosen = Math.min(chosen, places.length - 1);
    choose(chosen);
  }
  function drawSeries(one, x, y) {
    const style = `stroke: ${colourOf(one.number)}`, fill = `fill: ${colourOf(one.number)}`;
    const at = (values) => values.map((value, n) => `${x(one.x[n])} ${y(value)}`);
    if (chart.kind === "points") {
      if (one.low.length) svg.append(svgNode("line", { style, "stroke-width": 2, x1: x(one.x[0]), x2: x(one.x[0]), y1: y(one.low[0]), y2: y(one.high[0]) }));
      const [cx, cy] = [x(one.x[0]), y(one.y[0])];
      svg.append(dashOf(one.number) ? svgNode("rect", { class: "dot", style: fill, x: cx - 5, y: cy - 5, width: 10, height: 10 })
        : svgNode("circle", { class: "dot", style: fill, cx, cy, r: 6 }));
      return;
    }
    if (one.low.length) svg.append(svgNode("path", { class: "band", style: fill, d: `M${at(one.low).join("L")}L${at(one.high).reverse().join("L")}Z` }));
    const steps = one.y.map((value, n) => `${n ? "V" : `M${x(one.x[0])} ${y(0)}V`}${y(value)}H${x(one.x[n + 1])}`).join("") + `V${y(0)}`;
    const d = chart.kind === "steps" ? steps : `M${at(one.y).join("L")}`;
    if (chart.kind === "steps" && chart.series.length === 1) svg.append(svgNode("path", { class: "band", style: fill, d }));
    svg.append(svgNode("path", { class: "curve", style, "stroke-dasharray": dashOf(one.number), d }));
    if (one.y.length === 1 && chart.kind === "lines") svg.append(svgNode("circle", { class: "dot", style: fill, cx: x(one.x[0]), cy: y(one.y[0]), r: 4 }));
  }

  /** Show the values at a place: those of every line, or of one point. */
  function choose(number) {
    chosen = number;
    const marks = svg.querySelector(".marks");
    marks.replaceChildren(); tip.replaceChildren();
    if (number < 0) return;
    const { x, y, box, width } = view, points = chart.kind === "points";
    const found = points ? [{ one: visible()[number], n: 0 }] : visible()
      .map((one) => ({ one, n: one.y.findIndex((_, n) => centre(one, n) === places[number]) })).filter(({ n }) => n >= 0);
    const place = points ? found[0].one.x[0] : places[number];
    if (!points) marks.append(svgNode("line", { class: "guide", x1: x(place), x2: x(place), y1: box.top, y2: box.bottom }));
    const rows = [];
    const row = (name, value, colour) => {
      const line = document.createElement("p"), bold = document.createElement("b");
      if (colour) { const key = document.createElement("i"); key.style.background = colour; line.append(key); }
      bold.textContent = value; line.append(name, bold); rows.push(line);
    };
    const one = found[0]?.one, n = found[0]?.n;
    const interval = chart.kind === "steps" && one ? t("chart_range", { low: shortNumber(one.x[n]), high: shortNumber(one.x[n + 1]) }) : null;
    row(t(`chart_${chart.name}_x`), interval ?? shortNumber(place));
    for (const { one, n } of found) {
      const range = one.low.length ? ` (${t("chart_range", { low: shortNumber(one.low[n]), high: shortNumber(one.high[n]) })})` : "";
      row(one.name, shortNumber(one.y[n]) + range, colourOf(one.number));
      marks.append(svgNode("circle", { class: "dot", style: `fill: ${colourOf(one.number)}`, cx: x(place), cy: y(one.y[n]), r: points ? 8 : 4 }));
    }
    tip.append(...rows);
    const scale = figure.clientWidth / width, right = x(place) > (box.left + box.right) / 2;
    tip.style.top = `${svg.offsetTop + box.top}px`;
    tip.style.left = right ? "auto" : `${x(place) * scale + 12}px`;
    tip.style.right = right ? `${(width - x(place)) * scale + 12}px` : "auto";
  }
  const point = (event) => {
    const bounds = svg.getBoundingClientRect(), scale = view.width / bounds.width;
    const px = (event.clientX - bounds.left) * scale, py = (event.clientY - bounds.top) * scale;
    const far = chart.kind === "points"
      ? (n) => Math.hypot(view.x(visible()[n].x[0]) - px, view.y(visible()[n].y[0]) - py)
      : (n) => Math.abs(view.x(places[n]) - px);
    choose(places.reduce((best, _, n) => (best < 0 || far(n) < far(best) ? n : best), -1));
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") choose(-1); });
  svg.addEventListener("blur", () => choose(-1));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") choose(-1);
    if (!step || !places.length) return;
    event.preventDefault();
    choose(chosen < 0 ? (step > 0 ? 0 : places.length - 1) : Math.max(0, Math.min(places.length - 1, chosen + step)));
  });
  if (chart.series[0].name) {
    names.append(...chart.series.map((one, number) => {
      const button = document.createElement("button"), key = document.createElement("i");
      button.type = "button"; button.setAttribute("aria-pressed", "true");
      key.style.background = colourOf(number);
      if (dashOf(number)) key.style.opacity = 0.55;
      button.append(key, one.name);
      button.addEventListener("click", () => {
        if (!hidden.delete(number)) hidden.add(number);
        button.setAttribute("aria-pressed", String(!hidden.has(number)));
        choose(-1); draw();
      });
      return button;
    }));
  }
  figure.append(svg, tip, names);
  draw();
  new ResizeObserver(draw).observe(figure);
  return draw;
}
const redraws = data.charts.map((chart) => showChart(document.querySelector(`[data-chart="${chart.name}"]`), chart));
languageChanged = () => { for (const redraw of redraws) redraw(); };
