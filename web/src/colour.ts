// Colours of values. Ramps are chosen to be read by colour-blind eyes; each theme has its own ends.
type Rgb = [number, number, number];

export interface Palette {
  dark: boolean;
  surface: Rgb;
  ink: string;
  soft: string;
  line: string;
  accent: string;
  fill: string;
}

export function palette(): Palette {
  const style = getComputedStyle(document.documentElement);
  const get = (name: string) => style.getPropertyValue(name).trim();
  const dark = get("--dark") === "1";
  return {
    dark,
    surface: dark ? [27, 29, 39] : [255, 255, 255],
    ink: get("--ink"),
    soft: get("--soft"),
    line: get("--line"),
    accent: get("--accent"),
    fill: get("--fill"),
  };
}

function mix(a: Rgb, b: Rgb, t: number): Rgb {
  return [0, 1, 2].map((i) => Math.round((a[i] ?? 0) + ((b[i] ?? 0) - (a[i] ?? 0)) * t)) as Rgb;
}

const css = (colour: Rgb) => `rgb(${colour.join(" ")})`;

function ramp(stops: Rgb[], t: number): Rgb {
  const scaled = Math.max(0, Math.min(1, t)) * (stops.length - 1);
  const low = Math.min(stops.length - 2, Math.floor(scaled));
  return mix(stops[low] as Rgb, stops[low + 1] as Rgb, scaled - low);
}

// From the surface, for nothing, to deep blue glass, for everything.
export function heat(t: number, p: Palette): Rgb {
  return p.dark
    ? ramp([p.surface, [36, 62, 118], [58, 122, 196], [128, 206, 232], [232, 250, 250]], t)
    : ramp([p.surface, [214, 230, 247], [122, 172, 226], [44, 98, 184], [18, 38, 98]], t);
}

export const heatCss = (t: number, p: Palette) => css(heat(t, p));

export function inkOn(t: number, p: Palette): string {
  return p.dark ? (t > 0.58 ? "#10131d" : "#f0f2fa") : t > 0.5 ? "#ffffff" : "#1b2033";
}

// Amber for less, blue for more, the surface for nothing: told apart by every kind of eye.
export function diverging(t: number, p: Palette): string {
  const end: Rgb = t < 0 ? (p.dark ? [240, 154, 62] : [200, 98, 10]) : p.dark ? [98, 168, 250] : [30, 92, 190];
  return css(mix(p.surface, end, Math.sqrt(Math.min(1, Math.abs(t)))));
}

// Paul Tol's muted scheme, which stays apart for colour-blind eyes, then the same paler.
const GLASS: Rgb[] = [
  [51, 34, 136], [136, 204, 238], [68, 170, 153], [17, 119, 51],
  [153, 153, 51], [221, 204, 119], [204, 102, 119], [136, 34, 85],
];

export function expertColour(expert: number, p: Palette): string {
  const base = GLASS[expert % GLASS.length] as Rgb;
  const pale = Math.min(0.75, 0.3 * Math.floor(expert / GLASS.length) + (p.dark ? 0.18 : 0));
  return css(mix(base, [255, 255, 255], pale));
}

export function expertInk(expert: number): string {
  return [1, 2, 4, 5].includes(expert % GLASS.length) || expert >= GLASS.length ? "#14182a" : "#ffffff";
}
