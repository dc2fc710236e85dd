// The lens as a heat map: layers up, tokens across, what each layer would say in each cell.
import { heatCss, inkOn, palette } from "./colour";
import { at, visible } from "./document";
import { h, panel, scale, table, tableBelow } from "./dom";
import { quoted } from "./next";
import type { Store } from "./state";
import { wide } from "./wide";
import { fill } from "./words";

const LEFT = 34;
const TOP = 26;
const HIGH = 22;
const FONT = "12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace";

export function lensView(store: Store): HTMLElement {
  const picture = wide("lens-map");
  const { canvas } = picture;
  const tip = h("p", { class: "tip", "aria-live": "polite" });
  const legend = h("div", { class: "legend", "aria-hidden": "true" });
  const below = tableBelow();
  const view = panel("lens", picture.frame, h("div", { class: "under" }, tip, legend), below.element);
  const { n_layers } = store.document.model;
  const { start, stop } = store.document.window;

  const cell = (event: MouseEvent) => {
    const column = picture.column(event);
    const row = Math.floor((event.clientY - canvas.getBoundingClientRect().top - TOP) / HIGH);
    return column >= 0 && row >= 0 && row < n_layers ? { column, layer: n_layers - 1 - row } : null;
  };
  const tell = (layer: number, column: number) => {
    const { lens } = store.run;
    const ids = at(at(lens.ids, layer), column);
    const said = ids.map((id, i) => `${quoted(store.text(id))} ${at(at(at(lens.probs, layer), column), i)}`).join("   ");
    tip.textContent = `${fill(store.words.lensCell, { layer, token: quoted(at(store.document.tokens, start + column).text) })}: ${said}`;
  };
  canvas.addEventListener("mousemove", (event) => {
    const found = cell(event);
    if (found) tell(found.layer, found.column);
  });
  canvas.addEventListener("mouseleave", () => { if (store.column !== null) tell(store.state.layer, store.column); });
  canvas.addEventListener("click", (event) => {
    const found = cell(event);
    if (found) store.set({ position: start + found.column, layer: found.layer });
  });
  canvas.addEventListener("keydown", (event) => {
    const { position, layer } = store.state;
    const moves: Record<string, { position?: number; layer?: number }> = {
      ArrowRight: { position: position + 1 }, ArrowLeft: { position: Math.max(start, position - 1) },
      ArrowUp: { layer: layer + 1 }, ArrowDown: { layer: layer - 1 }, Home: { position: start }, End: { position: stop - 1 },
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    store.set(move);
  });

  const draw = () => {
    const p = palette();
    const { ids, probs } = store.run.lens;
    const room = picture.frame.clientWidth - LEFT - 2;
    const width = Math.max(58, Math.min(150, room / (stop - start)));
    const answers = at(ids, n_layers - 1);
    picture.draw(stop - start, width, LEFT, TOP + HIGH * n_layers + 2, ({ pen, from, to, x }) => {
      pen.textBaseline = "middle";
      for (let column = from; column < to; column++) {
        pen.font = FONT;
        pen.fillStyle = start + column === store.state.position ? p.accent : p.soft;
        write(pen, visible(at(store.document.tokens, start + column).text), x(column) + 6, TOP / 2, width - 10);
        for (let layer = 0; layer < n_layers; layer++) {
          const y = TOP + (n_layers - 1 - layer) * HIGH;
          const share = at(at(at(probs, layer), column), 0);
          const id = at(at(at(ids, layer), column), 0);
          pen.fillStyle = heatCss(share, p);
          pen.fillRect(x(column), y, width - 1, HIGH - 1);
          pen.font = id === at(at(answers, column), 0) ? `bold ${FONT}` : FONT;
          pen.fillStyle = share < 0.06 ? p.soft : inkOn(share, p);
          write(pen, visible(store.text(id)), x(column) + 6, y + HIGH / 2, width - 10);
        }
      }
      if (store.column === null) return;
      pen.strokeStyle = p.accent;
      pen.lineWidth = 2;
      pen.strokeRect(x(store.column) - 1, TOP - 1, width + 1, HIGH * n_layers + 1);
      pen.lineWidth = 3;
      pen.strokeRect(x(store.column), TOP + (n_layers - 1 - store.state.layer) * HIGH, width - 1, HIGH - 1);
    }, (pen) => layerNumbers(pen, n_layers, store.state.layer, LEFT - 9, TOP, HIGH));
  };
  store.watch(() => {
    const { words, column, state } = store;
    view.title.textContent = words.lens;
    view.help.textContent = words.lensHelp;
    requestAnimationFrame(() => {
      draw();
      if (column !== null) picture.reveal(column);
    });
    const p = palette();
    scale(legend, "0", Array.from({ length: 12 }, (_, i) => heatCss(i / 11, p)), "1", words.share);
    canvas.setAttribute("aria-label", `${words.lens}. ${words.lensHelp}`);
    if (column === null) { tip.textContent = words.outside; return; }
    tell(state.layer, column);
    below.update(words.asTable, () => table(
      fill(words.nextHelp, { token: quoted(at(store.document.tokens, state.position).text) }),
      [words.layer, words.token, words.share, words.guesses],
      Array.from({ length: n_layers }, (_, i) => n_layers - 1 - i).map((layer) => {
        const ids = at(at(store.run.lens.ids, layer), column);
        return [String(layer), visible(store.text(at(ids, 0))), String(at(at(at(store.run.lens.probs, layer), column), 0)), ids.slice(1).map((id) => visible(store.text(id))).join("  ")];
      }),
    ));
  });
  window.addEventListener("resize", draw);
  return view.element;
}

// The layers' numbers at the left, from the bottom up; every one if there is room, else each fifth or tenth.
export function layerNumbers(pen: CanvasRenderingContext2D, n: number, chosen: number, right: number, top: number, high: number): void {
  const p = palette();
  pen.font = "11px system-ui, sans-serif";
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  const step = high >= 14 ? 1 : n <= 40 ? 5 : 10;
  for (let layer = 0; layer < n; layer++) {
    if (layer !== chosen && (layer % step !== 0 || (step > 1 && Math.abs(layer - chosen) < 2))) continue;
    pen.fillStyle = layer === chosen ? p.accent : p.soft;
    pen.fillText(String(layer), right, top + (n - 1 - layer) * high + high / 2);
  }
}

export function write(pen: CanvasRenderingContext2D, text: string, x: number, y: number, width: number): void {
  let cut = Array.from(text).slice(0, 40).join("");
  while (cut.length > 1 && pen.measureText(cut).width > width) cut = `${Array.from(cut.replace(/…$/, "")).slice(0, -1).join("")}…`;
  pen.fillText(cut, x, y);
}
