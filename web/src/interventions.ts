// Before and after: what was changed, what it did to the prediction after the chosen token, and through which parts.
import { partsOf } from "./attribution";
import { at, visible } from "./document";
import { bar, choice, h, panel } from "./dom";
import { quoted, share, signed } from "./next";
import type { Store } from "./state";
import { fill } from "./words";

const SHOWN = 8;

export function interventionsView(store: Store): HTMLElement | null {
  const { before, interventions, changes, run } = store.document;
  if (!before || !changes) return null;
  const which = choice<"run" | "before">("which", (value) => store.set({ which: value }));
  const list = h("ul", { class: "chips plainly" }, ...(interventions?.interventions ?? []).map((one) => h("li", {}, sentence(one))));
  const tokens = h("table", { class: "compare" });
  const parts = h("table", { class: "compare" });
  const fact = h("p", { class: "fact" });
  const summary = h("summary");
  const view = panel("interventions", list, which.element,
    h("div", { class: "two" }, h("div", {}, tokens, fact), h("div", {}, parts)),
    h("details", {}, summary, h("pre", { class: "scroll", tabindex: 0 }, JSON.stringify(interventions, null, 2))));
  store.watch(() => {
    const { words, state, column } = store;
    view.title.textContent = words.interventions;
    view.help.textContent = words.interventionsHelp;
    list.setAttribute("aria-label", words.interventions);
    which.update(words.shown, state.which, [["before", words.before], ["run", words.after]]);
    summary.textContent = words.document;
    const change = at(changes, state.position);
    const head = (first: string) => h("thead", {}, h("tr", {}, h("th", { scope: "col" }, first), h("td"),
      ...[words.before, words.after, words.change].map((text) => h("th", { scope: "col", class: "number" }, text))));
    const numbers = (x: number, y: number, write: (value: number) => string, digits: number) =>
      [write(x), write(y), signed(y - x, digits)].map((text) => h("td", { class: "number" }, text));
    const pair = (x: number, y: number, most: number) => {
      const cell = bar(Math.abs(x) / most);
      cell.classList.add("pair");
      cell.append(...bar(Math.abs(y) / most).childNodes);
      return cell;
    };
    tokens.replaceChildren(
      h("caption", {}, fill(words.nextHelp, { token: quoted(at(store.document.tokens, state.position).text) })), head(words.token),
      h("tbody", {}, ...change.ids.map((id, i) => {
        const [x, y] = [at(change.before, i), at(change.after, i)];
        return h("tr", {}, h("th", { scope: "row" }, h("code", {}, visible(store.text(id)))), pair(x, y, 1), ...numbers(x, y, share, 6));
      })),
    );
    fact.textContent = fill(words.moved, { n: change.kl });
    if (column === null) { parts.replaceChildren(h("caption", {}, words.outside)); return; }
    const after = partsOf(run, column, words);
    const both = partsOf(before, column, words).map((part, i) => ({ name: part.name, x: part.value, y: at(after, i).value }));
    both.push({ name: words.total, x: at(before.attribution.logits, column), y: at(run.attribution.logits, column) });
    const shown = both.sort((a, b) => Math.abs(b.y - b.x) - Math.abs(a.y - a.x)).slice(0, SHOWN);
    const most = Math.max(1e-9, ...shown.flatMap(({ x, y }) => [Math.abs(x), Math.abs(y)]));
    parts.replaceChildren(
      h("caption", {}, fill(words.movedParts, { token: quoted(store.text(at(run.attribution.targets, column))) })), head(words.part),
      h("tbody", {}, ...shown.map(({ name, x, y }) => h("tr", {}, h("th", { scope: "row" }, name), pair(x, y, most), ...numbers(x, y, (value) => signed(value, 4), 4)))),
    );
  });
  return view.element;
}

// One intervention as words of its own document: the kind, where, and the rest; long lists of values are left out.
export function sentence(one: Record<string, unknown>): string {
  const said = Object.entries(one).filter(([key]) => key !== "kind").map(([key, value]) => {
    if (key === "tap") return String(value);
    return key === "values" ? "values" : `${key} ${Array.isArray(value) ? value.join(", ") : String(value)}`;
  });
  return [String(one["kind"]), ...said].join(" · ");
}
