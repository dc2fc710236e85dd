// The page: the document is read from the page itself, the views share one selection.
import { attentionView } from "./attention";
import { attributionView } from "./attribution";
import { read } from "./document";
import { choice, h } from "./dom";
import { expertsView } from "./experts";
import { interventionsView } from "./interventions";
import { lensView } from "./lens";
import { nextView } from "./next";
import { Store } from "./state";
import { tokensView } from "./tokens";
import { fill, languages, preferred, type Language } from "./words";

type Theme = "auto" | "light" | "dark";

function start(): void {
  const app = document.getElementById("app");
  const source = document.getElementById("document")?.textContent;
  if (!app || !source) throw new Error("the page has no document");
  const doc = read(source);
  const store = new Store(doc, {
    position: Math.min(doc.n_prompt, doc.tokens.length) - 1, layer: doc.model.n_layers - 1, attentionLayer: null, head: null,
    colourBy: "probability", which: "run", language: preferred(navigator.language),
  });
  const skip = h("a", { class: "skip", href: "#tokens" });
  const tagline = h("p", { class: "tagline" });
  const facts = h("p", { class: "facts" });
  const language = choice<Language>("language", (value) => store.set({ language: value }));
  let theme: Theme = "auto";
  const themes = choice<Theme>("theme", (value) => {
    theme = value;
    if (value === "auto") delete document.documentElement.dataset["theme"];
    else document.documentElement.dataset["theme"] = value;
    store.set({});
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => store.set({}));
  const mark = h("span", { class: "mark", "aria-hidden": "true" }, ...Array.from({ length: 9 }, () => h("i")));
  app.append(
    skip,
    h("header", {},
      h("div", { class: "brand" }, mark, h("div", {}, h("h1", {}, "Vitral"), tagline)),
      h("div", { class: "model" }, h("strong", { title: doc.model.name }, doc.model.name.split("/").pop() ?? ""), facts),
      h("div", { class: "settings" }, language.element, themes.element)),
    h("main", {}, ...[
      tokensView(store), nextView(store), attributionView(store), interventionsView(store), lensView(store), attentionView(store), expertsView(store),
    ].filter((view) => view !== null)),
  );
  store.watch(() => {
    const { words, state } = store;
    document.documentElement.lang = state.language;
    document.title = `Vitral · ${doc.model.name}`;
    skip.textContent = words.skip;
    tagline.textContent = words.tagline;
    const { n_layers: layers, n_heads: heads, dim, n_experts: n, n_experts_per_token: k } = doc.model;
    facts.textContent = [doc.tokens.length === 1 ? words.oneToken : fill(words.tokens, { n: doc.tokens.length }), fill(words.model, { layers, heads, dim }), ...(n ? [fill(words.modelExperts, { n, k })] : [])].join(" · ");
    language.update(words.language, state.language, Object.entries(languages).map(([key, value]) => [key as Language, value.name]));
    themes.update(words.theme, theme, [["auto", words.themes.auto], ["light", words.themes.light], ["dark", words.themes.dark]]);
  });
  document.documentElement.dataset["ready"] = "true";
}

try {
  start();
} catch (error) {
  const words = languages[preferred(navigator.language)].words;
  document.body.prepend(h("p", { role: "alert", class: "panel" }, `${words.broken}: ${error instanceof Error ? error.message : String(error)}`));
  throw error;
}
