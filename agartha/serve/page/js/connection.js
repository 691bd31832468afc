// Is there a server, does it let us in, and which models has it? Shown above the conversation whenever the answer is no.
import { health, listModels } from "./api.js";
import { $ } from "./dom.js";

const RETRY_S = [2, 3, 5, 8, 13]; // pauses between attempts while the server is away

export class Connection extends EventTarget {
  ready = false;
  models = [];
  #attempt = 0;
  #timer = null;
  #checking = false;

  constructor(askForKey) {
    super();
    $("connection-retry").addEventListener("click", () => this.check());
    $("connection-key").addEventListener("click", askForKey);
    addEventListener("online", () => this.check());
  }

  /** Ask now; while the answer is no, ask again by itself. */
  async check() {
    if (this.#checking) return;
    this.#checking = true;
    clearTimeout(this.#timer);
    try {
      this.models = await listModels();
      await health();
      this.ready = this.models.length > 0;
      this.#attempt = 0;
      this.#show(this.ready ? "" : "The server has no model.", "");
    } catch (error) {
      this.ready = false;
      this.#fail(error);
    }
    this.#checking = false;
    this.dispatchEvent(new Event("change"));
  }

  /** A reply failed: was it the server? */
  async noticed(error) {
    if (error.status === 0 || error.status === 401 || error.status === 503) await this.check();
  }

  #fail(error) {
    if (error.status === 401 || error.status === 403) return this.#show("The server asks for an API key.", "key", error.message);
    const seconds = RETRY_S[Math.min(this.#attempt++, RETRY_S.length - 1)];
    this.#timer = setTimeout(() => this.check(), 1000 * seconds);
    const words = error.unreachable
      ? "The server cannot be reached. Is it still running? What you write stays here."
      : `The server answers, but is not ready: ${error.message}`;
    this.#show(words, "retry");
  }

  #show(words, kind) {
    const banner = $("connection");
    if ($("connection-words").textContent !== words) $("connection-words").textContent = words;
    banner.hidden = words === "";
    $("connection-retry").hidden = kind !== "retry";
    $("connection-key").hidden = kind !== "key";
  }
}
