// Builds the parts of the page from data. Text goes in as text nodes only, so nothing that somebody
// typed can become markup.

const SVG = "http://www.w3.org/2000/svg";
const SPACE = "\u00a0"; // no line break before the sign
const ACTION_NAMES = { allow: "Allow", caution: "Caution", intervene: "Intervene", error: "Not judged" };
const BREAKS = "Breaks";
const MAY_BREAK = "May break";
const STRATEGIES = {
  pass: "the draft as it is",
  rewritten: "by the rewrite model",
  composed: "from sentences that people wrote for the rules",
  hook: "by the app",
  unavailable: "nothing could be checked, so only this is said",
};

/** Returns an element with attributes and children; strings become text. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

export function percent(probability) {
  if (probability > 0 && probability < 0.01) return `<1${SPACE}%`;
  if (probability > 0.99 && probability < 1) return `>99${SPACE}%`;
  return `${Math.round(probability * 100)}${SPACE}%`;
}

/** What a verdict counts as: its action, or "error", since what was not judged must not look like a pass. */
export function outcome(verdict) {
  return verdict.status === "error" ? "error" : verdict.action;
}

/** Returns the parts of a verdict; `isNew` tells which rules were added on this page. */
export function verdictView(verdict, flaggedFrom, isNew) {
  return [headline(verdict, flaggedFrom), ...remarks(verdict), ruleList(verdict, isNew)];
}

export function badge(verdict) {
  const kind = outcome(verdict);
  return el("span", { class: `badge ${kind}` }, icon(kind), ACTION_NAMES[kind]);
}

function headline(verdict, flaggedFrom) {
  if (verdict.status === "error") return el("div", { class: "headline" }, badge(verdict));
  return el(
    "div",
    { class: "headline" },
    badge(verdict),
    likely(verdict),
    bar(verdict, flaggedFrom),
    el("span", { class: "soft level" }, `level: ${verdict.level.replaceAll("_", " ")}`),
  );
}

function likely(verdict) {
  return el("span", { class: "number" }, `${percent(verdict.probability)} likely unsafe`);
}

/** The number beside it says the same, so the bar is not read out. */
function bar(verdict, flaggedFrom) {
  const fill = el("span", { class: `fill ${outcome(verdict)}` });
  fill.style.width = `${verdict.probability * 100}%`;
  const track = el("span", { class: "bar", "aria-hidden": "true" }, fill);
  if (flaggedFrom > 0) {
    const mark = el("span", { class: "mark" });
    mark.style.left = `${flaggedFrom * 100}%`;
    track.append(mark);
  }
  return track;
}

function remarks(verdict) {
  const said = [];
  if (verdict.status === "error") {
    said.push(`The guard failed, so this turn counts as “${verdict.action}”. ${verdict.reason}`);
  }
  if (verdict.status === "degraded") said.push(`Degraded: ${verdict.reason}`);
  if (verdict.judged_by === "judge") said.push("Decided by the second opinion.");
  if (verdict.coverage && !verdict.coverage.complete) said.push(coverageText(verdict.coverage));
  return said.map((text) => el("p", { class: "remark" }, text));
}

function coverageText(coverage) {
  const parts = coverage.parts_skipped ? `, ${coverage.parts_skipped} parts that are not text left out` : "";
  return (
    `Not read whole: ${coverage.turns_read} of ${coverage.turns_given} turns, ` +
    `${coverage.tokens_read} of ${coverage.tokens_given} tokens${parts}.`
  );
}

function ruleList(verdict, isNew) {
  const broken = new Set(verdict.rules.map((match) => match.rule_id));
  const touched = verdict.touched.filter((match) => !broken.has(match.rule_id));
  const items = [
    ...verdict.rules.map((match) => ruleItem(match, breaks(match), isNew(match))),
    ...touched.map((match) => ruleItem(match, "Touches", isNew(match))),
  ];
  return items.length ? el("ul", { class: `rules ${verdict.action}` }, ...items) : null;
}

// A flagged turn names its likeliest rule, however unlikely it is that this very one is broken.
function breaks(match) {
  return match.probability < 0.5 ? MAY_BREAK : BREAKS;
}

/** Returns a list item for a rule; `how` (it is broken or touched) may be empty. */
export function ruleItem(match, how = "", isNew = false, note = "") {
  const facts = [match.domain?.replaceAll("_", " ")];
  if (Number.isFinite(match.similarity)) facts.push(`similarity ${match.similarity.toFixed(2)}`);
  if (Number.isFinite(match.probability)) facts.push(`probability ${percent(match.probability)}`);
  if (note) facts.push(note);
  return el(
    "li",
    { class: how === BREAKS || how === MAY_BREAK ? "breaks" : "" },
    how ? el("span", { class: "how" }, `${how} `) : null,
    el("span", {}, match.rule),
    isNew ? el("span", { class: "new" }, "your rule") : null,
    el("span", { class: "facts" }, facts.filter(Boolean).join(" · ")),
  );
}

/** Returns the parts of a repair; `place` says where it would stand. */
export function repairView(found, place) {
  const strategy = String(found.strategy ?? "");
  const meaning = STRATEGIES[strategy];
  const verdict = found.verdict_out;
  return [
    el("p", { class: "soft small" }, place),
    el("blockquote", {}, found.text),
    el("p", { class: "soft small" }, `Strategy: ${strategy}${meaning ? `, ${meaning}` : ""}.`),
    verdict?.action in ACTION_NAMES
      ? el("p", { class: "headline" }, badge(verdict), likely(verdict), el("span", { class: "soft" }, "when judged itself"))
      : null,
  ];
}
