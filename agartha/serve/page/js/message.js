// One message on the page: built once, brought up to date with its node.
import { announce, copyButton, h, icon, iconButton } from "./dom.js";
import { renderInto } from "./markdown.js";
import { tokenView } from "./probabilities.js";

/** Returns {element, update()}. `chat` answers what its buttons ask. */
export function messageView(chat, node) {
  return node.role === "user" ? userView(chat, node) : replyView(chat, node);
}

function userView(chat, node) {
  const text = h("div.said", {}, node.content);
  const edit = iconButton("edit", "Edit this prompt", () => editor(chat, node, element, text, edit));
  const branches = branchButtons(chat, node);
  const actions = h("div.actions", {}, branches.element, edit, copyButton("Copy this prompt", () => node.content));
  const element = h("article.message.user", { tabIndex: -1, "aria-label": "You", "data-id": node.id }, text, actions);
  const update = () => {
    branches.update();
    edit.disabled = chat.isRunning();
  };
  return { element, update, edit: () => edit.click() };
}

function editor(chat, node, element, text, opener) {
  const area = h("textarea", { value: node.content, "aria-label": "Edit the prompt", rows: Math.min(12, node.content.split("\n").length + 1) });
  const close = () => {
    form.replaceWith(text);
    opener.hidden = false;
    opener.focus();
  };
  const send = () => {
    if (area.value.trim() === "") return area.focus();
    close();
    chat.edit(node, area.value);
  };
  const form = h("form.editor", { onsubmit: (event) => (event.preventDefault(), send()) }, area,
    h("div.row", {}, h("button.primary", {}, "Send as a new branch"), h("button.plain", { type: "button", onclick: close }, "Cancel")));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  text.replaceWith(form);
  opener.hidden = true;
  area.focus();
}

function branchButtons(chat, node) {
  const go = (by) => () => {
    const held = element.contains(document.activeElement);
    const shown = chat.move(node, by);
    if (shown && held) document.querySelector(`[data-id="${shown.id}"] .branches button:not(:disabled)`)?.focus();
  };
  const back = iconButton("arrowLeft", "Previous branch", go(-1));
  const on = iconButton("arrowRight", "Next branch", go(1));
  const place = h("span");
  const element = h("div.branches", { role: "group", "aria-label": "Branches" }, back, place, on);
  const update = () => {
    const { index, count } = chat.alternatives(node);
    element.hidden = count < 2;
    place.textContent = `${index + 1} / ${count}`;
    back.disabled = index === 0;
    on.disabled = index === count - 1;
  };
  return { element, update };
}

function replyView(chat, node) {
  const who = h("header.who", {}, h("span.lamp", { "aria-hidden": "true" }), h("span", {}, node.model));
  const thinking = thinkingView();
  const prose = h("div.prose.answer");
  const tokens = tokenView();
  const notice = noticeView(chat, node);
  const branches = branchButtons(chat, node);
  const again = iconButton("refresh", "Another reply", () => chat.regenerate(node));
  const shades = h("button.icon-button.shades", { type: "button", title: "Token probabilities", "aria-label": "Token probabilities", onclick: () => {
    node.showTokens = !node.showTokens;
    update();
    chat.save();
  } }, icon("bars"));
  const copy = copyButton("Copy this reply", () => node.content);
  const numbers = h("span.numbers");
  const actions = h("div.actions", {}, branches.element, again, copy, shades, numbers);
  const element = h("article.message.reply", { tabIndex: -1, "aria-label": `${node.model}`, "data-id": node.id },
    who, thinking.element, prose, tokens.element, notice.element, actions);

  function update() {
    const busy = node.state === "streaming" || node.state === "waiting";
    const asTokens = Boolean(node.showTokens) && node.tokens.length > 0;
    element.setAttribute("aria-busy", String(busy));
    element.classList.toggle("lit", busy);
    thinking.update(node);
    thinking.element.hidden ||= asTokens;
    prose.hidden = asTokens;
    tokens.element.hidden = !asTokens;
    if (asTokens) tokens.show(node);
    else renderInto(prose, node.content);
    notice.update();
    branches.update();
    actions.hidden = busy;
    again.disabled = chat.isRunning();
    copy.hidden = !node.content;
    shades.hidden = node.tokens.length === 0;
    shades.setAttribute("aria-pressed", String(asTokens));
    numbers.textContent = busy ? "" : numbersOf(node);
  }
  return { element, update, again: () => again.click() };
}

function thinkingView() {
  const title = h("span");
  const text = h("div.prose.thoughts");
  const element = h("details.thinking", { hidden: true }, h("summary", {}, title), text);
  let latest = null;
  element.addEventListener("toggle", () => element.open && renderInto(text, latest.thinking));
  const update = (node) => {
    latest = node;
    element.hidden = !node.thinking;
    if (element.hidden) return;
    const still = node.state === "streaming" && !node.content;
    const seconds = (node.thinkingSeconds ?? 0).toFixed(1);
    title.textContent = still ? `Thinking… ${seconds} s` : node.thinkingSeconds === null ? "Thought" : `Thought for ${seconds} s`;
    element.classList.toggle("still", still);
    if (element.open) renderInto(text, node.thinking);
  };
  return { element, update };
}

function noticeView(chat, node) {
  const element = h("div.notice", { hidden: true });
  let shown = "";
  const retry = () => h("button.plain", { type: "button", onclick: () => chat.regenerate(node) }, "Try again");
  const waiting = () => Math.max(0, Math.ceil(((node.retryAt ?? 0) - Date.now()) / 1000));
  const tick = () => {
    if (node.state !== "waiting" || !element.isConnected) return;
    element.firstChild.textContent = `The server is busy. Trying again in ${waiting()} s.`;
    setTimeout(tick, 500);
  };
  const update = () => {
    const words = noticeOf(node);
    if (words + node.state === shown) return;
    shown = words + node.state;
    element.hidden = !words;
    element.className = `notice ${node.state}`;
    element.replaceChildren(h("p", {}, words), ...(node.state === "failed" ? [retry()] : []));
    if (node.state === "waiting") tick();
    if (words && node.state !== "streaming") announce(words);
  };
  return { element, update };
}

function noticeOf(node) {
  if (node.state === "waiting") return "The server is busy.";
  if (node.state === "failed") return node.error?.message ?? "The reply failed.";
  if (node.state === "streaming") return node.content || node.thinking ? "" : "Reading the prompt…";
  if (node.state === "stopped") return "Stopped.";
  if (node.finish === "length") return "Cut off: the reply reached its longest length (max tokens).";
  if (!node.content && !node.thinking) return "The model said nothing.";
  return "";
}

function numbersOf(node) {
  if (!node.usage) return "";
  const { completion, perSecond, firstSeconds } = node.usage;
  const parts = [`${completion} ${completion === 1 ? "token" : "tokens"}`];
  if (perSecond) parts.push(`${perSecond.toFixed(perSecond < 10 ? 1 : 0)} per second`);
  if (firstSeconds !== null) parts.push(`first after ${firstSeconds.toFixed(1)} s`);
  return parts.join(" · ");
}
