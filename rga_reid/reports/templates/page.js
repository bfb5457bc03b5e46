"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

// ---------- settings in the address: #lang=zh&theme=dark and those of the page ----------
const fromAddress = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
const LANGUAGES = Object.keys(data.strings);
const settings = { lang: data.lang, theme: null, ...fromAddress() };
if (!LANGUAGES.includes(settings.lang)) settings.lang = LANGUAGES.find((lang) => navigator.language.startsWith(lang)) ?? "en";
let writing = 0;
/** Keep settings in the address, some time after the last change: browsers limit how often it may change. */
function remember(changes) {
  Object.assign(settings, changes);
  clearTimeout(writing);
  writing = setTimeout(writeAddress, 300);
}
function writeAddress() {
  const kept = Object.entries(settings).filter(([, value]) => value !== null && value !== undefined && value !== "");
  try { history.replaceState(null, "", `#${new URLSearchParams(kept)}`); } catch { /* inside a notebook there is no address */ }
}

// ---------- texts ----------
/** Text of a key in the chosen language; {name} is replaced by a value, which may be a text itself. */
function t(key, values = {}) {
  const fill = (value) => (value?.key ? t(value.key, value.values) : value);
  return (data.strings[settings.lang][key] ?? key).replace(/\{(\w+)\}/g, (all, name) => fill(values[name]) ?? all);
}
/** Sentences as one text: Chinese has no space between them. */
const join = (...sentences) => sentences.filter(Boolean).join(settings.lang === "zh" ? "" : " ");
const MARKUP = /(?<![A-Za-z])(?<symbol>[A-Za-zΑ-ω]|softmax|max)_(?<below>[A-Za-z0-9])(?![A-Za-z0-9])|`(?<code>[^`]+)`|\*\*(?<bold>[^*]+)\*\*/g;
/** Text as nodes to append: G_s is G with the subscript s, `code`, **bold**. */
function typeset(text) {
  const nodes = [];
  let done = 0;
  for (const found of text.matchAll(MARKUP)) {
    const { symbol, below, code, bold } = found.groups;
    const element = document.createElement(below ? "sub" : code ? "code" : "b");
    if (below) element.textContent = below; else element.append(...(bold ? typeset(bold) : [code]));
    nodes.push(text.slice(done, found.index) + (symbol ?? ""), element);
    done = found.index + found[0].length;
  }
  return [...nodes, text.slice(done)];
}
function translatePage() {
  document.documentElement.lang = settings.lang === "zh" ? "zh-CN" : settings.lang;
  const valuesOf = (element) => JSON.parse(element.dataset.v ?? "{}");
  for (const element of document.querySelectorAll("[data-t]")) {
    const text = t(element.dataset.t, valuesOf(element));
    element.replaceChildren(...("plain" in element.dataset ? [text] : typeset(text)));
  }
  for (const name of ["title", "alt", "aria-label", "placeholder"]) {
    for (const element of document.querySelectorAll(`[data-t-${name}]`)) element.setAttribute(name, t(element.getAttribute(`data-t-${name}`), valuesOf(element)));
  }
}

// ---------- switches of language and colours ----------
let languageChanged = () => {}; // pages that write texts themselves replace these
let themeChanged = () => {};
const THEMES = ["auto", "light", "dark"];
function showTheme() {
  const theme = THEMES.includes(settings.theme) ? settings.theme : "auto";
  document.documentElement.dataset.theme = theme;
  $("theme").dataset.t = `theme_${theme}`;
}
$("language").addEventListener("click", () => {
  remember({ lang: LANGUAGES[(LANGUAGES.indexOf(settings.lang) + 1) % LANGUAGES.length] });
  translatePage(); languageChanged();
});
$("theme").addEventListener("click", () => {
  remember({ theme: THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length] });
  showTheme(); translatePage(); themeChanged();
});
showTheme();
translatePage();
document.body.dataset.ready = "yes"; // later scripts that still work set it to "no"
