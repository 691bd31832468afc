// The conversation: one column a model, each with what the model reads first, then the messages of the chosen branch.
import { $, announce, h } from "./dom.js";
import { messageView } from "./message.js";
import { plaqueView } from "./plaque.js";
import { leaf, path } from "./tree.js";

const NEAR_END = 80; // pixels: within these the view follows the stream

export function lanesView(chat) {
  const frame = $("lanes");
  const scroller = $("thread");
  let columns = [];
  let dirty = new Set();
  let scheduled = false;

  function rebuild() {
    const { lanes } = chat.current;
    const sameShape = columns.length === lanes.length && columns.every((column, index) => column.lane === lanes[index]);
    if (!sameShape) {
      columns = lanes.map((lane, index) => laneColumn(chat, lane, index));
      frame.replaceChildren(...columns.map((column) => column.element));
    }
    frame.classList.toggle("two", lanes.length > 1);
    $("switcher").hidden = lanes.length < 2;
    const follow = atEnd();
    for (const column of columns) column.update();
    $("welcome").hidden = lanes[0].children.root.length > 0;
    if (follow || !sameShape) scroller.scrollTop = scroller.scrollHeight;
  }

  const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END;

  // A token may come every few milliseconds: draw at most once a frame, and leave the page twice the time drawing takes.
  function draw() {
    scheduled = false;
    const began = performance.now();
    const follow = atEnd();
    for (const node of dirty) for (const column of columns) column.updateNode(node);
    dirty = new Set();
    if (follow) scroller.scrollTop = scroller.scrollHeight;
    draw.rest = 2 * (performance.now() - began);
  }

  function changed(node) {
    dirty.add(node);
    if (scheduled) return;
    scheduled = true;
    setTimeout(() => requestAnimationFrame(draw), draw.rest ?? 0);
  }

  chat.addEventListener("conversation", rebuild);
  chat.addEventListener("change", (event) => changed(event.detail));
  chat.addEventListener("finished", (event) => {
    rebuild();
    const { state, content, model } = event.detail;
    if (state !== "failed") announce(`${state === "stopped" ? "Stopped" : "Reply finished"}, ${model}: ${content.slice(0, 1000)}`);
  });
  switcher(frame);
  return {
    /** The view of the message that has the focus, or of the last prompt or reply. */
    focused: () => columns.flatMap((column) => column.views()).find((view) => view.element.contains(document.activeElement)),
    last: (role) => columns[0].views().filter((view) => view.element.classList.contains(role)).at(-1),
    all: () => columns.flatMap((column) => column.views()),
  };
}

// On a narrow screen two columns take turns.
function switcher(frame) {
  const buttons = [...$("switcher").querySelectorAll("button")];
  const pick = (index) => {
    frame.dataset.shown = String(index);
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === index)));
  };
  buttons.forEach((button, index) => button.addEventListener("click", () => pick(index)));
  pick(0);
}

function laneColumn(chat, lane, index) {
  const views = new Map();
  const model = h("div.model");
  const room = h("span.room");
  const plaque = plaqueView(chat, lane);
  const list = h("div.messages");
  const element = h("section.lane", { "aria-label": "Model" }, h("div.lane-head", {}, h("div.model-row", {}, model, room), plaque.element), list);

  function update() {
    element.setAttribute("aria-label", `Conversation with ${lane.model}`);
    model.replaceChildren(modelPicker(chat, lane, index));
    room.textContent = roomOf(chat, lane);
    plaque.update();
    const shown = path(lane).map((node) => viewOf(node));
    for (const view of shown) view.update();
    const elements = shown.map((view) => view.element);
    if (elements.length !== list.children.length || elements.some((one, at) => list.children[at] !== one)) list.replaceChildren(...elements);
  }

  function viewOf(node) {
    if (!views.has(node.id)) views.set(node.id, messageView(chat, node));
    return views.get(node.id);
  }

  return {
    lane, element, update,
    updateNode: (node) => views.get(node.id)?.update(),
    views: () => path(lane).map(viewOf),
  };
}

function modelPicker(chat, lane, index) {
  if (chat.models.length < 2) return h("span.model-name", {}, lane.model || "Connecting…");
  const options = chat.models.map((model) => h("option", { value: model.id, selected: model.id === lane.model }, model.id));
  const label = index ? "Second model" : "Model";
  return h("select", { "aria-label": label, onchange: (event) => chat.setModel(lane, event.target.value) }, ...options);
}

function roomOf(chat, lane) {
  const most = chat.models.find((model) => model.id === lane.model)?.max_model_len;
  const usage = leaf(lane)?.usage;
  if (!most) return "";
  const number = (value) => value.toLocaleString("en");
  return usage ? `${number(usage.prompt + usage.completion)} of ${number(most)} tokens` : `${number(most)} tokens of context`;
}
