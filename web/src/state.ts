// The one selection that all views share.
import type { Document, Run } from "./document";
import { languages, type Language, type Words } from "./words";

export type ColourBy = "probability" | "entropy" | "expert" | "change";

export interface State {
  position: number;
  layer: number;
  attentionLayer: number | null;
  head: number | null;
  colourBy: ColourBy;
  which: "run" | "before";
  language: Language;
}

export class Store {
  private readonly listeners: (() => void)[] = [];
  constructor(readonly document: Document, public state: State) {}

  get words(): Words {
    return languages[this.state.language].words;
  }

  get run(): Run {
    return this.state.which === "before" && this.document.before ? this.document.before : this.document.run;
  }

  // Column of the window; null for a token before it.
  get column(): number | null {
    const { start } = this.document.window;
    return this.state.position >= start ? this.state.position - start : null;
  }

  set(change: Partial<State>): void {
    const next = { ...this.state, ...change };
    next.position = Math.max(0, Math.min(this.document.tokens.length - 1, next.position));
    next.layer = Math.max(0, Math.min(this.document.model.n_layers - 1, next.layer));
    this.state = next;
    for (const listener of this.listeners) listener();
  }

  watch(listener: () => void): void {
    this.listeners.push(listener);
    listener();
  }

  text(id: number): string {
    return this.document.texts[String(id)] ?? `[${id}]`;
  }
}
