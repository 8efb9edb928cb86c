// Talks to the server that this page came from. Every failure becomes an Error with a message for people.

const LONGEST_WAIT = 30_000; // milliseconds
const ACTIONS = ["allow", "caution", "intervene"];

let key = ""; // in memory only

export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export function useKey(text) {
  key = text.trim();
}

/** Returns one verdict per message. */
export async function check(messages, signal) {
  const { verdicts } = await call("check", { messages, every_turn: true }, signal);
  // Whatever is not surely a verdict must not be shown as one.
  if (!Array.isArray(verdicts) || verdicts.length !== messages.length || !verdicts.every(isVerdict)) throw garbled();
  return verdicts;
}

/** Returns { text, strategy, verdict_out } for a conversation whose draft must not be shown. */
export async function repair(messages, draft, signal) {
  const found = await call("repair", { messages, draft }, signal);
  if (typeof found.text !== "string") throw garbled();
  return found;
}

export async function addRule(text) {
  const { added } = await call("rules", { rules: [text] });
  if (!areRules(added) || !added.length) throw garbled();
  return added[0];
}

export async function searchRules(text, signal) {
  const { rules } = await call(`rules?${new URLSearchParams({ q: text, k: 5 })}`, null, signal);
  if (!areRules(rules)) throw garbled();
  return rules;
}

async function call(path, body, signal) {
  const response = await send(path, body, signal);
  const answer = await response.json().catch(() => null);
  signal?.throwIfAborted();
  if (!response.ok) throw new ServerError(explain(response, answer), response.status);
  if (!answer || typeof answer !== "object") throw garbled();
  return answer;
}

async function send(path, body, signal) {
  if (/[^\x21-\x7e]/.test(key)) throw new ServerError("The access key holds a character that no key can hold.", 401);
  const headers = { Accept: "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const limits = [AbortSignal.timeout(LONGEST_WAIT), ...(signal ? [signal] : [])];
  try {
    return await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal: AbortSignal.any(limits),
      cache: "no-store",
    });
  } catch (error) {
    signal?.throwIfAborted(); // given up by this page: no failure
    throw new ServerError(error.name === "TimeoutError" ? "The server did not answer in time." : "The server cannot be reached.");
  }
}

function explain(response, answer) {
  const wait = Number.parseInt(response.headers.get("Retry-After"), 10);
  if (response.status === 401) return "This server asks for an access key. Enter it under “Access key”.";
  if (response.status === 429 || response.status === 503) {
    return `The server is busy. Please try again${wait > 0 ? ` in ${wait} s` : ""}.`;
  }
  const said = answer?.error?.message;
  return typeof said === "string" && said ? said.slice(0, 300) : `The server answered with an error (${response.status}).`;
}

function garbled() {
  return new ServerError("The server’s answer could not be read.");
}

function isVerdict(found) {
  const { action, probability, level, rules, touched } = found ?? {};
  const likely = typeof probability === "number" && probability >= 0 && probability <= 1;
  return ACTIONS.includes(action) && likely && typeof level === "string" && areRules(rules) && areRules(touched);
}

function areRules(found) {
  return Array.isArray(found) && found.every((rule) => typeof rule?.rule === "string" && typeof rule.rule_id === "string");
}
