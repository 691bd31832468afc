// Puts the page together.
import { Chat } from "./chat.js";
import { composerView } from "./composer.js";
import { Connection } from "./connection.js";
import { $, copyText, announce } from "./dom.js";
import { moveFocus, shortcuts } from "./keys.js";
import { lanesView } from "./lanes.js";
import { forgetRendered } from "./plaque.js";
import { openOptions, sidebarView } from "./sidebar.js";
import { settingsView } from "./settings.js";
import { themeSwitch } from "./theme.js";

const chat = new Chat();
const connection = new Connection(() => settings.askForKey());
const settings = settingsView(connection);
themeSwitch();
const lanes = lanesView(chat);
const sidebar = sidebarView(chat);
composerView(chat, connection);

const compareButton = $("compare-button");
compareButton.addEventListener("click", () => chat.compare(chat.current.lanes.length < 2));
$("title").addEventListener("click", () => openOptions(chat.current));

function head() {
  const two = chat.current.lanes.length > 1;
  const running = chat.isRunning();
  const begun = chat.current.lanes[0].children.root.length > 0;
  $("title").textContent = chat.current.title;
  $("title").disabled = !begun;
  document.title = begun ? `${chat.current.title} – Agartha` : "Agartha";
  compareButton.setAttribute("aria-pressed", String(two));
  compareButton.disabled = running;
}
for (const type of ["conversation", "list", "finished"]) chat.addEventListener(type, head);

chat.addEventListener("finished", (event) => {
  const node = event.detail;
  if (node.error) connection.noticed(node.error);
});
connection.addEventListener("change", () => {
  document.body.dataset.connected = String(connection.ready);
  if (!connection.ready) return;
  forgetRendered();
  chat.setModels(connection.models);
  if (chat.current.lanes.some((lane) => !connection.models.some((model) => model.id === lane.model))) chat.show(chat.current);
});

const press = (name, selector, count) => () => {
  const view = lanes.focused() ?? lanes.last(selector);
  view?.element.querySelector(`[aria-label="${name}"]:not(:disabled)`)?.click();
};
shortcuts({
  "/": ["Write a message", () => $("composer-text").focus()],
  n: ["New conversation", () => sidebar.fresh()],
  j: ["Next message", () => moveFocus(lanes.all(), 1)],
  k: ["Previous message", () => moveFocus(lanes.all(), -1)],
  "]": ["Next branch of the message", press("Next branch", "reply")],
  "[": ["Previous branch of the message", press("Previous branch", "reply")],
  r: ["Another reply", () => (lanes.focused()?.again ? lanes.focused() : lanes.last("reply"))?.again()],
  e: ["Edit the prompt", () => (lanes.focused()?.edit ? lanes.focused() : lanes.last("user"))?.edit()],
  c: ["Copy the message", async () => {
    const view = lanes.focused() ?? lanes.last("reply");
    const text = view?.element.querySelector(".answer:not([hidden]), .tokens, .said")?.textContent;
    if (text && (await copyText(text))) announce("Copied.");
  }],
  p: ["Token probabilities of the reply", press("Token probabilities", "reply")],
  b: ["Conversations", () => sidebar.toggle()],
  s: ["Settings", () => settings.toggle()],
  "?": ["This help", () => $("help-dialog").showModal()],
}, () => chat.stop());

chat.create();
chat.refresh();
connection.check();
$("composer-text").focus();
