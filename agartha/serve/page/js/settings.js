// The panel of sampling settings.
import { apiKey } from "./api.js";
import { $, h } from "./dom.js";
import { FIELDS, problem, sampling, stopStrings } from "./sampling.js";

const MOST_STOPS = 4;

export function settingsView(connection) {
  const panel = $("settings");
  const fill = () => $("sampling").replaceChildren(...FIELDS.map(numberField), stopField(), probabilitiesField());
  $("sampling-reset").addEventListener("click", () => {
    sampling.clear();
    fill();
    $("sampling").querySelector("input").focus();
  });
  const key = $("api-key");
  key.value = apiKey.get();
  key.addEventListener("change", () => {
    apiKey.set(key.value.trim());
    connection.check();
  });
  $("access").addEventListener("submit", (event) => event.preventDefault());
  fill();

  const toggle = (open = panel.hidden) => {
    panel.hidden = !open;
    $("settings-button").setAttribute("aria-expanded", String(open));
    if (open) panel.querySelector("h2").focus();
    else $("settings-button").focus();
  };
  $("settings-button").addEventListener("click", () => toggle());
  $("settings-close").addEventListener("click", () => toggle(false));
  panel.addEventListener("keydown", (event) => event.key === "Escape" && toggle(false));
  return { toggle, askForKey: () => (toggle(true), key.focus()) };
}

function numberField(field) {
  const id = `sampling-${field.name}`;
  const value = sampling.get()[field.name];
  const wrong = h("p.wrong", { id: `${id}-wrong`, role: "alert" });
  const input = h("input", {
    id, type: "text", inputMode: field.whole ? "numeric" : "decimal", value: value ?? "", placeholder: "default", autocomplete: "off",
    "aria-describedby": `${id}-about ${id}-wrong`,
  });
  input.addEventListener("input", () => {
    const words = problem(field, input.value);
    wrong.textContent = words ?? "";
    input.setAttribute("aria-invalid", String(words !== null));
    if (words === null) sampling.set(field.name, input.value.trim() === "" ? undefined : Number(input.value));
  });
  input.addEventListener("keydown", (event) => {
    const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    input.value = stepped(field, input.value, by);
    input.dispatchEvent(new Event("input"));
  });
  return h("div.field", {}, h("label", { htmlFor: id }, field.label), input, h("p.about", { id: `${id}-about` }, field.about), wrong);
}

function stepped(field, text, by) {
  const from = text.trim() === "" ? (field.min ?? 0) : Number(text) + by * field.step;
  if (!Number.isFinite(from)) return text;
  return String(Number(Math.min(field.max ?? Infinity, Math.max(field.min ?? -Infinity, from)).toFixed(4)));
}

function stopField() {
  const wrong = h("p.wrong", { id: "sampling-stop-wrong", role: "alert" });
  const area = h("textarea", { id: "sampling-stop", rows: 2, value: sampling.get().stop ?? "", "aria-describedby": "sampling-stop-about sampling-stop-wrong" });
  area.addEventListener("input", () => {
    const tooMany = stopStrings(area.value).length > MOST_STOPS;
    wrong.textContent = tooMany ? `At most ${MOST_STOPS} stop strings.` : "";
    if (!tooMany) sampling.set("stop", area.value || undefined);
  });
  const about = "The reply ends before any of these, one a line; \\n is a line break.";
  return h("div.field.wide", {}, h("label", { htmlFor: "sampling-stop" }, "Stop"), area, h("p.about", { id: "sampling-stop-about" }, about), wrong);
}

function probabilitiesField() {
  const input = h("input", { type: "checkbox", id: "sampling-probabilities", checked: sampling.get().probabilities === true });
  input.addEventListener("change", () => sampling.set("probabilities", input.checked || undefined));
  const about = h("p.about", {}, "New replies come as tokens; hover over one to see how likely it and its rivals were.");
  return h("div.field.wide.check", {}, input, h("label", { htmlFor: "sampling-probabilities" }, "Token probabilities"), about);
}
