// The tokens of a reply, each shaded by its probability; hover, tap or arrow keys show what else it might have been.
import { h } from "./dom.js";

const BOUNDS = [0.9, 0.6, 0.3, 0.1]; // probability at least: shade 0, 1, 2, 3, else 4

/** A list of tokens that grows with `node`: call .show(node) after each change. */
export function tokenView() {
  const card = h("div.token-card", { role: "status", hidden: true });
  const list = h("div.tokens", { role: "listbox", "aria-label": "Tokens with their probabilities. Arrow keys move between them.", tabIndex: 0 });
  const element = h("div.token-view", {}, list, card);
  let shown = 0;
  let at = -1;

  const point = (option) => {
    list.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
    card.hidden = !option;
    at = option ? Number(option.dataset.index) : at;
    if (!option) return;
    option.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", option.id);
    card.replaceChildren(...cardOf(tokens[at]));
    place(card, option, element);
  };
  let tokens = [];
  const options = () => list.children;
  list.addEventListener("pointerover", (event) => event.target.closest("[role=option]") && point(event.target.closest("[role=option]")));
  list.addEventListener("click", (event) => event.target.closest("[role=option]") && point(event.target.closest("[role=option]")));
  element.addEventListener("pointerleave", () => document.activeElement !== list && point(null));
  list.addEventListener("focus", () => point(options()[Math.max(0, at)]));
  list.addEventListener("blur", () => point(null));
  list.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const target = by ? at + by : { Home: 0, End: options().length - 1 }[event.key];
    if (target === undefined || !options()[target]) return;
    event.preventDefault();
    point(options()[target]);
    options()[target].scrollIntoView({ block: "nearest" });
  });

  return {
    element,
    show(node) {
      tokens = node.tokens;
      for (; shown < tokens.length; shown++) list.append(option(node.id, tokens[shown], shown));
    },
  };
}

function option(id, token, index) {
  const probability = Math.exp(token.logprob);
  const shade = BOUNDS.findIndex((bound) => probability >= bound);
  const selector = `span.token.shade-${shade < 0 ? BOUNDS.length : shade}${token.kind === "thinking" ? ".of-thinking" : ""}`;
  const label = `${spoken(token.text)}, ${percent(token.logprob)}`;
  return h(selector, { role: "option", id: `token-${id}-${index}`, "data-index": index, "aria-selected": "false", "aria-label": label }, shownText(token.text));
}

// A line break alone, or nothing, would leave no place to point at.
const shownText = (text) => (text === "" ? "∅" : text.replaceAll("\n", "↵\n"));

function cardOf(token) {
  const others = token.others.some(([text]) => text === token.text) ? token.others : [[token.text, token.logprob], ...token.others];
  const rows = others.map(([text, logprob]) => {
    const bar = h("span.bar", { "aria-hidden": "true" });
    bar.style.setProperty("--share", Math.exp(logprob)); // through the object: a style attribute would break the policy
    const chosen = text === token.text;
    return h(`li${chosen ? ".chosen" : ""}`, {}, h("code", {}, spoken(text)), bar, h("span.percent", {}, percent(logprob)));
  });
  return [h("ol", {}, ...rows)];
}

function place(card, option, frame) {
  const box = option.getClientRects()[0] ?? option.getBoundingClientRect();
  const edge = frame.getBoundingClientRect();
  const room = frame.closest("#thread").getBoundingClientRect().bottom - box.bottom;
  const above = room < card.offsetHeight + 12;
  card.style.top = `${(above ? box.top - card.offsetHeight - 6 : box.bottom + 6) - edge.top}px`;
  card.style.left = `${Math.max(0, Math.min(box.left - edge.left, edge.width - card.offsetWidth))}px`;
}

const spoken = (text) => (text === "" ? "(nothing)" : text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣"));

export function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share >= 99.95 ? "100 %" : share < 0.1 ? "under 0.1 %" : `${share.toFixed(1)} %`;
}
