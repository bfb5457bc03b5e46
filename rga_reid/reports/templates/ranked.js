
// ---------- pictures: a click shows one large, beside its query ----------
const large = $("large");
let frames = [], at = 0; // the pictures of a query, and the one that is shown
const fill = (figure, frame) => {
  const box = document.createElement("span"), caption = document.createElement("figcaption");
  box.className = "frame";
  box.append(frame.querySelector("img, .missing").cloneNode(true));
  const own = frame.closest("figcaption") ? null : frame.parentElement.querySelector("figcaption");
  if (own) caption.append(...[...own.cloneNode(true).children].filter((child) => !child.matches(".others")));
  else caption.append(Object.assign(document.createElement("span"), { className: "file", textContent: frame.title }));
  const path = caption.querySelector(".file[title]");
  if (path) path.textContent = path.title; // the whole path
  figure.className = own ? frame.parentElement.className : "";
  figure.replaceChildren(box, caption);
};
function showLarge(step) {
  at = (at + step + frames.length) % frames.length;
  const [left, right] = large.querySelectorAll("figure");
  const query = frames[at].closest(".ranked").querySelector(".query .frame");
  fill(left, query);
  right.hidden = frames[at] === query;
  if (!right.hidden) fill(right, frames[at]);
  for (const id of ["large-back", "large-next"]) $(id).hidden = frames.length < 2;
}
document.querySelector("main").addEventListener("click", (event) => {
  const clicked = event.target.closest(".ranked .frame");
  if (!clicked) return;
  const frame = clicked.dataset.of ? $(clicked.dataset.of).querySelector(".frame") : clicked;
  frames = clicked.closest(".query") ? [frame] : [...clicked.closest(".found").querySelectorAll(".frame:not([data-of])")];
  at = frames.indexOf(frame);
  showLarge(0); large.showModal();
});
$("large-back").addEventListener("click", () => showLarge(-1));
$("large-next").addEventListener("click", () => showLarge(1));
$("large-close").addEventListener("click", () => large.close());
large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
large.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) showLarge(step);
});

// ---------- marks of the timeline lead to their images; the address keeps language, colours and grouping ----------
for (const link of document.querySelectorAll("svg a[href^='#']")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const item = document.getElementById(link.getAttribute("href").slice(1));
    const shown = item?.hidden ? document.querySelector(`[data-of="${item.id}"]`) : item;
    for (const one of document.querySelectorAll(".sought")) one.classList.remove("sought");
    shown?.classList.add("sought");
    shown?.scrollIntoView({ block: "center" });
  });
}

// ---------- images of one track of a camera, together ----------
function groupTracks(together) {
  for (const clone of document.querySelectorAll(".same-track")) clone.remove();
  for (const item of document.querySelectorAll("li[data-track]")) item.hidden = false;
  for (const list of together ? document.querySelectorAll("ol.matches") : []) {
    const best = new Map();
    for (const item of list.querySelectorAll("li[data-track]")) {
      const first = best.get(item.dataset.track);
      if (!first) { best.set(item.dataset.track, item); continue; }
      const frame = item.querySelector(".frame").cloneNode(true);
      frame.dataset.of = item.id; frame.title = item.querySelector(".first").innerText;
      let others = first.querySelector(".others");
      if (!others) {
        others = Object.assign(document.createElement("span"), { className: "others same-track" });
        first.querySelector("figcaption").append(others);
      }
      others.append(frame); item.hidden = true;
    }
  }
  $("tracks").setAttribute("aria-pressed", String(together));
  $("tracks").dataset.t = together ? "by_image" : "by_track";
  translatePage();
}
$("tracks")?.addEventListener("click", () => {
  const together = $("tracks").getAttribute("aria-pressed") !== "true";
  remember({ tracks: together ? "1" : null }); groupTracks(together);
});
if ($("tracks") && settings.tracks) groupTracks(true);
