// What the model expects after the chosen token, and what an intervention made of it.
import { palette } from "./colour";
import { at, visible } from "./document";
import { bar, h, panel, size } from "./dom";
import type { Store } from "./state";
import { fill } from "./words";

const HIGH = 150;
const LEFT = 34;
const RIGHT = 12;

export function nextView(store: Store): HTMLElement {
  const reality = h("p", { class: "fact" });
  const list = h("table", { class: "bars" });
  const path = h("canvas", { role: "img", class: "path" });
  const pathTitle = h("h3");
  const spoken = h("div", { "aria-live": "polite" }, list, reality);
  const view = panel("next", spoken, pathTitle, path);
  const drawPath = () => {
    if (path.hidden) return;
    const p = palette();
    const { n_layers } = store.document.model;
    const pen = size(path, Math.max(120, view.element.clientWidth - 50), HIGH);
    const wide = path.clientWidth - LEFT - RIGHT;
    const x = (layer: number) => LEFT + (n_layers > 1 ? (layer / (n_layers - 1)) * wide : wide);
    const y = (share: number) => 8 + (1 - share) * (HIGH - 32);
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    pen.strokeStyle = p.line;
    for (const share of [0, 0.5, 1]) {
      pen.fillStyle = p.soft;
      pen.fillText(String(share), LEFT - 8, y(share));
      pen.beginPath();
      pen.moveTo(LEFT, y(share));
      pen.lineTo(LEFT + wide, y(share));
      pen.stroke();
    }
    pen.textAlign = "center";
    for (const layer of new Set([0, Math.floor((n_layers - 1) / 2), n_layers - 1])) pen.fillText(String(layer), x(layer), HIGH - 10);
    const line = (shares: number[], colour: string, width: number) => {
      pen.strokeStyle = colour;
      pen.fillStyle = colour;
      pen.lineWidth = width;
      pen.beginPath();
      shares.forEach((share, layer) => (layer ? pen.lineTo(x(layer), y(share)) : pen.moveTo(x(layer), y(share))));
      pen.stroke();
      shares.forEach((share, layer) => {
        pen.beginPath();
        pen.arc(x(layer), y(share), layer === store.state.layer ? width + 2 : width, 0, 2 * Math.PI);
        pen.fill();
      });
    };
    const column = store.column ?? 0;
    const { before, run } = store.document;
    if (before) line(before.lens.target_probs.map((layer) => at(layer, column)), p.soft, 1.2);
    line(run.lens.target_probs.map((layer) => at(layer, column)), p.fill, 1.8);
  };
  store.watch(() => {
    const { words, state, run, document: doc } = store;
    const prediction = at(run.predictions, state.position);
    view.title.textContent = doc.before ? `${words.next} · ${state.which === "before" ? words.before : words.after}` : words.next;
    view.help.textContent = `${fill(words.nextHelp, { token: quoted(at(doc.tokens, state.position).text) })} · ${fill(words.bits, { n: prediction.entropy })}`;
    list.setAttribute("aria-label", view.help.textContent);
    list.replaceChildren(
      h("tbody", {}, ...prediction.top.ids.map((id, i) => {
        const value = at(prediction.top.probs, i);
        return h("tr", { "data-id": id }, h("th", { scope: "row" }, h("code", {}, visible(store.text(id)))), bar(value), h("td", { class: "number" }, share(value)));
      })),
    );
    const following = doc.tokens[state.position + 1];
    reality.textContent = prediction.next && following
      ? fill(words.reality, { token: quoted(following.text), p: prediction.next.prob, rank: prediction.next.rank })
      : words.end;
    path.hidden = pathTitle.hidden = store.column === null;
    if (store.column === null) return;
    const target = quoted(store.text(at(run.attribution.targets, store.column)));
    pathTitle.textContent = `${fill(words.path, { token: target })}${doc.before ? `; ${words.pathBefore}` : ""}`;
    path.setAttribute("aria-label", pathTitle.textContent);
    requestAnimationFrame(drawPath);
  });
  window.addEventListener("resize", drawPath);
  return view.element;
}

export function quoted(text: string): string {
  return `“${visible(text)}”`;
}

// Numbers as the document has them, to six digits, one below the other.
export const share = (value: number) => value.toFixed(6);
export const signed = (value: number, digits = 6) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(digits)}`;
