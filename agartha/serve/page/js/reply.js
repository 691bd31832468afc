// One reply: ask, follow the stream into a node, wait where the server is busy.
import { streamChat } from "./api.js";

const BUSY_ATTEMPTS = 5;
const LONGEST_WAIT_S = 60;

/** Fill `node` from the stream of `body`. Never raises: how it ended is in node.state and node.error. */
export async function runReply(node, body, signal, changed) {
  try {
    await attempts(node, body, signal, changed);
    node.state = "done";
  } catch (error) {
    node.state = signal.aborted ? "stopped" : "failed";
    if (!signal.aborted) node.error = { message: error.message, status: error.status ?? 0 };
  }
  delete node.retryAt;
  changed(node);
}

async function attempts(node, body, signal, changed) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await follow(node, body, signal, changed);
    } catch (error) {
      if (error.status !== 429 || attempt === BUSY_ATTEMPTS || node.content || node.thinking) throw error;
      const seconds = Math.min(error.retryAfter ?? 2 ** attempt, LONGEST_WAIT_S);
      node.state = "waiting";
      node.retryAt = Date.now() + 1000 * seconds;
      changed(node);
      await sleep(1000 * seconds, signal);
    }
  }
}

async function follow(node, body, signal, changed) {
  const clock = { asked: performance.now(), first: 0, thinking: 0 };
  node.state = "streaming";
  changed(node);
  for await (const chunk of streamChat(body, signal)) {
    take(node, chunk, clock);
    changed(node);
  }
}

function take(node, chunk, clock) {
  if (chunk.usage) note(node, chunk.usage, clock);
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const thinking = choice.delta?.reasoning_content ?? choice.delta?.reasoning ?? "";
  const content = choice.delta?.content ?? "";
  const now = performance.now();
  if (thinking || content) clock.first ||= now;
  if (thinking) clock.thinking ||= now;
  if (clock.thinking && !node.content) node.thinkingSeconds = (now - clock.thinking) / 1000;
  node.thinking += thinking;
  node.content += content;
  for (const entry of choice.logprobs?.content ?? []) node.tokens.push(token(entry, content ? "content" : "thinking"));
  if (choice.finish_reason) node.finish = choice.finish_reason;
}

function token(entry, kind) {
  const others = (entry.top_logprobs ?? []).map((other) => [other.token, other.logprob]);
  return { text: entry.token, logprob: entry.logprob, others, kind };
}

function note(node, usage, clock) {
  const seconds = (performance.now() - (clock.first || clock.asked)) / 1000;
  node.usage = {
    prompt: usage.prompt_tokens,
    completion: usage.completion_tokens,
    firstSeconds: clock.first ? (clock.first - clock.asked) / 1000 : null,
    perSecond: usage.completion_tokens > 1 && seconds > 0.05 ? (usage.completion_tokens - 1) / seconds : null,
  };
}

function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
