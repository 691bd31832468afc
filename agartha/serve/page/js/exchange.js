// Conversations in and out of the browser. What comes in may be any file: it is rebuilt field by field.
import { newId, path } from "./tree.js";

const FORMAT = "agartha.conversations";
const STATES = ["done", "stopped", "failed"];

export function toJson(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

/** The branch that is shown, of each model. */
export function toMarkdown(conversation) {
  const parts = [`# ${conversation.title}`];
  if (conversation.system) parts.push(`> **System prompt:** ${conversation.system.replaceAll("\n", "\n> ")}`);
  for (const lane of conversation.lanes) {
    if (conversation.lanes.length > 1) parts.push(`# ${lane.model}`);
    for (const node of path(lane)) parts.push(...said(node));
  }
  return parts.join("\n\n") + "\n";
}

function said(node) {
  const parts = [`## ${node.role === "user" ? "You" : node.model}`];
  if (node.thinking) parts.push(`<details><summary>Thinking</summary>\n\n${node.thinking.trim()}\n\n</details>`);
  parts.push(node.content.trim());
  if (node.error) parts.push(`*${node.error.message}*`);
  return parts;
}

/** Offer text as a file. */
export function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name.replace(/[^\p{L}\p{N} ._-]+/gu, " ").trim().slice(0, 80) || "conversation";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Conversations from a file's text, under new ids. Raises Error with words for the user. */
export function fromJson(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) throw new Error(`This file holds no ${FORMAT}.`);
  return file.conversations.map((conversation, index) => {
    try {
      return rebuild(conversation);
    } catch (error) {
      throw new Error(`Conversation ${index + 1} cannot be read: ${error.message}`);
    }
  });
}

function rebuild(given) {
  const lanes = given.lanes.slice(0, 2).map(rebuildLane);
  if (!lanes.length) throw new Error("it has no messages.");
  return {
    id: newId(), title: string(given.title).slice(0, 200) || "Imported", system: string(given.system), lanes,
    created: number(given.created) ?? Date.now(), updated: Date.now(),
  };
}

function rebuildLane(given) {
  const lane = { model: string(given.model), nodes: {}, children: { root: [] }, chosen: {} };
  const pending = [["root", null]];
  const met = new Set();
  while (pending.length) {
    const [theirs, parent] = pending.pop();
    if (met.has(theirs)) throw new Error("a message is in two places.");
    met.add(theirs);
    const ours = parent === null ? "root" : rebuildNode(lane, given.nodes[theirs], parent);
    const children = given.children[theirs] ?? [];
    for (const child of [...children].reverse()) pending.push([child, ours]); // a stack: the last pushed comes first
    if (parent !== null && given.chosen[given.nodes[theirs].parent] === theirs) lane.chosen[parent] = ours;
  }
  for (const [parent, ids] of Object.entries(lane.children)) if (ids.length) lane.chosen[parent] ??= ids.at(-1);
  return lane;
}

function rebuildNode(lane, given, parent) {
  const id = newId();
  const node = {
    id, parent, role: given.role === "user" ? "user" : "assistant", content: string(given.content), thinking: string(given.thinking),
    state: STATES.includes(given.state) ? given.state : "done", created: number(given.created) ?? Date.now(), tokens: tokens(given.tokens),
    thinkingSeconds: number(given.thinkingSeconds), model: string(given.model), finish: string(given.finish) || null,
  };
  if (given.error) node.error = { message: string(given.error.message), status: number(given.error.status) ?? 0 };
  lane.nodes[id] = node;
  lane.children[id] = [];
  lane.children[parent].push(id);
  return node.id;
}

function tokens(given) {
  if (!Array.isArray(given)) return [];
  return given.map((token) => ({
    text: string(token.text), logprob: number(token.logprob) ?? 0, kind: token.kind === "thinking" ? "thinking" : "content",
    others: (token.others ?? []).map(([text, logprob]) => [string(text), number(logprob) ?? 0]),
  }));
}

const string = (value) => (typeof value === "string" ? value : "");
const number = (value) => (Number.isFinite(value) ? value : null);
