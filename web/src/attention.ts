// Attention: every head by what it adds, one map drawn as pixels, and the row of the chosen token.
import { diverging, heat, palette } from "./colour";
import { at, visible } from "./document";
import { context, h, panel, size, table, tableBelow } from "./dom";
import { attentionMap } from "./maps";
import { quoted } from "./next";
import type { Store } from "./state";
import { fill } from "./words";

const LEFT = 30;

export function attentionView(store: Store): HTMLElement {
  const { n_layers, n_heads } = store.document.model;
  const heads = h("canvas", { tabindex: 0, role: "img", id: "heads" });
  const headsTitle = h("h3");
  const headsHelp = h("p", { class: "help" });
  const all = h("button", { type: "button" });
  const layerMean = h("button", { type: "button" });
  const mapTitle = h("h3", { "aria-live": "polite" });
  const map = h("canvas", { role: "img", tabindex: 0, id: "attention-map" });
  const tip = h("p", { class: "tip" });
  const row = h("table", { class: "bars" });
  const below = tableBelow();
  const view = panel("attention",
    h("div", { class: "split" },
      h("div", {}, headsTitle, headsHelp, h("div", { class: "scroll" }, heads), h("div", { class: "buttons" }, all, layerMean)),
      h("div", {}, mapTitle, map, tip),
      h("div", {}, row)),
    below.element);
  let shown: Uint8Array = new Uint8Array();
  let shownKey = "";
  let box = 14;
  const n = store.document.tokens.length;

  const headAt = (event: MouseEvent) => {
    const bounds = heads.getBoundingClientRect();
    const head = Math.floor((event.clientX - bounds.left - LEFT) / box);
    const rowAt = Math.floor((event.clientY - bounds.top) / box);
    return head >= 0 && head < n_heads && rowAt >= 0 && rowAt < n_layers ? { head, layer: n_layers - 1 - rowAt } : null;
  };
  const choose = (layer: number | null, head: number | null) =>
    store.set(layer === null ? { attentionLayer: null, head } : { attentionLayer: layer, layer, head });
  heads.addEventListener("click", (event) => {
    const found = headAt(event);
    if (found) choose(found.layer, found.head);
  });
  heads.addEventListener("mousemove", (event) => {
    const found = headAt(event);
    heads.title = found ? fill(store.words.headName, found) + added(store, found.layer, found.head) : "";
  });
  heads.addEventListener("keydown", (event) => {
    const layer = store.state.attentionLayer ?? store.state.layer;
    const head = store.state.head ?? 0;
    const to: Record<string, [number, number]> = {
      ArrowRight: [layer, head + 1], ArrowLeft: [layer, head - 1], ArrowUp: [layer + 1, head], ArrowDown: [layer - 1, head],
    };
    const move = to[event.key];
    if (!move) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(n_layers - 1, move[0])), Math.max(0, Math.min(n_heads - 1, move[1])));
  });
  all.addEventListener("click", () => choose(null, null));
  layerMean.addEventListener("click", () => choose(store.state.attentionLayer ?? store.state.layer, null));
  const pair = (event: MouseEvent) => {
    const bounds = map.getBoundingClientRect();
    return {
      from: Math.min(n - 1, Math.max(0, Math.floor(((event.clientY - bounds.top) / bounds.height) * n))),
      to: Math.min(n - 1, Math.max(0, Math.floor(((event.clientX - bounds.left) / bounds.width) * n))),
    };
  };
  map.addEventListener("mousemove", (event) => {
    const { from, to } = pair(event);
    tip.textContent = `${quoted(at(store.document.tokens, from).text)} → ${quoted(at(store.document.tokens, to).text)}: ${weight(at(shown, from * n + to))}`;
  });
  map.addEventListener("click", (event) => store.set({ position: pair(event).from }));
  map.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    store.set({ position: store.state.position + step });
  });

  const drawHeads = () => {
    const p = palette();
    const column = store.column;
    box = Math.max(9, Math.min(18, Math.floor(300 / n_heads)));
    const pen = size(heads, LEFT + n_heads * box, n_layers * box + 2);
    const values = column === null ? null : store.run.attribution.heads.map((layer) => layer.map((head) => at(head, column)));
    const most = Math.max(1e-9, ...(values ?? [[1]]).flat().map(Math.abs));
    pen.font = "10px system-ui, sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (let layer = 0; layer < n_layers; layer++) {
      const y = (n_layers - 1 - layer) * box;
      pen.fillStyle = layer === store.state.layer ? p.accent : p.soft;
      if (n_layers <= 40 ? layer % 5 === 0 || layer === store.state.layer : layer % 10 === 0) pen.fillText(String(layer), LEFT - 7, y + box / 2);
      for (let head = 0; head < n_heads; head++) {
        pen.fillStyle = diverging(values ? at(at(values, layer), head) / most : 0, p);
        pen.fillRect(LEFT + head * box, y, box - 1, box - 1);
        pen.strokeStyle = p.line;
        pen.lineWidth = 0.5;
        pen.strokeRect(LEFT + head * box, y, box - 1, box - 1);
      }
    }
    const { attentionLayer, head } = store.state;
    if (attentionLayer === null) return;
    pen.strokeStyle = p.accent;
    pen.lineWidth = 2;
    pen.strokeRect(LEFT + (head ?? 0) * box - 1, (n_layers - 1 - attentionLayer) * box - 1 + 1, (head === null ? n_heads : 1) * box, box);
  };

  const drawMap = () => {
    const p = palette();
    const image = new ImageData(n, n);
    const pixels = new Uint32Array(image.data.buffer);
    const colours = Uint32Array.from({ length: 256 }, (_, i) => {
      const [r, g, b] = heat(Math.sqrt(i / 255), p);
      return (255 << 24) | (b << 16) | (g << 8) | r;
    });
    for (let i = 0; i < pixels.length; i++) pixels[i] = colours[shown[i] ?? 0] ?? 0;
    const position = store.state.position;
    const source = h("canvas", { width: n, height: n });
    context(source).putImageData(image, 0, 0);
    const side = Math.max(200, Math.min(440, map.parentElement?.clientWidth ?? 320));
    const pen = size(map, side, side);
    pen.imageSmoothingEnabled = n > side;
    pen.drawImage(source, 0, 0, side, side);
    pen.strokeStyle = p.accent;
    pen.lineWidth = n > 200 ? 1 : 2;
    pen.strokeRect(1, (position / n) * side, side - 2, Math.max(2, side / n));
  };

  store.watch(() => {
    const { words, state, run, document: doc } = store;
    view.title.textContent = words.attention;
    view.help.textContent = words.attentionHelp + (run.attention.encoding === "strongest" ? ` ${words.strongestOnly}` : "");
    headsTitle.textContent = words.heads;
    const target = store.column === null ? "" : quoted(store.text(at(run.attribution.targets, store.column)));
    headsHelp.textContent = store.column === null ? words.outside : fill(words.headsHelp, { token: target });
    heads.setAttribute("aria-label", headsHelp.textContent);
    all.textContent = words.allHeads;
    layerMean.textContent = fill(words.layerMean, { layer: state.attentionLayer ?? state.layer });
    all.setAttribute("aria-pressed", String(state.attentionLayer === null));
    layerMean.setAttribute("aria-pressed", String(state.attentionLayer !== null && state.head === null));
    const layer = state.attentionLayer;
    const name = layer === null ? words.allHeads : state.head === null ? fill(words.layerMean, { layer })
      : fill(words.headName, { layer, head: state.head }) + added(store, layer, state.head);
    mapTitle.textContent = name;
    map.setAttribute("aria-label", `${words.attention}: ${name}`);
    const key = `${String(layer)} ${String(state.head)} ${state.which}`;
    if (key !== shownKey) shown = attentionMap(run.attention, layer, state.head);
    shownKey = key;
    const from = state.position;
    const weights = Array.from(shown.subarray(from * n, from * n + from + 1), (value, to) => ({ value, to }))
      .filter((one) => one.value > 0).sort((a, b) => b.value - a.value || b.to - a.to);
    row.replaceChildren(
      h("caption", {}, fill(words.looksAt, { token: quoted(at(doc.tokens, from).text) })),
      h("tbody", {}, ...weights.slice(0, 8).map(({ value, to }) => {
        const bar = h("i", { class: "bar-fill" });
        bar.style.width = `${(value / 255) * 100}%`;
        return h("tr", {}, h("th", { scope: "row" }, h("code", {}, visible(at(doc.tokens, to).text)), h("small", {}, ` ${to + 1}`)),
          h("td", { class: "track", "aria-hidden": "true" }, bar), h("td", { class: "number" }, weight(value)));
      })),
    );
    below.update(words.asTable, () => table(`${name} · ${fill(words.looksAt, { token: quoted(at(doc.tokens, from).text) })}`,
      [words.position, words.token, words.weight], weights.map(({ value, to }) => [String(to + 1), visible(at(doc.tokens, to).text), weight(value)])));
    requestAnimationFrame(() => { drawHeads(); drawMap(); });
  });
  window.addEventListener("resize", () => { drawHeads(); drawMap(); });
  return view.element;
}

const weight = (byte: number) => (byte / 255).toFixed(3);

function added(store: Store, layer: number, head: number): string {
  const value = store.column === null ? undefined : store.run.attribution.heads[layer]?.[head]?.[store.column];
  return value === undefined ? "" : `: ${value > 0 ? "+" : ""}${value}`;
}
