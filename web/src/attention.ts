// Attention: every head by what it adds, one map drawn as pixels, and the row of the chosen token.
import { diverging, heat, heatCss, palette } from "./colour";
import { at, visible } from "./document";
import { bar, context, h, panel, scale, size, table, tableBelow } from "./dom";
import { layerNumbers, write } from "./lens";
import { attentionMap, shrunk } from "./maps";
import { quoted, signed } from "./next";
import type { Store } from "./state";
import { fill } from "./words";

const LEFT = 30;
const LABEL = 74; // room for tokens beside the map and below it
const LABELLED = 12; // from this size of a cell on, tokens are written
const SIDE = 520;

export function attentionView(store: Store): HTMLElement {
  const { n_layers, n_heads } = store.document.model;
  const heads = h("canvas", { tabindex: 0, role: "img", id: "heads" });
  const headsTitle = h("h3");
  const headsHelp = h("p", { class: "help" });
  const headsLegend = h("div", { class: "legend", "aria-hidden": "true" });
  const headsTip = h("p", { class: "tip short" });
  const all = h("button", { type: "button" });
  const layerMean = h("button", { type: "button" });
  const mapTitle = h("h3", { "aria-live": "polite" });
  const map = h("canvas", { role: "img", tabindex: 0, id: "attention-map" });
  const mapLegend = h("div", { class: "legend", "aria-hidden": "true" });
  const tip = h("p", { class: "tip" });
  const row = h("table", { class: "bars" });
  const below = tableBelow();
  const view = panel("attention",
    h("div", { class: "split" },
      h("div", {}, headsTitle, headsHelp, h("div", { class: "scroll" }, heads), headsLegend, h("div", { class: "buttons" }, all, layerMean), headsTip),
      h("div", {}, mapTitle, map, mapLegend, tip),
      h("div", {}, row)),
    below.element);
  let shown: Uint8Array = new Uint8Array();
  let shownKey = "";
  let pixels: HTMLCanvasElement | null = null;
  let pixelsKey = "";
  let box = 14;
  let cell = 1; // of the map, and where its cells begin
  let edge = 0;
  const power = store.document.tokens.length > 200 ? 0.35 : 0.5; // so that small weights are seen, most of all on small dots
  const n = store.document.tokens.length;

  const headAt = (event: MouseEvent) => {
    const bounds = heads.getBoundingClientRect();
    const head = Math.floor((event.clientX - bounds.left - LEFT) / box);
    const rowAt = Math.floor((event.clientY - bounds.top - 2) / box);
    return head >= 0 && head < n_heads && rowAt >= 0 && rowAt < n_layers ? { head, layer: n_layers - 1 - rowAt } : null;
  };
  const choose = (layer: number | null, head: number | null) =>
    store.set(layer === null ? { attentionLayer: null, head } : { attentionLayer: layer, layer, head });
  const tellHead = () => {
    const { attentionLayer: layer, head } = store.state;
    headsTip.textContent = layer === null || head === null ? "" : fill(store.words.headName, { layer, head }) + added(store, layer, head);
  };
  heads.addEventListener("click", (event) => {
    const found = headAt(event);
    if (found) choose(found.layer, found.head);
  });
  heads.addEventListener("mousemove", (event) => {
    const found = headAt(event);
    if (found) headsTip.textContent = fill(store.words.headName, found) + added(store, found.layer, found.head);
  });
  heads.addEventListener("mouseleave", tellHead);
  heads.addEventListener("keydown", (event) => {
    const layer = store.state.attentionLayer ?? store.state.layer;
    const head = store.state.head ?? 0;
    const to: Record<string, [number, number]> = {
      ArrowRight: [layer, head + 1], ArrowLeft: [layer, head - 1], ArrowUp: [layer + 1, head], ArrowDown: [layer - 1, head],
      Home: [layer, 0], End: [layer, n_heads - 1],
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
    const from = Math.floor((event.clientY - bounds.top - 1) / cell);
    const to = Math.floor((event.clientX - bounds.left - edge - 1) / cell);
    return from >= 0 && from < n && to >= 0 && to < n ? { from, to } : null;
  };
  map.addEventListener("mousemove", (event) => {
    const found = pair(event);
    if (found) tip.textContent = `${place(store, found.from)} → ${place(store, found.to)}: ${weight(at(shown, found.from * n + found.to))}`;
  });
  map.addEventListener("mouseleave", () => { tip.textContent = ""; });
  map.addEventListener("click", (event) => {
    const found = pair(event);
    if (found) store.set({ position: found.from });
  });
  map.addEventListener("keydown", (event) => {
    const { position } = store.state;
    const moves: Record<string, number> = {
      ArrowDown: position + 1, ArrowRight: position + 1, ArrowUp: position - 1, ArrowLeft: position - 1, Home: 0, End: n - 1,
    };
    const move = moves[event.key];
    if (move === undefined) return;
    event.preventDefault();
    store.set({ position: move });
  });

  const drawHeads = () => {
    const p = palette();
    const column = store.column;
    box = Math.max(9, Math.min(18, Math.floor(300 / n_heads)));
    const pen = size(heads, LEFT + n_heads * box + 2, n_layers * box + 4);
    const values = column === null ? null : store.run.attribution.heads.map((layer) => layer.map((head) => at(head, column)));
    const most = Math.max(1e-9, ...(values ?? [[0]]).flat().map(Math.abs));
    layerNumbers(pen, n_layers, store.state.layer, LEFT - 7, 2, box);
    for (let layer = 0; layer < n_layers; layer++) {
      const y = 2 + (n_layers - 1 - layer) * box;
      for (let head = 0; head < n_heads; head++) {
        pen.fillStyle = diverging(values ? at(at(values, layer), head) / most : 0, p);
        pen.fillRect(LEFT + head * box, y, box - 1, box - 1);
        pen.strokeStyle = p.line;
        pen.lineWidth = 0.5;
        pen.strokeRect(LEFT + head * box, y, box - 1, box - 1);
      }
    }
    const ends = values ? [signed(-most), signed(most)] : ["−", "+"];
    scale(headsLegend, ends[0] ?? "", Array.from({ length: 13 }, (_, i) => diverging((i - 6) / 6, p)), ends[1] ?? "");
    const { attentionLayer, head } = store.state;
    if (attentionLayer === null) return;
    pen.strokeStyle = p.accent;
    pen.lineWidth = 2;
    pen.strokeRect(LEFT + (head ?? 0) * box - 1, 1 + (n_layers - 1 - attentionLayer) * box, (head === null ? n_heads : 1) * box + 1, box + 1);
  };

  const drawMap = () => {
    const p = palette();
    const room = Math.min(SIDE, map.parentElement?.clientWidth ?? 320);
    const labelled = (room - LABEL) / n >= LABELLED;
    edge = labelled ? LABEL : 0;
    const side = Math.max(160, Math.min(room - edge, n * 44));
    cell = side / n;
    const pen = size(map, edge + side + 2, side + 2 + edge);
    const dots = Math.round(side * (window.devicePixelRatio || 1));
    const key = `${shownKey} ${p.dark} ${dots}`;
    if (key !== pixelsKey || !pixels) pixels = picture(n > dots ? shrunk(shown, n, dots) : shown, power, p);
    pixelsKey = key;
    pen.imageSmoothingEnabled = false;
    pen.drawImage(pixels, edge + 1, 1, side, side);
    const { position } = store.state;
    pen.strokeStyle = p.line;
    pen.lineWidth = 1;
    pen.strokeRect(edge + 0.5, 0.5, side + 1, side + 1);
    pen.strokeStyle = p.accent;
    pen.lineWidth = n > 200 ? 1 : 2;
    pen.strokeRect(edge + 1, Math.min(position * cell, side - 2) + 0.5, side - 2, Math.max(1, cell - 1));
    if (!labelled) return;
    pen.font = "11px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace";
    pen.textBaseline = "middle";
    store.document.tokens.forEach(({ text }, i) => {
      pen.fillStyle = i === position ? p.accent : p.soft;
      pen.textAlign = "right";
      write(pen, visible(text), edge - 6, (i + 0.5) * cell, LABEL - 8);
      pen.save();
      pen.translate(edge + (i + 0.5) * cell, side + 6);
      pen.rotate(-Math.PI / 2);
      write(pen, visible(text), 0, 0, LABEL - 8);
      pen.restore();
    });
  };

  store.watch(() => {
    const { words, state, run, document: doc } = store;
    const strongest = run.attention.encoding === "strongest";
    view.title.textContent = words.attention;
    view.help.textContent = words.attentionHelp + (strongest ? ` ${words.strongestOnly}` : "");
    headsTitle.textContent = words.heads;
    const target = store.column === null ? "" : quoted(store.text(at(run.attribution.targets, store.column)));
    headsHelp.textContent = store.column === null ? words.outside : fill(words.headsHelp, { token: target });
    heads.setAttribute("aria-label", headsHelp.textContent);
    all.textContent = words.allHeads;
    layerMean.textContent = fill(words.layerMean, { layer: state.attentionLayer ?? state.layer });
    all.setAttribute("aria-pressed", String(state.attentionLayer === null));
    layerMean.setAttribute("aria-pressed", String(state.attentionLayer !== null && state.head === null));
    tellHead();
    const layer = state.attentionLayer;
    const name = layer === null ? words.allHeads : state.head === null ? fill(words.layerMean, { layer })
      : fill(words.headName, { layer, head: state.head });
    mapTitle.textContent = name;
    map.setAttribute("aria-label", `${words.attention}: ${name}`);
    const key = `${String(layer)} ${String(state.head)} ${state.which}`;
    if (key !== shownKey) shown = attentionMap(run.attention, layer, state.head);
    shownKey = key;
    const p = palette();
    scale(mapLegend, "0", Array.from({ length: 12 }, (_, i) => heatCss((i / 11) ** power, p)), "1", words.weight);
    const from = state.position;
    const weights = Array.from(shown.subarray(from * n, from * n + from + 1), (value, to) => ({ value, to }))
      .filter((one) => one.value > 0).sort((a, b) => b.value - a.value || b.to - a.to);
    row.replaceChildren(
      h("caption", {}, fill(words.looksAt, { token: quoted(at(doc.tokens, from).text) })),
      h("tbody", {}, ...weights.slice(0, 12).map(({ value, to }) => h("tr", {},
        h("th", { scope: "row", title: visible(at(doc.tokens, to).text) }, h("code", {}, visible(at(doc.tokens, to).text))),
        h("td", { class: "place" }, String(to + 1)), bar(value / 255), h("td", { class: "number" }, weight(value))))),
    );
    below.update(words.asTable, () => table(`${name} · ${fill(words.looksAt, { token: quoted(at(doc.tokens, from).text) })}`,
      [words.position, words.token, words.weight], weights.map(({ value, to }) => [String(to + 1), visible(at(doc.tokens, to).text), weight(value)])));
    requestAnimationFrame(() => { drawHeads(); drawMap(); });
  });
  window.addEventListener("resize", () => { drawHeads(); drawMap(); });
  return view.element;
}

const weight = (byte: number) => (byte / 255).toFixed(3);

const place = (store: Store, i: number) => `${quoted(at(store.document.tokens, i).text)} (${i + 1})`;

function added(store: Store, layer: number, head: number): string {
  const value = store.column === null ? undefined : store.run.attribution.heads[layer]?.[head]?.[store.column];
  return value === undefined ? "" : `: ${signed(value)}`;
}

// One pixel for each weight.
function picture(weights: Uint8Array, power: number, p: ReturnType<typeof palette>): HTMLCanvasElement {
  const side = Math.round(Math.sqrt(weights.length));
  const image = new ImageData(side, side);
  const dots = new Uint32Array(image.data.buffer);
  const colours = Uint32Array.from({ length: 256 }, (_, i) => {
    const [r, g, b] = heat((i / 255) ** power, p);
    return (255 << 24) | (b << 16) | (g << 8) | r;
  });
  for (let i = 0; i < dots.length; i++) dots[i] = colours[weights[i] ?? 0] ?? 0;
  const source = h("canvas", { width: side, height: side });
  context(source).putImageData(image, 0, 0);
  return source;
}
