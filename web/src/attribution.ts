// What adds up to one logit: a bar for each part of the model, largest first or in the order of the layers.
import { diverging, palette } from "./colour";
import { at } from "./document";
import { h, panel, table, tableBelow } from "./dom";
import { quoted } from "./next";
import type { Store } from "./state";
import { fill, type Words } from "./words";

const SHOWN = 12;

export function attributionView(store: Store): HTMLElement {
  const bars = h("table", { class: "bars signed" });
  const below = tableBelow();
  const view = panel("attribution", bars, below.element);
  store.watch(() => {
    const { words, run, column, document: doc } = store;
    view.title.textContent = words.attribution;
    if (column === null) {
      view.help.textContent = words.outside;
      bars.replaceChildren();
      return;
    }
    const parts = run.attribution.components.map((values, i) => ({ name: partName(i, words), value: at(values, column) }));
    parts.push({ name: words.rounding, value: at(run.attribution.rounding, column) });
    parts.push({ name: words.rest, value: at(run.attribution.rest, column) });
    const logit = at(run.attribution.logits, column);
    const caption = fill(words.attributionHelp, {
      token: quoted(store.text(at(run.attribution.targets, column))), at: quoted(at(doc.tokens, store.state.position).text), logit,
    });
    view.help.textContent = caption;
    const largest = [...parts].sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, SHOWN);
    const most = Math.max(1e-9, ...largest.map((part) => Math.abs(part.value)));
    const p = palette();
    bars.replaceChildren(
      h("caption", { class: "unseen" }, caption),
      h("tbody", {}, ...largest.map(({ name, value }) => {
        const bar = h("i", { class: "bar-fill" });
        const share = (Math.abs(value) / most) * 50;
        bar.style.width = `${share}%`;
        bar.style.marginLeft = `${value < 0 ? 50 - share : 50}%`;
        bar.style.backgroundColor = diverging(Math.sign(value) * 0.9, p);
        return h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "track", "aria-hidden": "true" }, bar),
          h("td", { class: "number" }, signed(value)));
      })),
    );
    below.update(words.asTable, () => table(caption, [words.part, words.adds],
      [...parts.map(({ name, value }) => [name, signed(value)]), [words.total, String(logit)]]));
  });
  return view.element;
}

function partName(i: number, words: Words): string {
  if (i === 0) return words.embedding;
  return `${Math.floor((i - 1) / 2)} ${i % 2 === 1 ? words.attn : words.ffn}`;
}

const signed = (value: number) => (value > 0 ? `+${value}` : String(value));
