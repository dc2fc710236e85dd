// What the model expects after the chosen token, and what an intervention made of it.
import { at, visible } from "./document";
import { h, panel } from "./dom";
import type { Store } from "./state";
import { fill } from "./words";

export function nextView(store: Store): HTMLElement {
  const reality = h("p", { class: "fact" });
  const list = h("table", { class: "bars" });
  const view = panel("next", list, reality);
  view.element.setAttribute("aria-live", "polite");
  store.watch(() => {
    const { words, state, run, document: doc } = store;
    const prediction = at(run.predictions, state.position);
    view.title.textContent = words.next;
    view.help.textContent = `${fill(words.nextHelp, { token: quoted(at(doc.tokens, state.position).text) })} · ${fill(words.bits, { n: prediction.entropy })}`;
    const compare = doc.before ? at(doc.before.predictions, state.position) : null;
    list.replaceChildren(
      h("caption", { class: "unseen" }, words.next),
      h("thead", { class: compare ? "" : "unseen" }, h("tr", {}, h("th", { scope: "col" }, words.token), h("td"),
        h("th", { scope: "col" }, compare ? (state.which === "before" ? words.before : words.after) : words.share))),
      h("tbody", {}, ...prediction.top.ids.map((id, i) => {
        const share = at(prediction.top.probs, i);
        const bar = h("i", { class: "bar-fill" });
        bar.style.width = `${Math.max(0.4, share * 100)}%`;
        return h("tr", { "data-id": id }, h("th", { scope: "row" }, h("code", {}, visible(store.text(id)))), h("td", { class: "track", "aria-hidden": "true" }, bar), h("td", { class: "number" }, String(share)));
      })),
    );
    const following = doc.tokens[state.position + 1];
    reality.textContent = prediction.next && following
      ? fill(words.reality, { token: quoted(following.text), p: prediction.next.prob, rank: prediction.next.rank })
      : words.end;
  });
  return view.element;
}

export function quoted(text: string): string {
  return `“${visible(text)}”`;
}
