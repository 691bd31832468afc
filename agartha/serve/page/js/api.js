// The server's endpoints. Addresses are relative, so that the page also works behind a prefix.
import { events } from "./sse.js";

const KEY = "agartha.api-key";

/** What the server, or its absence, said. `status` is 0 where nothing answered. */
export class ApiError extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }

  get unreachable() {
    return this.status === 0;
  }
}

/** The key lives as long as the tab: session storage, never the disk's. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

async function call(address, body = null, signal = null) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  const options = { method: body ? "POST" : "GET", headers, signal, cache: "no-store" };
  if (body) options.body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  const text = await response.text().catch(() => "");
  let message = text.slice(0, 500);
  try {
    const body = JSON.parse(text);
    message = body.error?.message ?? body.error ?? body.detail ?? body.message ?? message;
  } catch {
    // no JSON: the text itself is the message
  }
  const said = typeof message === "string" ? message : JSON.stringify(message);
  const seconds = Number.parseFloat(response.headers.get("Retry-After"));
  return new ApiError(said || `The server answered ${response.status}.`, response.status, Number.isFinite(seconds) ? seconds : null);
}

/** The served models: [{id, max_model_len?, ...}]. */
export async function listModels() {
  return (await (await call("v1/models")).json()).data;
}

/** Resolves if the engine, not only its web server, is alive. */
export async function health() {
  await call("health");
}

/** What a chat body becomes: {prompt, prompt_tokens}. */
export async function render(body, signal) {
  return await (await call("v1/chat/completions/render", body, signal)).json();
}

/** Yield the chunks of a streamed reply; raises ApiError for an error in the stream or a stream that breaks off. */
export async function* streamChat(body, signal) {
  const response = await call("v1/chat/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  let finished = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") finished = true; // the end of the body follows: leaving earlier would look like hanging up
      if (finished) continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message ?? String(chunk.error), Number(chunk.error.code) || 500);
      yield chunk;
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    throw new ApiError("The connection to the server was lost.");
  }
  if (!finished) throw new ApiError("The server closed the connection before the reply was finished.");
}
