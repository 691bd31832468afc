// What one can do with conversations. No elements here: views listen to "change" (one node), "conversation" and "list".
import { runReply } from "./reply.js";
import { sampling, samplingBody } from "./sampling.js";
import { dropConversation, keepConversation, listConversations, onElsewhere, readConversation } from "./store.js";
import { above, add, leaf, messages, newId, newLane, path, siblings, step } from "./tree.js";

const SAVE_EVERY_MS = 1000;

export class Chat extends EventTarget {
  models = [];
  list = [];
  current = null;
  #running = new Map(); // node id -> {conversation, controller}
  #saved = new Map(); // conversation id -> time of the last save

  constructor() {
    super();
    onElsewhere((id) => this.#changedElsewhere(id));
    addEventListener("pagehide", () => this.stop());
  }

  #tell(type, detail = null) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Whether a reply of the shown conversation, or of the given one, is being made. */
  isRunning(conversation = this.current) {
    return [...this.#running.values()].some((run) => run.conversation.id === conversation?.id);
  }

  setModels(models) {
    this.models = models;
    if (this.current) this.#tell("conversation");
  }

  #modelOr(id) {
    return this.models.some((model) => model.id === id) ? id : (this.models[0]?.id ?? id);
  }

  async refresh() {
    this.list = await listConversations();
    this.#tell("list");
  }

  async save(conversation = this.current) {
    conversation.updated = Date.now();
    await keepConversation(conversation);
    await this.refresh();
  }

  async #changedElsewhere(id) {
    await this.refresh();
    if (this.current?.id !== id || this.isRunning()) return;
    const conversation = await readConversation(id);
    if (conversation) this.show(conversation);
    else this.create();
  }

