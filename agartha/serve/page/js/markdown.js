// Model output to elements. It is hostile: HTML in it stays text, and what the renderer makes passes DOMPurify before the page.
import DOMPurify from "../vendor/dompurify.js";
import highlight from "../vendor/highlight.js";
import MarkdownIt from "../vendor/markdown-it.js";
import { copyButton, h } from "./dom.js";
import { mathsPlugin, typeset } from "./maths.js";

const LONGEST_COLOURED = 50_000; // characters of code
const SAFE_LINK = /^(https?:\/\/|mailto:)/i;
const PURIFY = {
  RETURN_DOM_FRAGMENT: true,
  ALLOWED_TAGS: [
    "p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "h3", "h4", "h5", "h6",
    "table", "thead", "tbody", "tr", "th", "td", "a", "span",
  ],
  ALLOWED_ATTR: ["href", "class", "start"],
  ALLOWED_URI_REGEXP: SAFE_LINK,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
};

const markdown = new MarkdownIt({ html: false, linkify: true }).use(mathsPlugin);
markdown.validateLink = (url) => SAFE_LINK.test(url.trim());
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false });

// Headings of a reply come below those of the page; alignment of cells would need a style attribute; a picture would
// be a request to wherever the model likes, so it becomes a link that a person may follow.
markdown.core.ruler.push("page", (state) => {
  for (const token of state.tokens) {
    if (token.type.startsWith("heading_")) token.tag = `h${Math.min(6, Number(token.tag[1]) + 2)}`;
    if (token.tag === "th" || token.tag === "td") token.attrs = null;
  }
});
markdown.renderer.rules.image = (tokens, index) => {
  const url = tokens[index].attrGet("src");
  const words = markdown.utils.escapeHtml(tokens[index].content || url);
  return `<a class="picture" href="${markdown.utils.escapeHtml(url)}">Picture: ${words}</a>`;
};
markdown.renderer.rules.fence = (tokens, index) => {
  const language = /^[\w+#.-]{1,20}/.exec(tokens[index].info.trim())?.[0] ?? "";
  const written = coloured(tokens[index].content, language) || markdown.utils.escapeHtml(tokens[index].content);
  return `<pre class="language-${language}"><code>${written}</code></pre>\n`;
};

function coloured(code, language) {
  if (!highlight.getLanguage(language) || code.length > LONGEST_COLOURED) return "";
  return highlight.highlight(code, { language, ignoreIllegals: true }).value;
}

/**
 * Show `source` in `element`, touching only the blocks that changed since the last call: a stream re-renders its last
 * paragraph, and a selection higher up survives.
 */
export function renderInto(element, source) {
  const lines = source.split("\n");
  const environment = {};
  const blocks = topLevel(markdown.parse(source, environment));
  element.blocks ??= [];
  blocks.forEach((tokens, index) => {
    const [start, end] = tokens[0].map;
    const key = `${tokens[0].type}\n${lines.slice(start, end).join("\n")}`;
    if (element.blocks[index]?.key === key) return;
    const made = h("div.block", {}, clean(markdown.renderer.render(tokens, markdown.options, environment)));
    if (element.blocks[index]) element.blocks[index].element.replaceWith(made);
    else element.append(made);
    element.blocks[index] = { key, element: made };
  });
  for (const { element: old } of element.blocks.splice(blocks.length)) old.remove();
}

function topLevel(tokens) {
  const blocks = [];
  let depth = 0;
  for (const token of tokens) {
    if (depth === 0) blocks.push([]);
    blocks.at(-1).push(token);
    depth += token.nesting;
  }
  return blocks;
}

function clean(html) {
  const fragment = DOMPurify.sanitize(html, PURIFY);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
    link.referrerPolicy = "no-referrer";
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = h("div.table", { tabIndex: 0, role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  fragment.querySelectorAll("pre").forEach(frameCode);
  typeset(fragment);
  return fragment;
}

function frameCode(pre) {
  const language = pre.className.replace(/^language-/, "");
  const bar = h("div.code-bar", {}, h("span", {}, language || "code"), copyButton("Copy code", () => pre.textContent));
  const frame = h("div.code");
  pre.replaceWith(frame);
  pre.tabIndex = 0; // wide code scrolls, also by keyboard
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
  frame.append(bar, pre);
}
