// Elements from words. Text only ever becomes text nodes: no string is read as markup.
type Child = Node | string | null;

export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, string | number | boolean | null> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== false) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function table(caption: string, head: string[], rows: string[][]): HTMLTableElement {
  return h(
    "table",
    {},
    h("caption", {}, caption),
    h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, ...rows.map((row) =>
      h("tr", {}, ...row.map((text, i) => (i === 0 ? h("th", { scope: "row" }, text) : h("td", {}, text)))))),
  );
}

// A table that is built when it is opened; `build` runs again on each change while it is open.
export function tableBelow(): { element: HTMLDetailsElement; update: (label: string, build: () => HTMLTableElement) => void } {
  const summary = h("summary");
  const body = h("div", { class: "scroll", tabindex: 0 });
  const element = h("details", {}, summary, body);
  let make: (() => HTMLTableElement) | null = null;
  const show = () => {
    if (element.open && make) body.replaceChildren(make());
  };
  element.addEventListener("toggle", show);
  return {
    element,
    update(label, build) {
      summary.textContent = label;
      body.setAttribute("aria-label", label);
      make = build;
      show();
    },
  };
}

export interface Choice<T extends string> {
  element: HTMLElement;
  update: (label: string, chosen: T, names: [T, string][]) => void;
}

// A row of radio buttons that looks like one switch.
export function choice<T extends string>(name: string, onChoose: (value: T) => void): Choice<T> {
  const legend = h("legend");
  const row = h("div", { class: "switch" });
  const element = h("fieldset", {}, legend, row);
  return {
    element,
    update(label, chosen, names) {
      legend.textContent = label;
      const focused = row.contains(document.activeElement);
      row.replaceChildren(
        ...names.map(([value, text]) => {
          const input = h("input", { type: "radio", name, value, checked: value === chosen });
          input.addEventListener("change", () => onChoose(value));
          return h("label", {}, input, h("span", {}, text));
        }),
      );
      if (focused) row.querySelector<HTMLInputElement>("input:checked")?.focus();
    },
  };
}

export function panel(id: string, ...children: Child[]): { element: HTMLElement; title: HTMLElement; help: HTMLElement } {
  const title = h("h2", { id: `${id}-title` });
  const help = h("p", { class: "help" });
  const element = h("section", { id, class: "panel", "aria-labelledby": `${id}-title` }, title, help, ...children);
  return { element, title, help };
}

// The key of a ramp of colours: what its two ends mean, and what it shows.
export function scale(legend: HTMLElement, low: string, colours: string[], high: string, name = ""): void {
  legend.replaceChildren(
    ...(name ? [h("span", { class: "name" }, name)] : []),
    h("span", {}, low),
    h("span", { class: "ramp" }, ...colours.map((colour) => { const i = h("i"); i.style.backgroundColor = colour; return i; })),
    h("span", {}, high),
  );
}

// A cell with a bar of a length from 0 to 1.
export function bar(length: number, colour: string | null = null, ...marks: Node[]): HTMLTableCellElement {
  const filled = h("i", { class: "bar-fill" });
  filled.style.width = `${Math.max(0.4, length * 100)}%`;
  if (colour) filled.style.backgroundColor = colour;
  return h("td", { class: "track", "aria-hidden": "true" }, filled, ...marks);
}

// A cell with a bar from the middle to the left or to the right; `most` fills a half.
export function signedBar(value: number, most: number, colour: string): HTMLTableCellElement {
  const length = (Math.abs(value) / most) * 50;
  const cell = bar(length / 100, colour);
  const filled = cell.firstElementChild as HTMLElement;
  filled.style.marginLeft = `${value < 0 ? 50 - length : 50}%`;
  return cell;
}

export function context(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
  const found = canvas.getContext("2d");
  if (!found) throw new Error("this browser gives no 2d canvas");
  return found;
}

// Sizes a canvas in CSS pixels, sharp on dense screens.
export function size(canvas: HTMLCanvasElement, width: number, height: number): CanvasRenderingContext2D {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = context(canvas);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  return pen;
}
