// The system prompt in plain sight: exactly what the model reads before the first word of the user, the part that the
// model's own template adds included. The server renders it; this page guesses nothing.
import { render } from "./api.js";
import { $, copyButton, h } from "./dom.js";
import { samplingBody } from "./sampling.js";
import { leaf, messages, newId, path } from "./tree.js";

const cache = new Map(); // model and system prompt -> a promise of {before, dropped}

export function forgetRendered() {
  cache.clear();
}

async function rendered(model, system) {
  const mark = `agartha-${newId()}`;
  const { prompt } = await render({ model, messages: messages(system, [{ role: "user", content: mark }]) });
  const before = prompt.split(mark)[0];
  return { before, dropped: Boolean(system) && !before.includes(system.trim()) };
}

function known(model, system) {
  const key = JSON.stringify([model, system]);
  if (!cache.has(key)) {
    cache.set(key, rendered(model, system));
    cache.get(key).catch(() => cache.delete(key));
  }
  return cache.get(key);
}

export function plaqueView(chat, lane) {
  const origin = h("span.origin");
  const text = h("div.plaque-text", { tabIndex: 0, role: "region", "aria-label": "What the model reads first" });
  const more = h("button.plain.small", { type: "button", onclick: () => grow(!element.classList.contains("open")) }, "Show all");
  const edit = h("button.plain.small", { type: "button", onclick: () => openEditor(chat) }, "Edit");
  const exact = h("button.plain.small", { type: "button", onclick: () => showPrompt(chat, lane) }, "Exact prompt");
  const element = h("div.plaque", {},
    h("div.plaque-head", {}, h("h2", {}, "System prompt"), origin, h("div.plaque-actions", {}, more, edit, exact)), text);
  const grow = (open) => {
    element.classList.toggle("open", open);
    more.textContent = open ? "Show less" : "Show all";
    more.setAttribute("aria-expanded", String(open));
  };
  let asked = "";

  function write(words, parts) {
    origin.textContent = words;
    text.replaceChildren(...parts);
    more.hidden = !element.classList.contains("open") && text.scrollHeight <= text.clientHeight + 2;
  }

  async function update() {
    const system = chat.current.system;
    const key = JSON.stringify([lane.model, system, chat.models.length]);
    if (asked === key || !lane.model) return;
    asked = key;
    grow(false);
    try {
      const found = await known(lane.model, system);
      if (asked === key) write(originOf(system, found), partsOf(system, found));
    } catch (error) {
      if (asked !== key) return;
      asked = "";
      write(`the server did not show its rendering: ${error.message}`, [system || "Unknown."]);
    }
  }
  return { element, update };
}

function originOf(system, { before, dropped }) {
  if (dropped) return "the model's template drops yours";
  if (system) return "yours";
  return holdsWords(before) ? "put there by the model's template" : "none";
}

// The template's own words are what is left once the markers of turns are taken away.
function holdsWords(before) {
  const rest = before.replace(/<[^<>\s]{1,40}>|\[\/?[A-Z_]+\]|\b(system|user|assistant|human)\b:?/gi, "");
  return /\p{L}{2}/u.test(rest);
}

function partsOf(system, { before, dropped }) {
  if (dropped || !system) return [before || "Nothing: the user's words come first."];
  const [head, ...tail] = before.split(system.trim());
  return [head, h("mark", {}, system.trim()), tail.join(system.trim())];
}

/** Edit the conversation's system prompt in a dialog. */
export function openEditor(chat) {
  const dialog = $("system-dialog");
  $("system-text").value = chat.current.system;
  dialog.onclose = () => {
    if (dialog.returnValue === "save") chat.setSystem($("system-text").value.trim());
    dialog.returnValue = "";
  };
  dialog.showModal();
  $("system-text").focus();
}

/** The prompt exactly as rendered: of the message being written, else of the last one sent. */
async function showPrompt(chat, lane) {
  const dialog = $("prompt-dialog");
  const output = $("prompt-text");
  const draft = $("composer-text").value;
  const last = leaf(lane);
  const nodes = path(lane).slice(0, last?.role === "assistant" && !draft ? -1 : undefined);
  if (draft || !nodes.length) nodes.push({ role: "user", content: draft || "(your message)" });
  output.textContent = "Rendering…";
  $("prompt-count").textContent = "";
  dialog.showModal();
  try {
    const body = { model: lane.model, messages: messages(chat.current.system, nodes), ...samplingBody() };
    const { prompt, prompt_tokens: count } = await render(body);
    output.textContent = prompt;
    $("prompt-count").textContent = `${draft ? "With the message you are writing" : "As last sent"}: ${count.toLocaleString("en")} tokens for ${lane.model}.`;
    $("prompt-copy").replaceChildren(copyButton("Copy the prompt", () => prompt));
  } catch (error) {
    output.textContent = `The server did not render it: ${error.message}`;
  }
}
