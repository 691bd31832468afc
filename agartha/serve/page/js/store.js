// Conversations stay in this browser (IndexedDB). Where it refuses, as in some private windows, they live as long as the page.

const NAME = "agartha";
const STORE = "conversations";
let opening = null;
const memory = new Map();

/** False once the browser refused to keep anything; the page then says so. */
export const keeping = { works: true };

function database() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

async function within(mode, action) {
  const transaction = (await database()).transaction(STORE, mode);
  return await new Promise((resolve, reject) => {
    const request = action(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result); // a request that succeeded is not yet written
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

async function attempt(kept, instead) {
  try {
    if (keeping.works) return await kept();
  } catch {
    keeping.works = false;
  }
  return instead();
}

/** All conversations, latest first. */
export async function listConversations() {
  const all = await attempt(() => within("readonly", (store) => store.getAll()), () => [...memory.values()]);
  return all.sort((a, b) => b.updated - a.updated);
}

export async function readConversation(id) {
  return (await attempt(() => within("readonly", (store) => store.get(id)), () => memory.get(id))) ?? null;
}

export async function keepConversation(conversation) {
  memory.set(conversation.id, conversation);
  await attempt(() => within("readwrite", (store) => store.put(conversation)), () => null);
  told.postMessage(conversation.id);
}

export async function dropConversation(id) {
  memory.delete(id);
  await attempt(() => within("readwrite", (store) => store.delete(id)), () => null);
  told.postMessage(id);
}

const told = new BroadcastChannel("agartha.conversations");

/** Call back with the id of a conversation that another tab of this browser changed. */
export function onElsewhere(callback) {
  told.onmessage = (event) => callback(event.data);
}
