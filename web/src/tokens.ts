// The text: tokens coloured by what the model thought of them. A list box with one stop for the Tab key.
import { expertColour, expertInk, heatCss, inkOn, palette } from "./colour";
import { at, visible } from "./document";
import { choice, h, panel, scale } from "./dom";
import type { ColourBy, Store } from "./state";
import { fill } from "./words";

export function tokensView(store: Store): HTMLElement {
  const list = h("div", { role: "listbox", class: "tokens", id: "tokens", "aria-describedby": "text-help" });
  const legend = h("div", { class: "legend", "aria-hidden": "true" });
  const colours = choice<ColourBy>("colour", (colourBy) => store.set({ colourBy }));
  const view = panel("text", h("div", { class: "bar" }, colours.element, legend), list);
  view.help.id = "text-help";
  const { tokens, n_prompt } = store.document;
  const options = tokens.map((token, i) => {
    const option = h("span", { role: "option", id: `token-${i}`, class: i >= n_prompt ? "token answered" : "token", tabindex: -1 });
    option.textContent = visible(token.text);
    option.addEventListener("click", () => store.set({ position: i }));
    list.append(option, token.text.includes("\n") ? h("br") : h("wbr"));
    return option;
  });
  let shown = 0;
  const move: Record<string, (i: number) => number> = {
    ArrowRight: (i) => i + 1, ArrowDown: (i) => i + 1, ArrowLeft: (i) => i - 1, ArrowUp: (i) => i - 1,
    Home: () => 0, End: () => tokens.length - 1, PageDown: (i) => i + 20, PageUp: (i) => i - 20,
  };
  list.addEventListener("keydown", (event) => {
    const step = move[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    store.set({ position: step(store.state.position) });
    options[store.state.position]?.focus({ preventScroll: true });
  });

  const changes = store.document.changes ?? [];
  const most = Math.max(1e-9, ...changes.map((change) => change.kl));
  let painted = "";
  const paint = () => {
    const { words, run, state } = store;
    const p = palette();
    options.forEach((option, i) => {
      const told = describe(store, i);
      option.title = told;
      option.setAttribute("aria-label", `${at(tokens, i).text}, ${fill(words.tokenN, { n: i + 1, all: tokens.length })}, ${told}${i >= n_prompt ? `, ${words.answered}` : ""}`);
      if (state.colourBy === "expert" && run.experts) {
        const expert = run.experts.indices[state.layer]?.[i]?.[0];
        option.style.backgroundColor = expert === undefined ? "transparent" : expertColour(expert, p);
        option.style.color = expert === undefined ? p.ink : expertInk(expert);
        return;
      }
      const t = state.colourBy === "probability" ? surprise(store, i) : state.colourBy === "change" ? at(changes, i).kl / most
        : at(run.predictions, i).entropy / Math.log2(store.document.model.vocab_size);
      option.style.backgroundColor = t === null ? "transparent" : heatCss(t, p);
      option.style.color = t === null ? p.ink : inkOn(t, p);
    });
    const { n_experts } = store.document.model;
    const blues = Array.from({ length: 12 }, (_, i) => heatCss(i / 11, p));
    if (state.colourBy === "expert") scale(legend, "0", Array.from({ length: n_experts }, (_, e) => expertColour(e, p)), String(n_experts - 1), words.expert);
    else if (state.colourBy === "change") scale(legend, "0", blues, fill(words.bitsShort, { n: most }));
    else {
      const ends = state.colourBy === "probability" ? [...words.legendProbability].reverse() : words.legendEntropy;
      scale(legend, ends[0] ?? "", blues, ends[1] ?? "");
    }
  };
  store.watch(() => {
    const { words, state } = store;
    view.title.textContent = words.text;
    view.help.textContent = words.textHelp;
    list.setAttribute("aria-label", words.text);
    const names: [ColourBy, string][] = [["probability", words.probability], ["entropy", words.entropy]];
    if (store.run.experts) names.push(["expert", `${words.expert} (${words.layer.toLowerCase()} ${state.layer})`]);
    if (changes.length) names.push(["change", words.change]);
    colours.update(words.colourBy, state.colourBy, names);
    const key = `${state.colourBy} ${state.language} ${state.which} ${document.documentElement.dataset["theme"] ?? ""} ${state.colourBy === "expert" ? state.layer : ""}`;
    if (key !== painted) paint();
    painted = key;
    options[shown]?.setAttribute("aria-selected", "false");
    options[shown]?.setAttribute("tabindex", "-1");
    shown = state.position;
    options[shown]?.setAttribute("aria-selected", "true");
    options[shown]?.setAttribute("tabindex", "0");
    list.setAttribute("aria-activedescendant", `token-${shown}`);
    requestAnimationFrame(() => inSight(list, options[store.state.position]));
  });
  return view.element;
}

// Scrolls the list, never the page, until the token is seen.
function inSight(list: HTMLElement, option: HTMLElement | undefined): void {
  if (!option) return;
  const [frame, box] = [list.getBoundingClientRect(), option.getBoundingClientRect()];
  if (box.top < frame.top) list.scrollTop -= frame.top - box.top + 40;
  else if (box.bottom > frame.bottom) list.scrollTop += box.bottom - frame.bottom + 40;
}

// How surprising a token was, from 0 to 1 (ten bits and more); nothing for the first, which nobody expected.
function surprise(store: Store, i: number): number | null {
  const next = store.run.predictions[i - 1]?.next;
  return next ? Math.min(1, -Math.log2(Math.max(next.prob, 1e-9)) / 10) : null;
}

function describe(store: Store, i: number): string {
  const { words, run, state } = store;
  if (state.colourBy === "entropy") return fill(words.bits, { n: at(run.predictions, i).entropy });
  if (state.colourBy === "change") return fill(words.moved, { n: store.document.changes?.[i]?.kl ?? 0 });
  if (state.colourBy === "expert" && run.experts) {
    const expert = run.experts.indices[state.layer]?.[i]?.[0];
    return expert === undefined ? words.noExperts : fill(words.expertN, { n: expert });
  }
  const next = run.predictions[i - 1]?.next;
  return next ? `${words.probability} ${next.prob}` : words.probability + " –";
}
