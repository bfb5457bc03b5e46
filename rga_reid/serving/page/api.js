// Requests to the server. The token is kept in sessionStorage, until the tab is closed.
import { t } from "./strings.js";

const TOKEN = "token";
let asking = null; // promise of a token, while the user is asked

/** An answer that is an error: RFC 9457 problem details, or no answer at all (status 0). */
export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail || title);
    this.status = status;
    this.title = title;
    this.detail = detail;
  }
}

/** Called with whether a token was refused; returns a token, or null if the user gives none. Set by page.js. */
export const hooks = { askToken: async () => null };

export function hasToken() {
  return sessionStorage.getItem(TOKEN) !== null;
}

export function forgetToken() {
  sessionStorage.removeItem(TOKEN);
}

async function send(method, path, { json, form, signal } = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = {};
    if (token !== null) headers.Authorization = `Bearer ${token}`;
    if (json !== undefined) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, { method, headers, signal, body: json === undefined ? form : JSON.stringify(json) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(0, t("error_network"), error.message);
    }
    if (answer.ok) return answer;
    if (answer.status !== 401) throw await problemOf(answer);
    if (sessionStorage.getItem(TOKEN) === token) {
      // requests that are refused at the same time ask once
      asking ??= hooks.askToken(token !== null).finally(() => { asking = null; });
      const given = await asking;
      if (given === null) throw new Problem(401, t("error_token"), "");
      sessionStorage.setItem(TOKEN, given);
    }
  }
}

async function problemOf(answer) {
  const { title, detail } = await answer.json().catch(() => ({}));
  const problem = new Problem(answer.status, title ?? `${answer.status} ${answer.statusText}`, typeof detail === "string" ? detail : "");
  problem.wait = Number(answer.headers.get("Retry-After")) || 1; // seconds
  return problem;
}

const receive = async (...request) => (await send(...request)).json();

export const describeGallery = () => receive("GET", "v1/gallery");

export const search = (query, signal) => receive("POST", "v1/search", { json: query, signal });

export const labelImages = (which, pid) => receive("PATCH", "v1/images", { json: { ...which, pid } });

/** Erase images by ids or by a filter. */
export function eraseImages({ ids, where }) {
  if (ids !== undefined) return receive("DELETE", "v1/images", { json: { ids } });
  return receive("DELETE", `v1/images?${new URLSearchParams({ where })}`);
}

/** Return maps of a picture and of an image of the gallery: what makes them similar to the model. */
export function explainMatch(blob, id) {
  const form = new FormData();
  form.append("image", blob, "picture");
  form.append("id", id);
  return receive("POST", "v1/explain", { form });
}

/** Return the feature of a picture. */
export async function embed(blob) {
  const form = new FormData();
  form.append("image", blob, "picture");
  return (await receive("POST", "v1/embed", { form })).features[0];
}

const MAX_LOADING = 6; // thumbnails at a time
const MAX_TRIES = 5; // where the server asks to wait
const thumbnails = new Map(); // promises by id
const waiting = []; // starts of thumbnails that wait for others
let loading = 0;

async function loadThumbnail(id) {
  if (loading === MAX_LOADING) await new Promise((start) => waiting.push(start));
  else loading += 1;
  try {
    for (let tries = 1; ; tries++) {
      try {
        const blob = await (await send("GET", `v1/images/${encodeURIComponent(id)}/thumbnail`)).blob();
        return { blob, url: URL.createObjectURL(blob) };
      } catch (error) {
        if (error.status === 404) return null;
        if (error.status !== 429 || tries === MAX_TRIES) throw error;
        await new Promise((resolve) => setTimeout(resolve, 1000 * error.wait));
      }
    }
  } finally {
    if (waiting.length) waiting.shift()();
    else loading -= 1;
  }
}

/** Return the stored picture of an image as {blob, url}, or null if the server has none. */
export function thumbnail(id) {
  if (!thumbnails.has(id)) {
    const loaded = loadThumbnail(id).catch((error) => {
      thumbnails.delete(id); // try again next time
      throw error;
    });
    thumbnails.set(id, loaded);
  }
  return thumbnails.get(id);
}

/** Forget the picture of an erased image. */
export function forgetThumbnail(id) {
  thumbnails.get(id)?.then((picture) => picture && URL.revokeObjectURL(picture.url), () => {});
  thumbnails.delete(id);
}
