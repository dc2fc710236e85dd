// Before and after: what was changed, and what it did to the prediction after the chosen token.
import { at, visible } from "./document";
import { choice, h, panel } from "./dom";
import { quoted } from "./next";
import type { Store } from "./state";
import { fill } from "./words";

export function interventionsView(store: Store): HTMLElement | null {
  const { before, interventions, run } = store.document;
  if (!before) return null;
  const which = choice<"run" | "before">("which", (value) => store.set({ which: value }));
  const body = h("table", { class: "plain" });
  const summary = h("summary");
  const view = panel("interventions", which.element, body,
    h("details", {}, summary, h("pre", { class: "scroll", tabindex: 0 }, JSON.stringify(interventions ?? [], null, 2))));
  store.watch(() => {
    const { words, state } = store;
    view.title.textContent = words.interventions;
    view.help.textContent = words.interventionsHelp;
    which.update(words.shown, state.which, [["before", words.before], ["run", words.after]]);
    summary.textContent = words.document;
    const [a, b] = [at(before.predictions, state.position).top, at(run.predictions, state.position).top];
    const share = (top: typeof a, id: number) => { const i = top.ids.indexOf(id); return i < 0 ? null : at(top.probs, i); };
    body.replaceChildren(
      h("caption", {}, fill(words.nextHelp, { token: quoted(at(store.document.tokens, state.position).text) })),
      h("thead", {}, h("tr", {}, ...[words.token, words.before, words.after, words.change].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, ...[...new Set([...a.ids, ...b.ids])].map((id) => {
        const [x, y] = [share(a, id), share(b, id)];
        const change = x === null || y === null ? "–" : `${y - x > 0 ? "+" : ""}${(y - x).toFixed(6)}`;
        return h("tr", {}, h("th", { scope: "row" }, h("code", {}, visible(store.text(id)))), ...[x ?? "–", y ?? "–", change].map((text) => h("td", {}, String(text))));
      })),
    );
  });
  return view.element;
}
