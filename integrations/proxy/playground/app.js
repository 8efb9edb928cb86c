// Joins the parts of the page: when to judge, what to show, and what to say when it fails.

import { ServerError, addRule, check, repair, searchRules, useKey } from "./api.js";
import { EXAMPLES } from "./examples.js";
import { parseConversation } from "./paste.js";
import { addTurn, clearVerdicts, markStale, onChange, setTurns, showVerdict, spoken } from "./turns.js";
import { el, icon, outcome, percent, repairView, ruleItem, verdictView } from "./view.js";

const PAUSE = 450; // milliseconds without a key before a conversation is judged
const SEARCH_PAUSE = 300;
const byId = (id) => document.getElementById(id);
const flaggedFrom = Number(document.documentElement.dataset.flaggedFrom);
const ownRules = new Map(); // id -> rule, added on this page

let timer = 0;
let running = null; // the AbortController of the judgement under way; another one takes its place
let judged = []; // { number, verdict } of the turns that hold text; empty while none is up to date

// --- judging -------------------------------------------------------------------------------------

function judgeSoon(position, typing) {
  running?.abort(); // its answer would be about an older text
  running = null;
  judged = [];
  markStale(position);
  byId("repair").classList.add("stale");
  byId("repair").querySelector("button")?.remove(); // it would act on turns that have changed
  clearTimeout(timer);
  timer = setTimeout(judge, typing ? PAUSE : 0);
}

async function judge() {
  clearTimeout(timer);
  running?.abort();
  const mine = (running = new AbortController());
  const turns = spoken();
  byId("problem").replaceChildren();
  if (!turns.length) return showNothing();
  byId("status").textContent = "Judging …";
  try {
    const found = await check(turns.map(asMessage), mine.signal);
    if (mine !== running) return;
    showVerdicts(turns, found);
    await showRepair(turns, outcome(found.at(-1)) !== "allow", mine);
  } catch (error) {
    if (mine === running && error.name !== "AbortError") fail(error);
  }
}

const asMessage = ({ role, content }) => ({ role, content });

function showVerdicts(turns, found) {
  judged = turns.map(({ number }, place) => ({ number, verdict: found[place] }));
  clearVerdicts();
  const isNew = (match) => ownRules.has(match.rule_id);
  turns.forEach(({ card }, place) => showVerdict(card, verdictView(found[place], flaggedFrom, isNew)));
  byId("status").textContent = summary(found);
  showOwnRules();
}

function summary(found) {
  const names = { allow: "allowed", caution: "caution", intervene: "intervene", error: "not judged" };
  const counts = Object.keys(names)
    .map((kind) => [found.filter((verdict) => outcome(verdict) === kind).length, names[kind]])
    .filter(([count]) => count)
    .map(([count, name]) => `${count} ${name}`);
  return `${found.length} ${found.length === 1 ? "turn" : "turns"} judged: ${counts.join(", ")}.`;
}

function showNothing() {
  clearVerdicts();
  judged = [];
  byId("status").textContent = "Type something, or choose an example.";
  sayInRepair("The repair appears here once a turn is flagged.");
  showOwnRules();
}

/** Says what went wrong and takes the old verdicts away: they would look like an answer. */
function fail(error) {
  clearVerdicts();
  judged = [];
  byId("status").textContent = "";
  byId("problem").replaceChildren(icon("caution"), `Not judged. ${messageOf(error)}`);
  if (error.status === 401) byId("access").open = true;
  sayInRepair("No repair: the conversation was not judged.");
  showOwnRules();
}

function messageOf(error) {
  if (error instanceof ServerError) return error.message;
  reportError(error); // a fault of this page: its text is for developers
  return "This page failed to show the answer.";
}

// --- the repair ----------------------------------------------------------------------------------

async function showRepair(turns, needed, mine) {
  const replaces = turns.at(-1).role === "assistant";
  const context = replaces ? turns.slice(0, -1) : turns;
  if (!context.length) return sayInRepair("A repair answers a conversation: put a turn before the reply.");
  if (!needed) return offerRepair(turns, mine);
  try {
    const found = await repair(context.map(asMessage), replaces ? turns.at(-1).content : "", mine.signal);
    if (mine !== running) return;
    const place = replaces ? "In place of the last turn:" : "As the reply to the last turn:";
    fillRepair(...repairView(found, place), useButton(turns, found, replaces));
  } catch (error) {
    if (mine === running && error.name !== "AbortError") sayInRepair(`No repair. ${messageOf(error)}`);
  }
}

