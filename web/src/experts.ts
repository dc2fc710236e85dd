// Experts: the ribbon (layers up, tokens across, the colour of the first choice) and the load of one layer.
import { expertColour, palette } from "./colour";
import { at, visible } from "./document";
import { h, panel, size, table, tableBelow } from "./dom";
import { reveal } from "./lens";
import { quoted } from "./next";
import type { Store } from "./state";
import { fill } from "./words";

const LEFT = 34;
const HIGH = 18;

export function expertsView(store: Store): HTMLElement | null {
  if (!store.document.run.experts) return null;
  const { n_layers, n_experts } = store.document.model;
  const n = store.document.tokens.length;
  const ribbon = h("canvas", { tabindex: 0, role: "img", id: "ribbon" });
  const frame = h("div", { class: "scroll" }, ribbon);
  const tip = h("p", { class: "tip", "aria-live": "polite" });
  const loadTitle = h("h3");
  const loadHelp = h("p", { class: "help" });
  const load = h("table", { class: "bars" });
  const below = tableBelow();
  const view = panel("experts", frame, tip, loadTitle, loadHelp, load, below.element);
  let wide = 20;
  const cell = (event: MouseEvent) => {
    const box = ribbon.getBoundingClientRect();
    const position = Math.floor((event.clientX - box.left - LEFT) / wide);
    const row = Math.floor((event.clientY - box.top) / HIGH);
    return position >= 0 && position < n && row >= 0 && row < n_layers ? { position, layer: n_layers - 1 - row } : null;
  };
  const routes = (layer: number, position: number) => {
    const experts = store.run.experts;
    if (!experts) return "";
    const weights = at(at(experts.weights, layer), position);
    return at(at(experts.indices, layer), position).map((expert, i) => `${fill(store.words.expertN, { n: expert })} ${at(weights, i)}`).join("   ");
  };
  const tell = (layer: number, position: number) => {
    tip.textContent = `${fill(store.words.lensCell, { layer, token: quoted(at(store.document.tokens, position).text) })}: ${routes(layer, position)}`;
  };
  ribbon.addEventListener("click", (event) => { const found = cell(event); if (found) store.set(found); });
  ribbon.addEventListener("mousemove", (event) => { const found = cell(event); if (found) tell(found.layer, found.position); });
  ribbon.addEventListener("mouseleave", () => tell(store.state.layer, store.state.position));
  ribbon.addEventListener("keydown", (event) => {
    const { position, layer } = store.state;
    const move = { ArrowRight: { position: position + 1 }, ArrowLeft: { position: position - 1 }, ArrowUp: { layer: layer + 1 }, ArrowDown: { layer: layer - 1 } }[event.key];
    if (!move) return;
    event.preventDefault();
    store.set(move);
  });
  const draw = () => {
    const experts = store.run.experts;
    if (!experts) return;
    const p = palette();
    wide = Math.max(4, Math.min(34, (view.element.clientWidth - 48 - LEFT) / n));
    const pen = size(ribbon, LEFT + wide * n + 2, n_layers * HIGH + 2);
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (let layer = 0; layer < n_layers; layer++) {
      const y = (n_layers - 1 - layer) * HIGH;
      pen.fillStyle = layer === store.state.layer ? p.accent : p.soft;
      pen.fillText(String(layer), LEFT - 9, y + HIGH / 2);
      for (let position = 0; position < n; position++) {
        pen.fillStyle = expertColour(at(at(at(experts.indices, layer), position), 0), p);
        pen.globalAlpha = 0.35 + 0.65 * at(at(at(experts.weights, layer), position), 0);
        pen.fillRect(LEFT + position * wide, y, wide - (wide > 6 ? 1 : 0), HIGH - 1);
      }
      pen.globalAlpha = 1;
    }
    pen.strokeStyle = p.ink;
    pen.lineWidth = 2;
    pen.strokeRect(LEFT + store.state.position * wide, (n_layers - 1 - store.state.layer) * HIGH, wide, HIGH);
  };
  store.watch(() => {
    const { words, state, run } = store;
    view.title.textContent = words.experts;
    view.help.textContent = words.expertsHelp;
    ribbon.setAttribute("aria-label", `${words.experts}. ${words.expertsHelp}`);
    tell(state.layer, state.position);
    loadTitle.textContent = words.load;
    loadHelp.textContent = fill(words.loadHelp, { layer: state.layer });
    const p = palette();
    const chosen = (run.experts ? at(run.experts.indices, state.layer) : []).flat();
    const shares = Array.from({ length: n_experts }, (_, e) => chosen.filter((one) => one === e).length / chosen.length);
    const most = Math.max(...shares, 1 / n_experts);
    load.replaceChildren(h("tbody", {}, ...shares.map((share, e) => {
      const bar = h("i", { class: "bar-fill" });
      bar.style.width = `${(share / most) * 100}%`;
      bar.style.backgroundColor = expertColour(e, p);
      const even = h("b", { class: "even" });
      even.style.left = `${(1 / n_experts / most) * 100}%`;
      return h("tr", {}, h("th", { scope: "row" }, fill(words.expertN, { n: e })), h("td", { class: "track", "aria-hidden": "true" }, bar, even), h("td", { class: "number" }, share.toFixed(3)));
    })));
    below.update(words.asTable, () => table(quoted(at(store.document.tokens, state.position).text), [words.layer, words.experts],
      Array.from({ length: n_layers }, (_, layer) => [String(layer), visible(routes(layer, state.position))])));
    requestAnimationFrame(() => { draw(); reveal(frame, LEFT + state.position * wide, wide); });
  });
  window.addEventListener("resize", draw);
  return view.element;
}
