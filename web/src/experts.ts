// Experts: the ribbon (layers up, tokens across, each cell in the colours of its experts) and the load of one layer.
import { expertColour, expertInk, palette } from "./colour";
import { at, visible } from "./document";
import { bar, h, panel, table, tableBelow } from "./dom";
import { layerNumbers, write } from "./lens";
import { quoted, share } from "./next";
import type { Store } from "./state";
import { wide } from "./wide";
import { fill } from "./words";

const LEFT = 34;
const HIGH = 22;
const LABELLED = 26; // from this width of a cell on, tokens are written above

export function expertsView(store: Store): HTMLElement | null {
  if (!store.document.run.experts) return null;
  const { n_layers, n_experts } = store.document.model;
  const n = store.document.tokens.length;
  const picture = wide("ribbon");
  const { canvas } = picture;
  const legend = h("ul", { class: "chips" });
  const tip = h("p", { class: "tip", "aria-live": "polite" });
  const loadTitle = h("h3");
  const loadHelp = h("p", { class: "help" });
  const load = h("table", { class: "bars" });
  const below = tableBelow();
  const view = panel("experts", legend, picture.frame, tip, loadTitle, loadHelp, load, below.element);
  let top = 0;
  const cell = (event: MouseEvent) => {
    const position = picture.column(event);
    const row = Math.floor((event.clientY - canvas.getBoundingClientRect().top - top) / HIGH);
    return position >= 0 && row >= 0 && row < n_layers ? { position, layer: n_layers - 1 - row } : null;
  };
  // Pairs of an expert and its share; none in a layer without experts.
  const routes = (layer: number, position: number): [number, number][] => {
    const chosen = store.run.experts?.indices[layer]?.[position] ?? [];
    return chosen.map((expert, i) => [expert, store.run.experts?.weights[layer]?.[position]?.[i] ?? 0]);
  };
  const said = (layer: number, position: number) =>
    routes(layer, position).map(([e, weight]) => `${fill(store.words.expertN, { n: e })} ${weight}`).join("   ") || store.words.noExperts;
  const tell = (layer: number, position: number) => {
    tip.textContent = `${fill(store.words.lensCell, { layer, token: quoted(at(store.document.tokens, position).text) })}: ${said(layer, position)}`;
  };
  canvas.addEventListener("click", (event) => { const found = cell(event); if (found) store.set(found); });
  canvas.addEventListener("mousemove", (event) => { const found = cell(event); if (found) tell(found.layer, found.position); });
  canvas.addEventListener("mouseleave", () => tell(store.state.layer, store.state.position));
  canvas.addEventListener("keydown", (event) => {
    const { position, layer } = store.state;
    const moves: Record<string, { position?: number; layer?: number }> = {
      ArrowRight: { position: position + 1 }, ArrowLeft: { position: position - 1 },
      ArrowUp: { layer: layer + 1 }, ArrowDown: { layer: layer - 1 }, Home: { position: 0 }, End: { position: n - 1 },
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    store.set(move);
  });
  const draw = () => {
    const p = palette();
    const width = Math.max(4, Math.min(90, (picture.frame.clientWidth - LEFT - 2) / n));
    top = width >= LABELLED ? 24 : 3;
    picture.draw(n, width, LEFT, top + n_layers * HIGH + 2, ({ pen, from, to, x }) => {
      pen.font = "11px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace";
      pen.textBaseline = "middle";
      for (let position = from; position < to; position++) {
        if (width >= LABELLED) {
          pen.fillStyle = position === store.state.position ? p.accent : p.soft;
          write(pen, visible(at(store.document.tokens, position).text), x(position) + 2, top / 2, width - 4);
        }
        for (let layer = 0; layer < n_layers; layer++) {
          let y = top + (n_layers - 1 - layer) * HIGH;
          for (const [expert, weight] of routes(layer, position)) {
            pen.fillStyle = expertColour(expert, p);
            pen.fillRect(x(position), y, width - (width > 6 ? 1 : 0), weight * (HIGH - 3));
            y += weight * (HIGH - 3);
          }
        }
      }
      pen.strokeStyle = p.accent;
      pen.lineWidth = 1.5;
      pen.strokeRect(x(store.state.position) - 1, top - 1.5, width + 1, n_layers * HIGH + 1);
      pen.lineWidth = 3;
      pen.strokeRect(x(store.state.position) - 1, top + (n_layers - 1 - store.state.layer) * HIGH - 1, width + 1, HIGH);
    }, (pen) => layerNumbers(pen, n_layers, store.state.layer, LEFT - 9, top, HIGH));
  };
  store.watch(() => {
    const { words, state, run } = store;
    const p = palette();
    view.title.textContent = words.experts;
    view.help.textContent = words.expertsHelp;
    canvas.setAttribute("aria-label", `${words.experts}. ${words.expertsHelp}`);
    legend.setAttribute("aria-label", words.experts);
    legend.replaceChildren(...Array.from({ length: n_experts }, (_, e) => {
      const chip = h("li", {}, fill(words.expertN, { n: e }));
      chip.style.backgroundColor = expertColour(e, p);
      chip.style.color = expertInk(e);
      return chip;
    }));
    tell(state.layer, state.position);
    loadTitle.textContent = words.load;
    const chosen = (run.experts?.indices[state.layer] ?? []).flat();
    loadHelp.textContent = chosen.length ? fill(words.loadHelp, { layer: state.layer }) : `${words.layer} ${state.layer}: ${words.noExperts}.`;
    const shares = Array.from({ length: n_experts }, (_, e) => chosen.filter((one) => one === e).length / chosen.length);
    const most = Math.max(...shares, 1 / n_experts);
    load.replaceChildren(h("tbody", {}, ...(chosen.length ? shares : []).map((value, e) => {
      const even = h("b", { class: "even" });
      even.style.left = `${(1 / n_experts / most) * 100}%`;
      return h("tr", {}, h("th", { scope: "row" }, fill(words.expertN, { n: e })), bar(value / most, expertColour(e, p), even), h("td", { class: "number" }, share(value)));
    })));
    below.update(words.asTable, () => table(quoted(at(store.document.tokens, state.position).text), [words.layer, words.experts],
      Array.from({ length: n_layers }, (_, layer) => [String(layer), said(layer, state.position)])));
    requestAnimationFrame(() => { draw(); picture.reveal(state.position); });
  });
  window.addEventListener("resize", draw);
  return view.element;
}
