// Building elements without markup: no text ever becomes HTML here.

/** An element: h("button.icon", {title: "Copy", onclick: copy}, "text", child). `null` children are left out. */
export function h(selector, properties = {}, ...children) {
  const [tag, ...classes] = selector.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(properties)) set(element, name, value);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function set(element, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name in element && !name.startsWith("aria") && name !== "list" && name !== "role") element[name] = value;
  else element.setAttribute(name, value === true ? "" : value);
}

const PATHS = {
  arrowLeft: "M15 5l-7 7 7 7",
  arrowRight: "M9 5l7 7-7 7",
  check: "M5 12.5l4.5 4.5L19 7",
  compare: "M4 20V9a4 4 0 0 1 4-4 2.5 2.5 0 0 1 2.5 2.5V20zM20 20V9a4 4 0 0 0-4-4 2.5 2.5 0 0 0-2.5 2.5V20z",
  copy: "M9 9h10v11H9zM5 15V4h10",
  dots: "M5 12h.01M12 12h.01M19 12h.01",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  eye: "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12zM12 9.5a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5",
  bars: "M5 20v-6M12 20V5M19 20v-9",
  moon: "M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10z",
  plus: "M12 5v14M5 12h14",
  refresh: "M19.5 12a7.5 7.5 0 1 1-2.2-5.3L20 9.3M20 4.5v4.8h-4.8",
  send: "M12 19V5M5.5 11.5L12 5l6.5 6.5",
  sun: "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8M12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4",
  close: "M6 6l12 12M18 6L6 18",
};

/** A line drawing of 24 x 24 units, hidden from screen readers: its button carries the words. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** A button with a drawing; its label is read aloud and shown on hover. */
export function iconButton(name, label, onclick, more = {}) {
  return h("button.icon-button", { type: "button", title: label, "aria-label": label, onclick, ...more }, icon(name));
}

export const $ = (id) => document.getElementById(id);

/** Say something to screen readers without moving the focus. */
export function announce(text) {
  $("announcer").append(h("p", {}, text));
  while ($("announcer").children.length > 3) $("announcer").firstChild.remove();
}

/** Copy text; where the clipboard is closed to us (plain HTTP on a network) through a selection. True if it worked. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea.offscreen", { value: text, "aria-hidden": "true" });
    const focused = document.activeElement;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}

/** A copy button that says that it copied. `text` is a function, since a reply may still grow. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const done = await copyText(text());
    announce(done ? "Copied." : "Copying failed.");
    button.replaceChildren(icon(done ? "check" : "close"));
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}
