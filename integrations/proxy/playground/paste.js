// Reads a pasted conversation. Pure: text in, turns out.

const ROLES = {
  user: "user",
  human: "user",
  tool: "user", // the guard judges a tool's result like something that a user brought in
  function: "user",
  assistant: "assistant",
  ai: "assistant",
  bot: "assistant",
  model: "assistant",
  system: "system",
  developer: "system",
};
const SPEAKER = new RegExp(`^\\s*(${Object.keys(ROLES).join("|")})\\s*:\\s*(.*)$`, "i");

/**
 * Returns { turns, skipped }: user and assistant turns, and how many system messages were left out.
 * Throws an Error with a message for people if there is nothing to read.
 */
export function parseConversation(text) {
  const looksLikeJson = /^\s*(\{|\[\s*[{"\]])/.test(text);
  const messages = looksLikeJson ? fromJson(text) : fromLines(text);
  const turns = messages.filter((turn) => turn.role !== "system" && turn.content.trim());
  if (!turns.length) throw new Error("Expected at least one turn, found none.");
  return { turns, skipped: messages.filter((turn) => turn.role === "system").length };
}

function fromLines(text) {
  const lines = text.split(/\r?\n/);
  return lines.some((line) => SPEAKER.test(line)) ? namedLines(lines) : alternatingLines(lines);
}

function namedLines(lines) {
  const turns = [];
  for (const line of lines) {
    const named = SPEAKER.exec(line);
    if (named) turns.push({ role: ROLES[named[1].toLowerCase()], content: named[2] });
    // A line without a name goes on with the turn before it.
    else if (turns.length) turns.at(-1).content += `\n${line}`;
    else if (line.trim()) turns.push({ role: "user", content: line });
  }
  return turns.map((turn) => ({ ...turn, content: turn.content.trim() }));
}

function alternatingLines(lines) {
  return lines.filter((line) => line.trim()).map((line, number) => ({ role: inTurn(number), content: line.trim() }));
}

function fromJson(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    throw new Error("This looks like JSON, but it cannot be read. Is a bracket or a comma missing?");
  }
  const items = Array.isArray(found) ? found : found.messages;
  if (!Array.isArray(items)) throw new Error("Expected a list of messages, or an object with “messages”.");
  return items.map(readItem);
}

function readItem(item, number) {
  if (typeof item === "string") return { role: inTurn(number), content: item };
  const role = ROLES[String(item?.role).toLowerCase()];
  if (!role) throw new Error(`Message ${number + 1}: expected a role such as “user” or “assistant”.`);
  return { role, content: contentText(item.content) };
}

function contentText(content) {
  if (typeof content === "string") return content;
  const parts = Array.isArray(content) ? content : [];
  const texts = parts.map((part) => (typeof part === "string" ? part : part?.text));
  return texts.filter((found) => typeof found === "string" && found).join("\n");
}

function inTurn(number) {
  return number % 2 ? "assistant" : "user";
}
