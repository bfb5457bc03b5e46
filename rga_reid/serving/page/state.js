// What the user has chosen, and what the server has found.
import { embed, thumbnail } from "./api.js";

export const state = {
  gallery: null, // answer of /v1/gallery
  pictures: [], // pictures to search with
  confirmed: new Map(), // pictures of the gallery that show the person, by id
  rejected: [], // {where, count} or {id, count}: what is left out as other people
  results: null, // {groups, groupBy, count}
};

/** A picture of the user to search with. */
export class Picture {
  constructor(blob, name) {
    this.name = name;
    this.match = null;
    this.shown = { blob, url: URL.createObjectURL(blob) };
  }

  /** Return a promise of its feature, computed once. */
  feature() {
    this.loaded ??= embed(this.shown.blob).catch((error) => {
      this.loaded = undefined;
      throw error;
    });
    return this.loaded;
  }
}

/** A picture of the gallery to search with; the server knows its feature. */
export class StoredPicture {
  constructor(match) {
    this.name = match.path;
    this.match = match;
    this.shown = thumbnail(match.id);
  }
}

export const isInQuery = (match) => state.pictures.some((picture) => picture.match?.id === match.id);

/** Return all pictures to search with. */
export const queryPictures = () => [...state.pictures, ...[...state.confirmed.values()].filter(({ match }) => !isInQuery(match))];

/** Return the confirmed matches and those of the results, in the order of the page. */
export const listMatches = () => [...[...state.confirmed.values()].map(({ match }) => match), ...(state.results?.groups.flatMap(({ matches }) => matches) ?? [])];

/** Number the matches in the order of the page. */
export function numberMatches() {
  listMatches().forEach((match, number) => { match.position = number + 1; });
}

/** Return the threshold as a number, or null. */
export function threshold() {
  const { value } = document.getElementById("threshold");
  return value === "" || Number.isNaN(Number(value)) ? null : Number(value);
}

export const isBelow = (match) => threshold() !== null && match.score < threshold() && !state.confirmed.has(match.id);

/** Write a value as a literal of a filter: a number, or a string with escapes. */
export const literal = (value) => (typeof value === "number" ? String(value) : JSON.stringify(value));

const isKnown = (value) => value !== null && value !== undefined;

/** Return whether a value is a whole number that JavaScript cannot read exactly: a filter would name another one. */
const isRounded = (value) => typeof value === "number" && !Number.isSafeInteger(value);

/** Return the condition that all of the columns have their values in a match, or null if one is unknown or not exact. */
export function sameWhere(match, columns) {
  if (columns.some((column) => !isKnown(match[column]) || isRounded(match[column]))) return null;
  return columns.map((column) => `${column} = ${literal(match[column])}`).join(" and ");
}

/** Return the filter that leaves out the rows of a group, and no others; null if its label is unknown or not exact. */
export function otherWhere(match, columns) {
  const known = columns.filter((column) => isKnown(match[column]));
  const same = sameWhere(match, known);
  if (same === null || !isKnown(match[columns.at(-1)])) return null;
  const others = columns.map((column) => (isKnown(match[column]) ? `${column} is null or ` : `${column} is not null or `)).join("");
  return `(${others}not (${same}))`;
}

/** Return the filter of the panel and of the rejected people; null if it keeps everything. */
export function currentWhere(panel) {
  const parts = [];
  if (panel.cameras.length) parts.push(`camera in (${panel.cameras.map(literal).join(", ")})`);
  if (panel.from) parts.push(`time >= '${new Date(panel.from).toISOString()}'`);
  if (panel.to) parts.push(`time <= '${new Date(panel.to).toISOString()}'`);
  if (panel.where) parts.push(`(${panel.where})`);
  const ids = state.rejected.filter(({ id }) => id !== undefined).map(({ id }) => literal(id));
  if (ids.length) parts.push(`id not in (${ids.join(", ")})`);
  parts.push(...state.rejected.filter(({ where }) => where).map(({ where }) => where));
  return parts.length ? parts.join(" and ") : null;
}
