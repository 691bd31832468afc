// Maths as MathML, by Temml (a plain script: it puts `temml` on the window).

const LONGEST = 5_000; // characters; longer is no formula, and would hold the page up
const DELIMITERS = [["$$", "$$", true], ["\\[", "\\]", true], ["\\(", "\\)", false], ["$", "$", false]];

/** A markdown-it plugin: $..$, $$..$$, \(..\) and \[..\] become span.maths, with the source as their text. */
export function mathsPlugin(markdown) {
  markdown.inline.ruler.before("escape", "maths", inline);
  markdown.block.ruler.before("fence", "maths_block", block, { alt: ["paragraph", "blockquote", "list"] });
  const write = (tokens, index) => {
    const { content, markup } = tokens[index];
    return `<span class="maths${markup === "display" ? " display" : ""}">${markdown.utils.escapeHtml(content)}</span>`;
  };
  markdown.renderer.rules.maths = write;
  markdown.renderer.rules.maths_block = (tokens, index) => `<p>${write(tokens, index)}</p>\n`;
}

function inline(state, silent) {
  for (const [open, close, display] of DELIMITERS) {
    if (!state.src.startsWith(open, state.pos)) continue;
    const start = state.pos + open.length;
    const end = closing(state.src, close, start);
    if (end < 0 || end >= state.posMax) return false;
    const tex = state.src.slice(start, end);
    if (!tex.trim() || tex.length > LONGEST || (open === "$" && isMoney(state.src, start, end))) return false;
    if (!silent) Object.assign(state.push("maths", "math", 0), { content: tex, markup: display ? "display" : "" });
    state.pos = end + close.length;
    return true;
  }
  return false;
}

function closing(source, close, from) {
  let end = source.indexOf(close, from);
  while (close[0] === "$" && end > 0 && source[end - 1] === "\\") end = source.indexOf(close, end + 1);
  return end;
}

// "it costs $5 or $6": a dollar before a space, or a closing one before a digit, is money (Pandoc's rule)
function isMoney(source, start, end) {
  return /\s/.test(source[start]) || /\s/.test(source[end - 1]) || /\d/.test(source[end + 1] ?? "");
}

function block(state, startLine, endLine, silent) {
  const first = lineOf(state, startLine);
  const open = ["$$", "\\["].find((mark) => first.startsWith(mark));
  if (!open) return false;
  const close = open === "$$" ? "$$" : "\\]";
  const lines = [];
  for (let line = startLine; line < endLine; line++) {
    const text = line === startLine ? first.slice(2) : lineOf(state, line);
    const end = text.trimEnd();
    if (!end.endsWith(close)) {
      lines.push(text);
      continue;
    }
    lines.push(end.slice(0, -close.length));
    const tex = lines.join("\n");
    if (tex.length > LONGEST || tex.includes(close)) return false;
    if (silent) return true;
    Object.assign(state.push("maths_block", "math", 0), { content: tex, markup: "display", block: true, map: [startLine, line + 1] });
    state.line = line + 1;
    return true;
  }
  return false;
}

const lineOf = (state, line) => state.src.slice(state.bMarks[line] + state.tShift[line], state.eMarks[line]);

/** Replace the source in each span.maths below `root` by MathML; what Temml cannot read stays as source. */
export function typeset(root) {
  for (const span of root.querySelectorAll("span.maths")) {
    const tex = span.textContent;
    try {
      const options = { displayMode: span.classList.contains("display"), throwOnError: true, trust: false, maxExpand: 200, maxSize: [20, 20] };
      const tree = window.temml.__renderToMathMLTree(tex, options);
      ownStyles(tree);
      span.replaceChildren(tree.toNode());
      span.firstChild.setAttribute("aria-label", tex);
    } catch {
      span.classList.add("unread");
    }
  }
}

// A style attribute would break the content security policy; the same through the style object does not.
function ownStyles(node) {
  if (node.attributes?.style) {
    for (const rule of node.attributes.style.split(";")) {
      const [name, value] = rule.split(":").map((part) => part.trim());
      if (value) node.style[name.replace(/-(\w)/g, (_, letter) => letter.toUpperCase())] = value;
    }
    delete node.attributes.style;
  }
  node.children?.forEach(ownStyles);
}
