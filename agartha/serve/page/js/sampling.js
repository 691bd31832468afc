// The sampling settings: what a chat body may hold, kept in this browser for all conversations. Empty means the server's default.

const KEPT = "agartha.sampling";

/** In the order of the form. `step` "any" takes any number; `whole` only whole ones. */
export const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, about: "0 always takes the likeliest token." },
  { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01, about: "Keep the likeliest tokens that together reach this share." },
  { name: "top_k", label: "Top k", min: 0, step: 1, whole: true, about: "Keep this many of the likeliest tokens; 0 keeps all." },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, about: "Drop tokens below this share of the likeliest one." },
  { name: "max_tokens", label: "Max tokens", min: 1, step: 1, whole: true, about: "The longest reply, thinking included." },
  { name: "thinking_budget", label: "Thinking budget", min: 0, step: 1, whole: true, about: "Thinking ends after this many tokens." },
  { name: "seed", label: "Seed", min: 0, max: 2 ** 53 - 1, step: 1, whole: true, about: "The same seed, the same reply." },
];

let settings = read();

function read() {
  try {
    return checked(JSON.parse(localStorage.getItem(KEPT)) ?? {});
  } catch {
    return {};
  }
}

// What lies in local storage may be of another version of this page: only what is known and in range is taken.
function checked(given) {
  const known = FIELDS.filter((field) => given[field.name] !== undefined && problem(field, String(given[field.name])) === null);
  const taken = Object.fromEntries(known.map((field) => [field.name, given[field.name]]));
  if (typeof given.stop === "string") taken.stop = given.stop;
  if (given.probabilities === true) taken.probabilities = true;
  return taken;
}

/** What is wrong with a field's text, in words; null if nothing. Empty text is right. */
export function problem(field, text) {
  if (text.trim() === "") return null;
  const value = Number(text);
  if (!Number.isFinite(value)) return `${field.label} must be a number.`;
  if (field.whole && !Number.isInteger(value)) return `${field.label} must be a whole number.`;
  if (field.min !== undefined && value < field.min) return `${field.label} must be at least ${field.min}.`;
  if (field.max !== undefined && value > field.max) return `${field.label} must be at most ${field.max}.`;
  return null;
}

/** {temperature?, ..., stop?: text with a string a line, probabilities?: true} */
export const sampling = {
  get: () => settings,
  set(name, value) {
    settings = { ...settings, [name]: value };
    if (value === undefined) delete settings[name];
    localStorage.setItem(KEPT, JSON.stringify(settings));
  },
  clear() {
    settings = {};
    localStorage.removeItem(KEPT);
  },
};

/** The settings as fields of a chat body. */
export function samplingBody() {
  const { stop, probabilities, ...body } = settings;
  const strings = stopStrings(stop);
  if (strings.length) body.stop = strings;
  if (probabilities) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  return body;
}

/** A stop string a line; \n and \t in it stand for a line break and a tab. */
export function stopStrings(text = "") {
  const lines = text.split("\n").filter((line) => line !== "");
  return lines.map((line) => line.replaceAll("\\n", "\n").replaceAll("\\t", "\t"));
}
