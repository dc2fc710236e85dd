// Attention maps: from base64 text to one byte for each pair of tokens.
import type { Maps } from "./document";

function bytes(text: string): Uint8Array {
  const raw = atob(text);
  const found = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
  return found;
}

export function whole(text: string, size: number): Uint8Array {
  const packed = bytes(text);
  const map = new Uint8Array(size * size);
  for (let row = 0, from = 0; row < size; from += ++row) {
    map.set(packed.subarray(from, from + row + 1), row * size);
  }
  return map;
}

export function strongest(text: string, size: number): Uint8Array {
  const packed = bytes(text);
  const n = packed.length / 3;
  const k = n / size;
  const map = new Uint8Array(size * size);
  for (let i = 0; i < n; i++) {
    const column = (packed[2 * i] ?? 0) | ((packed[2 * i + 1] ?? 0) << 8);
    const weight = packed[2 * n + i] ?? 0;
    if (weight > 0) map[Math.floor(i / k) * size + column] = weight;
  }
  return map;
}

// layer and head null: the mean over them.
export function attentionMap(maps: Maps, layer: number | null, head: number | null): Uint8Array {
  if (layer === null) return whole(maps.mean, maps.size);
  const text = head === null ? maps.layers[layer] : maps.heads[layer]?.[head];
  if (text === undefined) throw new Error(`no map of layer ${layer}, head ${String(head)}`);
  return maps.encoding === "whole" ? whole(text, maps.size) : strongest(text, maps.size);
}

// A map of n rows on fewer dots: of the weights that share a dot the largest, so that no line is lost.
export function shrunk(map: Uint8Array, n: number, side: number): Uint8Array {
  const small = new Uint8Array(side * side);
  const to = Array.from({ length: n }, (_, i) => Math.floor((i * side) / n));
  for (let row = 0; row < n; row++) {
    const first = (to[row] ?? 0) * side;
    for (let column = 0; column <= row; column++) {
      const dot = first + (to[column] ?? 0);
      const weight = map[row * n + column] ?? 0;
      if (weight > (small[dot] ?? 0)) small[dot] = weight;
    }
  }
  return small;
}