  show(conversation) {
    this.current = conversation;
    for (const lane of conversation.lanes) {
      lane.model = this.#modelOr(lane.model);
      for (const node of Object.values(lane.nodes)) {
        if (["streaming", "waiting"].includes(node.state) && !this.#running.has(node.id)) node.state = "stopped";
      }
    }
    this.#tell("conversation");
    this.#tell("list");
  }

  create() {
    const now = Date.now();
    const lanes = [newLane(this.models[0]?.id ?? "")];
    this.show({ id: newId(), title: "New conversation", system: "", lanes, created: now, updated: now });
  }

  async open(id) {
    const running = [...this.#running.values()].find((run) => run.conversation.id === id);
    const conversation = running?.conversation ?? (await readConversation(id));
    if (conversation) this.show(conversation);
  }

  async rename(id, title) {
    const conversation = this.current?.id === id ? this.current : await readConversation(id);
    conversation.title = title;
    await this.save(conversation);
    if (this.current?.id === id) this.#tell("conversation");
  }

  async remove(id) {
    for (const [node, run] of this.#running) {
      if (run.conversation.id !== id) continue;
      run.controller.abort();
      this.#running.delete(node); // what it still says must not bring the conversation back
    }
    await dropConversation(id);
    if (this.current?.id === id) this.create();
    await this.refresh();
  }

  async take(conversations) {
    for (const conversation of conversations) await keepConversation(conversation);
    await this.refresh();
    if (conversations.length) this.show(conversations[0]);
  }

  async setSystem(text) {
    this.current.system = text;
    this.#tell("conversation");
    if (this.current.lanes[0].children.root.length) await this.save();
  }

  setModel(lane, model) {
    lane.model = model;
    this.#tell("conversation");
  }

  /** Put a prompt to every lane, and let each answer. */
  async send(text) {
    const conversation = this.current;
    if (!conversation.lanes[0].children.root.length && conversation.title === "New conversation") {
      conversation.title = titleOf(text);
    }
    for (const lane of conversation.lanes) this.#ask(conversation, lane, leaf(lane)?.id ?? "root", text);
    this.#tell("conversation");
    await this.save(conversation);
  }

  #ask(conversation, lane, parent, text) {
    const prompt = add(lane, parent, { role: "user", content: text, thinking: "", tokens: [], model: "" });
    this.#answer(conversation, lane, prompt);
  }

  /** The prompt anew, as a branch of its own; the other model gets it too where it was asked the same. */
  async edit(node, text) {
    const conversation = this.current;
    const depth = above(this.#laneOf(node), node).length;
    for (const lane of conversation.lanes) {
      const twin = path(lane)[depth];
      if (twin?.id !== node.id && twin?.content !== node.content) continue;
      this.#ask(conversation, lane, twin.parent, text);
    }
    this.#tell("conversation");
    await this.save(conversation);
  }

  /** Another reply beside `node`. */
  async regenerate(node) {
    const lane = this.#laneOf(node);
    this.#answer(this.current, lane, lane.nodes[node.parent]);
    this.#tell("conversation");
    await this.save();
  }

  #laneOf(node) {
    return this.current.lanes.find((lane) => lane.nodes[node.id]);
  }

  async #answer(conversation, lane, prompt) {
    const settings = { ...sampling.get() };
    const body = { model: lane.model, messages: messages(conversation.system, [...above(lane, prompt), prompt]), ...samplingBody() };
    const node = add(lane, prompt.id, {
      role: "assistant", content: "", thinking: "", thinkingSeconds: null, tokens: [], model: lane.model, state: "streaming",
      sampling: settings, showTokens: settings.probabilities === true,
    });
    const controller = new AbortController();
    this.#running.set(node.id, { conversation, controller });
    await runReply(node, body, controller.signal, () => this.#grew(conversation, node));
    if (!this.#running.has(node.id)) return;
    try {
      await this.save(conversation); // first: who sees a reply as finished may close the page and find it kept
    } finally {
      this.#running.delete(node.id);
      this.#tell("change", node);
      this.#tell("finished", node);
    }
  }

  #grew(conversation, node) {
    if (!this.#running.has(node.id)) return;
    this.#tell("change", node);
    if (Date.now() - (this.#saved.get(conversation.id) ?? 0) < SAVE_EVERY_MS) return;
    this.#saved.set(conversation.id, Date.now());
    keepConversation(conversation);
  }

  /** Stop the replies of the shown conversation; what was said stays. */
  stop() {
    for (const run of this.#running.values()) if (run.conversation.id === this.current.id) run.controller.abort();
  }

  /** The sibling `by` places on is shown, and returned; null where there is none. */
  move(node, by) {
    const lane = this.#laneOf(node);
    const shown = step(lane, node, by);
    if (!shown) return null;
    this.#tell("conversation");
    this.save();
    return shown;
  }

  alternatives(node) {
    const ids = siblings(this.#laneOf(node), node);
    return { index: ids.indexOf(node.id), count: ids.length };
  }

  /** A second model beside the first, with the same history; or away again, into a conversation of its own. */
  async compare(on) {
    const { lanes } = this.current;
    if (on) {
      const other = this.models.find((model) => model.id !== lanes[0].model)?.id ?? lanes[0].model;
      lanes.push({ ...structuredClone(lanes[0]), model: other });
      renumber(lanes[1]);
    } else {
      await this.#partWith(lanes.pop());
    }
    this.#tell("conversation");
    if (lanes[0].children.root.length) await this.save();
  }

  async #partWith(lane) {
    if (!lane.children.root.length) return;
    const { title, system, created } = this.current;
    await this.save({ id: newId(), title: `${title} · ${lane.model}`.slice(0, 200), system, created, lanes: [lane] });
  }
}

// Views and runs know a node by its id, so a copied lane needs ids of its own.
function renumber(lane) {
  const fresh = Object.fromEntries(Object.keys(lane.nodes).map((id) => [id, newId()]));
  fresh.root = "root";
  const nodes = Object.values(lane.nodes).map((node) => ({ ...node, id: fresh[node.id], parent: fresh[node.parent] }));
  const state = (node) => (["streaming", "waiting"].includes(node.state) ? "stopped" : node.state);
  lane.nodes = Object.fromEntries(nodes.map((node) => [node.id, { ...node, state: state(node) }]));
  lane.children = Object.fromEntries(Object.entries(lane.children).map(([id, ids]) => [fresh[id], ids.map((child) => fresh[child])]));
  lane.chosen = Object.fromEntries(Object.entries(lane.chosen).map(([id, child]) => [fresh[id], fresh[child]]));
}

function titleOf(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 59).trimEnd()}…` : line;
}
