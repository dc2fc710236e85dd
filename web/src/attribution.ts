// What adds up to one logit: a bar for each part of the model, largest first; the rest of them as one more.
import { diverging, palette } from "./colour";
import { at, type Run } from "./document";
import { h, panel, signedBar, table, tableBelow } from "./dom";
import { quoted, signed } from "./next";
import type { Store } from "./state";
import { fill, type Words } from "./words";

const SHOWN = 10;

export interface Part {
  name: string;
  value: number;
}

export function attributionView(store: Store): HTMLElement {
  const bars = h("table", { class: "bars signed" });
  const below = tableBelow();
  const view = panel("attribution", bars, below.element);
  store.watch(() => {
    const { words, run, column, document: doc } = store;
    view.title.textContent = doc.before ? `${words.attribution} · ${store.state.which === "before" ? words.before : words.after}` : words.attribution;
    below.element.hidden = column === null;
    if (column === null) {
      view.help.textContent = words.outside;
      bars.replaceChildren();
      return;
    }
    const parts = partsOf(run, column, words);
    const logit = at(run.attribution.logits, column);
    const caption = fill(words.attributionHelp, {
      token: quoted(store.text(at(run.attribution.targets, column))), at: quoted(at(doc.tokens, store.state.position).text), logit,
    });
    view.help.textContent = caption;
    const sorted = [...parts].sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
    const shown = sorted.slice(0, SHOWN);
    const others = sorted.slice(SHOWN);
    if (others.length) shown.push({ name: fill(words.others, { n: others.length }), value: others.reduce((sum, part) => sum + part.value, 0) });
    const most = Math.max(1e-9, ...shown.map((part) => Math.abs(part.value)));
    const p = palette();
    bars.setAttribute("aria-label", caption);
    bars.replaceChildren(
      h("tbody", {}, ...shown.map(({ name, value }) => h("tr", {}, h("th", { scope: "row" }, name),
        signedBar(value, most, diverging(Math.sign(value) * 0.9, p)), h("td", { class: "number" }, signed(value))))),
      h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, words.total), h("td"), h("td", { class: "number" }, signed(logit)))),
    );
    below.update(words.asTable, () => table(caption, [words.part, words.adds],
      [...parts.map(({ name, value }) => [name, signed(value)]), [words.total, String(logit)]]));
  });
  return view.element;
}

// In the order of the layers.
export function partsOf(run: Run, column: number, words: Words): Part[] {
  const { components, rounding, rest } = run.attribution;
  return [
    ...components.map((values, i) => ({ name: partName(i, words), value: at(values, column) })),
    { name: words.rounding, value: at(rounding, column) },
    { name: words.rest, value: at(rest, column) },
  ];
}

function partName(i: number, words: Words): string {
  if (i === 0) return words.embedding;
  return `${Math.floor((i - 1) / 2)} ${i % 2 === 1 ? words.attn : words.ffn}`;
}
