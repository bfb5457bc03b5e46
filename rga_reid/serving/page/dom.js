// Elements of the page.
import { t } from "./strings.js";

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** Create an element; attributes that are functions listen to events, those that are null or false are left out. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name, kind = "") {
  return svg("svg", { class: `icon ${kind}`, "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));
}

/** Return a frame that shows a picture as soon as it is loaded, or says that there is none. */
export function frame(picture, alt) {
  const box = el("span", { class: "frame" });
  fillFrame(box, picture, alt);
  return box;
}

/** Show a picture in a frame: {url}, a promise of it, or null where the server has none. */
export async function fillFrame(box, picture, alt) {
  const missing = () => el("span", { class: "missing" }, svg("svg", { "aria-hidden": "true" }, svg("use", { href: "#i-person" })), t("no_thumbnail"));
  let shown = missing();
  box.picture = picture;
  if (picture instanceof Promise) box.replaceChildren();
  try {
    const loaded = await picture;
    if (box.picture !== picture) return; // another one has taken its place meanwhile
    if (loaded) {
      shown = el("img", { src: loaded.url, alt, draggable: "false" });
      shown.addEventListener("error", () => shown.replaceWith(missing()));
    }
  } catch {
    // the request for the results shows the error
  }
  box.replaceChildren(shown);
}

/** Show a message above the results: an error, or what was done. */
export function showMessage(text, { done = false, title = t("error") } = {}) {
  for (const old of $("messages").querySelectorAll(".done")) old.remove();
  const message = el("div", { class: `message${done ? " done" : ""}` },
    icon(done ? "check" : "warning", done ? "good" : "bad"),
    el("p", {}, done ? null : el("b", {}, `${title} `), text),
    el("button", { type: "button", class: "quiet", "aria-label": t("dismiss"), click: () => message.remove() }, icon("cross")));
  $("messages").append(message);
  if (!done) message.scrollIntoView({ block: "nearest" });
}

export function clearMessages() {
  $("messages").replaceChildren();
}

/** Show an error, unless it is a request that a newer one replaced. */
export function showError(error) {
  if (error.name === "AbortError") return;
  if (error.status === undefined) console.error(error);
  showMessage(error.detail || error.message, { title: error.detail && error.title ? `${error.title}:` : t("error") + ":" });
}

/** Open a dialog; buttons with data-close close it. Returns a promise that is kept when it closes. */
export function openDialog(dialog) {
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
}

for (const button of document.querySelectorAll("dialog [data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
for (const dialog of document.querySelectorAll("dialog")) {
  // a click beside the dialog closes it
  dialog.addEventListener("mousedown", (event) => {
    const { left, right, top, bottom } = dialog.getBoundingClientRect();
    const inside = event.clientX >= left && event.clientX <= right && event.clientY >= top && event.clientY <= bottom;
    if (event.target === dialog && !inside) dialog.close();
  });
}
