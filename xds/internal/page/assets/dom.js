// dom makes elements. Text is always set as text: nothing that comes from the mesh is markup.

const svgSpace = "http://www.w3.org/2000/svg";

function fill(el, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) el.addEventListener(name.slice(2), value);
    else el.setAttribute(name, value === true ? "" : value);
  }
  el.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false && c !== ""));
  return el;
}

/** h makes an HTML element. */
export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** s makes an SVG element. */
export const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(svgSpace, tag), attributes, children);

/** id returns the element with an id. */
export const id = (name) => document.getElementById(name);

/** text sets an element's text if it is another one, so that a screen reader says it once. */
export function text(el, words) {
  if (el.textContent !== words) el.textContent = words;
}

/** hidden is text for those who do not see shape and colour. */
export const hidden = (words) => h("span", { class: "visually-hidden" }, words);
