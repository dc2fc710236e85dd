// The lens as a heat map: layers up, tokens across, what each layer would say in each cell.
import { heatCss, inkOn, palette } from "./colour";
import { at, visible } from "./document";
import { h, panel, size, table, tableBelow } from "./dom";
import { quoted } from "./next";
import type { Store } from "./state";
import { fill } from "./words";

const LEFT = 34;
const TOP = 26;
const HIGH = 22;

export function lensView(store: Store): HTMLElement {
  const canvas = h("canvas", { tabindex: 0, role: "img" });
  const frame = h("div", { class: "scroll", role: "group" }, canvas);
  const tip = h("p", { class: "tip", "aria-live": "polite" });
  const below = tableBelow();
  const view = panel("lens", frame, tip, below.element);
  const { n_layers } = store.document.model;
  const { start, stop } = store.document.window;
  let wide = 60;

  const cell = (event: MouseEvent) => {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - LEFT) / wide);
    const row = Math.floor((event.clientY - box.top - TOP) / HIGH);
    return column >= 0 && column < stop - start && row >= 0 && row < n_layers ? { column, layer: n_layers - 1 - row } : null;
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
    const room = view.element.clientWidth - 2 * 24 - LEFT;
    wide = Math.max(58, Math.min(110, room / (stop - start)));
    const pen = size(canvas, LEFT + wide * (stop - start), TOP + HIGH * n_layers + 2);
    const { lens } = store.run;
    pen.font = "12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace";
    pen.textBaseline = "middle";
    for (let column = 0; column < stop - start; column++) {
      const x = LEFT + column * wide;
      pen.fillStyle = start + column === store.state.position ? p.accent : p.soft;
      write(pen, visible(at(store.document.tokens, start + column).text), x + 6, TOP / 2, wide - 10);
      for (let layer = 0; layer < n_layers; layer++) {
        const y = TOP + (n_layers - 1 - layer) * HIGH;
        const share = at(at(at(lens.probs, layer), column), 0);
        pen.fillStyle = heatCss(share, p);
        pen.fillRect(x, y, wide - 1, HIGH - 1);
        pen.fillStyle = inkOn(share, p);
        pen.globalAlpha = share < 0.06 ? 0.6 : 1;
        write(pen, visible(store.text(at(at(at(lens.ids, layer), column), 0))), x + 6, y + HIGH / 2, wide - 10);
        pen.globalAlpha = 1;
      }
    }
    pen.textAlign = "right";
    for (let layer = 0; layer < n_layers; layer++) {
      pen.fillStyle = layer === store.state.layer ? p.accent : p.soft;
      pen.fillText(String(layer), LEFT - 9, TOP + (n_layers - 1 - layer) * HIGH + HIGH / 2);
    }
    if (store.column === null) return;
    pen.strokeStyle = p.accent;
    pen.lineWidth = 2;
    pen.strokeRect(LEFT + store.column * wide - 1, TOP - 1, wide + 1, HIGH * n_layers + 1);
    pen.lineWidth = 3;
    pen.strokeRect(LEFT + store.column * wide, TOP + (n_layers - 1 - store.state.layer) * HIGH, wide - 1, HIGH - 1);
  };
  store.watch(() => {
    const { words, column, state } = store;
    view.title.textContent = words.lens;
    view.help.textContent = words.lensHelp;
    requestAnimationFrame(() => {
      draw();
      if (column !== null) reveal(frame, LEFT + column * wide, wide);
    });
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

export function reveal(frame: HTMLElement, x: number, width: number): void {
  if (x < frame.scrollLeft + 40) frame.scrollLeft = x - 80;
  else if (x + width > frame.scrollLeft + frame.clientWidth) frame.scrollLeft = x + width - frame.clientWidth + 40;
}

export function write(pen: CanvasRenderingContext2D, text: string, x: number, y: number, width: number): void {
  let cut = Array.from(text).slice(0, 40).join("");
  while (cut.length > 1 && pen.measureText(cut).width > width) cut = `${Array.from(cut.replace(/…$/, "")).slice(0, -1).join("")}…`;
  pen.fillText(cut, x, y);
}
