import { expect, test } from "vitest";
import { visible } from "./document";
import { sentence } from "./interventions";
import { attentionMap, shrunk } from "./maps";
import { fill, languages, preferred } from "./words";

const maps = { size: 2, encoding: "whole" as const, mean: btoa("\xff\x33\xcc"), layers: [], heads: [] };

test("a packed triangle becomes a square", () => {
  expect([...attentionMap(maps, null, null)]).toEqual([255, 0, 51, 204]);
});
test("the strongest weights go to their columns", () => {
  const row = "\x00\x00".repeat(8) + "\x01\x00" + "\x00\x00".repeat(7) + "\xff" + "\x00".repeat(7) + "\x80" + "\x00".repeat(7);
  const found = attentionMap({ ...maps, encoding: "strongest", layers: [btoa(row)] }, 0, null);
  expect([...found]).toEqual([255, 0, 0, 128]);
});
test("a map on fewer dots keeps the largest weight of each", () => {
  expect([...shrunk(Uint8Array.from([9, 0, 0, 0, 1, 2, 0, 0, 0, 0, 5, 0, 7, 0, 0, 3]), 4, 2)]).toEqual([9, 0, 7, 5]);
});
test("an intervention is said in the words of its document", () => {
  expect(sentence({ kind: "knock_out", layer: 5, heads: [3, 4] })).toBe("knock_out · layer 5 · heads 3, 4");
  expect(sentence({ kind: "steer", tap: "blocks.3.hook_resid_post", values: { shape: [2] } })).toBe("steer · blocks.3.hook_resid_post · values");
});
test("white space is seen and nothing turns the text around", () => {
  expect(visible(" a\n\u202e")).toBe("·a↵␣");
});
test("what is filled in is not filled in again", () => {
  expect(fill("{a} {b}", { a: "{b}", b: 1 })).toBe("{b} 1");
});
test("both languages use the same places", () => {
  const places = (words: object) => Object.values(words).map((w) => (typeof w === "string" ? (w.match(/\{\w+\}/g) ?? []).sort() : []));
  expect(places(languages["pt-BR"].words)).toEqual(places(languages.en.words));
  expect(preferred("pt-PT")).toBe("pt-BR");
});
