// The list of turns: what was typed, who says it, in which order, and under each turn its verdict.

import { el, icon } from "./view.js";

const list = document.getElementById("turns");
const cards = []; // in the order of the page
let tell = () => {};

/**
 * Calls `callback(position, typing)` whenever the turns from `position` on have to be judged again;
 * `typing` is true if more of it may follow at once.
 */
export function onChange(callback) {
  tell = callback;
}

export function setTurns(turns) {
  cards.length = 0;
  list.replaceChildren();
  for (const turn of turns) append(turn);
  relabel();
  tell(0);
}

/** Adds an empty turn of whoever did not speak last, and moves the focus there. */
export function addTurn(content = "") {
  const role = cards.at(-1)?.role === "user" ? "assistant" : "user";
  append({ role, content });
  relabel();
  cards.at(-1).text.focus();
  if (content) tell(cards.length - 1);
}

/** Returns the turns that hold text, each with its card and its number on the page. */
export function spoken() {
  return cards
    .map((card, position) => ({ card, number: position + 1, role: card.role, content: card.text.value }))
    .filter((turn) => turn.content.trim());
}

export function showVerdict(card, parts) {
  card.item.classList.remove("stale");
  card.verdict.replaceChildren(...parts.filter((part) => part !== null));
}

export function clearVerdicts() {
  for (const card of cards) showVerdict(card, []);
}

/** Marks what is shown under the turns from `position` on as no longer up to date. */
export function markStale(position) {
  for (const card of cards.slice(position)) card.item.classList.add("stale");
}

function append({ role, content }) {
  const card = {
    role,
    number: el("span", { class: "turn-number", "aria-hidden": "true" }),
    swap: el("button", { type: "button", class: "role" }),
    up: iconButton("up"),
    down: iconButton("down"),
    remove: iconButton("remove"),
    text: el("textarea", { rows: 1, autocomplete: "off", placeholder: "Type what is said …" }),
    verdict: el("div", { class: "verdict" }),
  };
  const head = el("div", { class: "turn-head" }, card.number, card.swap, card.up, card.down, card.remove);
  card.item = el("li", {}, head, card.text, card.verdict);
  card.text.value = content;
  connect(card);
  cards.push(card);
  list.append(card.item);
}

function connect(card) {
  card.text.addEventListener("input", () => tell(cards.indexOf(card), true));
  card.swap.addEventListener("click", () => {
    card.role = card.role === "user" ? "assistant" : "user";
    relabel();
    tell(cards.indexOf(card));
  });
  card.up.addEventListener("click", () => move(card, -1, card.up));
  card.down.addEventListener("click", () => move(card, 1, card.down));
  card.remove.addEventListener("click", () => removeCard(card));
}

function move(card, step, button) {
  const from = cards.indexOf(card);
  const to = from + step;
  if (to < 0 || to >= cards.length) return;
  cards.splice(from, 1);
  cards.splice(to, 0, card);
  list.insertBefore(card.item, list.children[step < 0 ? to : to + 1] ?? null);
  relabel();
  button.focus(); // moving an element takes the focus from it
  tell(Math.min(from, to));
}

function removeCard(card) {
  const position = cards.indexOf(card);
  cards.splice(position, 1);
  card.item.remove();
  relabel();
  const next = cards[Math.min(position, cards.length - 1)];
  (next?.text ?? document.getElementById("add-turn")).focus();
  tell(position);
}

/** Writes numbers, names and labels again after any change of roles or order. */
function relabel() {
  cards.forEach((card, position) => {
    const turn = `turn ${position + 1}`;
    const other = card.role === "user" ? "assistant" : "user";
    card.item.dataset.role = card.role;
    card.number.textContent = position + 1;
    card.swap.replaceChildren(card.role === "user" ? "User" : "Assistant", icon("swap"));
    card.swap.setAttribute("aria-label", `${card.role}, ${turn}: change to ${other}`);
    card.text.setAttribute("aria-label", `Text of ${turn}, ${card.role}`);
    card.up.setAttribute("aria-label", `Move ${turn} up`);
    card.down.setAttribute("aria-label", `Move ${turn} down`);
    card.remove.setAttribute("aria-label", `Remove ${turn}`);
    // Not the attribute "disabled": a button that is disabled while it has the focus loses it.
    card.up.setAttribute("aria-disabled", position === 0);
    card.down.setAttribute("aria-disabled", position === cards.length - 1);
  });
}

function iconButton(name) {
  return el("button", { type: "button", class: "plain" }, icon(name));
}