/** Nothing is wrong with the last turn, so a repair would be out of place; it is shown on request. */
function offerRepair(turns, mine) {
  const button = el("button", { type: "button" }, "Show one all the same");
  button.addEventListener("click", async () => {
    await showRepair(turns, true, mine);
    byId("repair").querySelector("button")?.focus();
  });
  fillRepair(el("p", {}, "The last turn passes, so there is nothing to repair."), button);
}

function useButton(turns, found, replaces) {
  const button = el("button", { type: "button" }, replaces ? "Put it in place" : "Put it in as the reply");
  button.addEventListener("click", () => {
    if (!replaces) return addTurn(found.text);
    const { card } = turns.at(-1);
    card.text.value = found.text;
    card.text.focus();
    card.text.dispatchEvent(new Event("input"));
  });
  return button;
}

function sayInRepair(text) {
  fillRepair(el("p", { class: "soft" }, text));
}

function fillRepair(...parts) {
  byId("repair").classList.remove("stale");
  byId("repair").replaceChildren(...parts.filter((part) => part !== null));
}

// --- rules ---------------------------------------------------------------------------------------

async function submitRule() {
  const field = byId("rule-text");
  const text = field.value.trim();
  if (!text) return say("rule-status", "Type a rule first.", true);
  say("rule-status", "Adding …");
  try {
    const added = await addRule(text);
    ownRules.set(added.rule_id, added);
    field.value = "";
    say("rule-status", "Added. The conversation is judged again.");
    await judge();
  } catch (error) {
    say("rule-status", `Not added. ${messageOf(error)}`, true);
  }
}

/** Lists the rules that were added here, each with the turns that it is found in. */
function showOwnRules() {
  const items = [...ownRules.values()].map((rule) => ruleItem({ rule: rule.rule }, "", false, whereFound(rule.rule_id)));
  byId("own-rules").replaceChildren(...items);
}

function whereFound(id) {
  const places = judged.flatMap(({ number, verdict }) => {
    const match = [...verdict.rules, ...verdict.touched].find((found) => found.rule_id === id);
    return match ? [`turn ${number} (similarity ${match.similarity.toFixed(2)})`] : [];
  });
  if (places.length) return `found in ${places.join(", ")}`;
  return judged.length ? "in play in no turn of this conversation" : "";
}

let searching = null;
let searchTimer = 0;

async function search() {
  clearTimeout(searchTimer);
  searching?.abort();
  const mine = (searching = new AbortController());
  const text = byId("search-text").value.trim();
  const show = (rules, note, bad = false) => {
    byId("found-rules").replaceChildren(...rules.map((rule) => ruleItem(rule, "", ownRules.has(rule.rule_id))));
    say("search-status", note, bad);
  };
  if (!text) return show([], "");
  try {
    const found = await searchRules(text, mine.signal);
    if (mine === searching) show(found, found.length ? `The ${found.length} nearest rules:` : "No rule found.");
  } catch (error) {
    if (mine === searching && error.name !== "AbortError") show([], `No search. ${messageOf(error)}`, true);
  }
}

// --- the page ------------------------------------------------------------------------------------

function say(id, text, bad = false) {
  byId(id).textContent = text;
  byId(id).classList.toggle("bad", bad);
}

function usePasted() {
  try {
    const { turns, skipped } = parseConversation(byId("paste-text").value);
    setTurns(turns);
    byId("paste-text").value = "";
    say("paste-problem", `${turns.length} turns read.${skipped ? ` ${skipped} system messages left out: they are the app’s own and are not judged.` : ""}`);
  } catch (error) {
    say("paste-problem", error.message, true);
  }
}

function onSubmit(id, action) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    action();
  });
}

function start() {
  for (const { name, turns } of EXAMPLES) {
    const button = el("button", { type: "button", class: "chip" }, name);
    button.addEventListener("click", () => setTurns(turns));
    byId("examples").append(button);
  }
  if (flaggedFrom > 0) byId("flagged-from").textContent = `From ${percent(flaggedFrom)} on, the mark on the bar, a turn is flagged.`;
  onChange(judgeSoon);
  byId("judge").addEventListener("click", judge);
  byId("add-turn").addEventListener("click", () => addTurn());
  byId("clear").addEventListener("click", () => {
    setTurns([{ role: "user", content: "" }]);
    byId("turns").querySelector("textarea").focus();
  });
  byId("turns").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) judge();
  });
  byId("search-text").addEventListener("input", () => {
    clearTimeout(searchTimer);
    searchTimer = setTimeout(search, SEARCH_PAUSE);
  });
  onSubmit("paste-form", usePasted);
  onSubmit("rule-form", submitRule);
  onSubmit("search-form", search);
  onSubmit("access-form", () => {
    useKey(byId("access-key").value);
    judge();
  });
  setTurns(EXAMPLES[0].turns);
}

start();
