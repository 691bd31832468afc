// Keyboard shortcuts. Single keys work outside of text fields only, and can be switched off (WCAG 2.1.4).
import { $, h } from "./dom.js";

const KEPT = "agartha.single-keys";

const TEXT = [
  ["Enter", "Send"],
  ["Shift + Enter", "New line"],
  ["Esc", "Stop the reply; close what is open"],
  ["Tab, Shift + Tab", "From control to control"],
];

/** `actions` maps a key to [what it does, function]. Escape stops the reply. */
export function shortcuts(actions, stop) {
  const enabled = $("single-keys");
  enabled.checked = localStorage.getItem(KEPT) !== "off";
  enabled.addEventListener("change", () => localStorage.setItem(KEPT, enabled.checked ? "on" : "off"));
  fillHelp(actions);
  $("help-button").addEventListener("click", () => $("help-dialog").showModal());
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") return stop();
    if (event.ctrlKey || event.metaKey || event.altKey || !enabled.checked || writes(event.target)) return;
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action[1]();
  });
}

const writes = (element) => element.matches("input, textarea, select, [role=listbox]");

function fillHelp(actions) {
  const rows = [...TEXT, ...Object.entries(actions).map(([key, [words]]) => [key, words])];
  $("help-keys").replaceChildren(...rows.map(([key, words]) => h("div", {}, h("dt", {}, ...key.split(/(?: \+ |, )/).map((one) => h("kbd", {}, one))), h("dd", {}, words))));
}

/** Move the focus from message to message. */
export function moveFocus(views, by) {
  const at = views.findIndex((view) => view.element.contains(document.activeElement));
  const target = views[at < 0 ? (by > 0 ? 0 : views.length - 1) : Math.min(views.length - 1, Math.max(0, at + by))];
  target?.element.focus();
  target?.element.scrollIntoView({ block: "nearest" });
}
