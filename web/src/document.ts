// The document that Python computes (docs/reference/inspect-json.md), and what is read from it.

export interface Prediction {
  entropy: number;
  next: { prob: number; rank: number } | null;
  top: { ids: number[]; probs: number[] };
}

export interface Maps {
  size: number;
  encoding: "whole" | "strongest";
  mean: string;
  layers: string[];
  heads: string[][];
}

export interface Run {
  predictions: Prediction[];
  lens: { ids: number[][][]; probs: number[][][]; target_probs: number[][] };
  attribution: {
    targets: number[];
    logits: number[];
    components: number[][];
    heads: number[][][];
    rounding: number[];
    rest: number[];
  };
  attention: Maps;
  experts: { indices: number[][][]; weights: number[][][] } | null;
}

// What the interventions did to one prediction: the candidates of both readings, and the bits between them.
export interface Change {
  ids: number[];
  before: number[];
  after: number[];
  kl: number;
}

export interface Document {
  format: "vitral-inspect";
  version: 1;
  model: {
    name: string;
    n_layers: number;
    n_heads: number;
    dim: number;
    vocab_size: number;
    n_experts: number;
    n_experts_per_token: number;
  };
  n_prompt: number;
  tokens: { id: number; text: string }[];
  window: { start: number; stop: number };
  texts: Record<string, string>;
  run: Run;
  before?: Run;
  interventions?: { version: number; interventions: Record<string, unknown>[] };
  changes?: Change[];
}

export function read(text: string): Document {
  const found = JSON.parse(text) as Document;
  if (found.format !== "vitral-inspect" || found.version !== 1) {
    throw new Error(`this page reads vitral-inspect version 1, not ${String(found.format)} ${String(found.version)}`);
  }
  return found;
}

// White space that would not be seen is written as a sign.
export function visible(text: string): string {
  return text.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069]/g, "␣");
}

export function at<T>(list: ArrayLike<T>, index: number): T {
  const found = list[index];
  if (found === undefined) throw new Error(`nothing at ${index} of ${list.length}`);
  return found;
}
