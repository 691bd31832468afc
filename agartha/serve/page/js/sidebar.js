// The list of kept conversations, and what one can do with each.
import { $, announce, h, iconButton } from "./dom.js";
import { download, fromJson, toJson, toMarkdown } from "./exchange.js";
import { keeping, readConversation } from "./store.js";

const NARROW = matchMedia("(max-width: 860px)");

export function sidebarView(chat) {
  const side = $("sidebar");
  const toggle = (open = side.hidden) => {
    side.hidden = !open;
    $("scrim").hidden = !open || !NARROW.matches;
    $("sidebar-button").setAttribute("aria-expanded", String(open));
    if (open) side.querySelector("button").focus();
  };
  const close = () => (toggle(false), $("sidebar-button").focus());
  const fresh = () => {
    chat.create();
    if (NARROW.matches) toggle(false);
    $("composer-text").focus();
  };

  const update = () => {
    $("conversations").replaceChildren(...chat.list.map((conversation) => row(chat, conversation, () => NARROW.matches && close())));
    $("no-conversations").hidden = chat.list.length > 0;
    $("export-all").hidden = chat.list.length === 0;
    $("not-kept").hidden = keeping.works;
  };
  chat.addEventListener("list", update);
  $("new").addEventListener("click", fresh);
  $("sidebar-button").addEventListener("click", () => toggle());
  $("scrim").addEventListener("click", close);
  side.addEventListener("keydown", (event) => event.key === "Escape" && NARROW.matches && close());
  $("export-all").addEventListener("click", () => download("conversations.json", "application/json", toJson(chat.list)));
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", () => takeFile(chat));
  toggle(!NARROW.matches);
  NARROW.addEventListener("change", () => toggle(!NARROW.matches));
  optionsDialog(chat);
  return { toggle, fresh };
}

function row(chat, conversation, after) {
  const here = conversation.id === chat.current?.id;
  const open = h("button.conversation", { type: "button", "aria-current": here ? "true" : null, onclick: async () => (await chat.open(conversation.id), after()) },
    h("span.window", { "aria-hidden": "true" }), h("span.title", {}, conversation.title));
  const options = iconButton("dots", `Options of ${conversation.title}`, () => openOptions(conversation));
  return h("li", {}, open, options);
}

async function takeFile(chat) {
  const input = $("import-file");
  const wrong = $("import-wrong");
  wrong.textContent = "";
  try {
    const conversations = fromJson(await input.files[0].text());
    await chat.take(conversations);
    announce(`${conversations.length} conversations imported.`);
  } catch (error) {
    wrong.textContent = error.message;
  }
  input.value = "";
}

let chosen = null;

/** The dialog in which a conversation is renamed, exported and deleted. */
export function openOptions(conversation) {
  chosen = conversation;
  $("options-title").value = conversation.title;
  $("options-delete").textContent = "Delete";
  delete $("options-delete").dataset.sure;
  $("options-dialog").showModal();
}

function optionsDialog(chat) {
  const dialog = $("options-dialog");
  const whole = async () => (chat.current.id === chosen.id ? chat.current : ((await readConversation(chosen.id)) ?? chosen));
  dialog.querySelector("form").addEventListener("submit", (event) => {
    const title = $("options-title").value.trim();
    if (event.submitter?.value === "save" && title) chat.rename(chosen.id, title);
  });
  $("options-markdown").addEventListener("click", async () => {
    const conversation = await whole();
    download(`${conversation.title}.md`, "text/markdown", toMarkdown(conversation));
  });
  $("options-json").addEventListener("click", async () => {
    const conversation = await whole();
    download(`${conversation.title}.json`, "application/json", toJson([conversation]));
  });
  $("options-delete").addEventListener("click", async () => {
    if (!$("options-delete").dataset.sure) {
      $("options-delete").dataset.sure = "true";
      $("options-delete").textContent = "Delete for good?";
      return announce("Press again to delete for good.");
    }
    dialog.close();
    await chat.remove(chosen.id);
    announce("Conversation deleted.");
    $("new").focus();
  });
}
